"""Angles of the rotary embedding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.config.spec import RopeConfig, YarnScaling

STEP_WIDTH = 1e-3  # pairs over which a ramp of no width rises, which makes it a step


@dataclass(frozen=True)
class Angles:
    """cos and sin, [T, dim / 2] float32, of one RoPE at the tokens' (or entries') positions."""

    cos: Tensor
    sin: Tensor


def _yarn_keep(yarn: YarnScaling, theta: float, dim: int) -> Tensor:
    """Share of its own frequency that each pair keeps; the rest is divided by the factor. [dim / 2]

    Pairs turning more than beta_fast times over the original context keep theirs, those turning less than
    beta_slow times are interpolated, with a ramp between.
    """

    def pair_that_turns(times: float) -> float:
        return dim * math.log(yarn.original_max_positions / (times * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_that_turns(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(yarn.beta_slow)), dim - 1)
    width = high - low if high > low else STEP_WIDTH
    return 1 - ((torch.arange(dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)


def inverse_frequencies(config: RopeConfig) -> Tensor:
    """Radians a position for each pair: theta^(-2 i / dim), stretched by YaRN. [dim / 2] float32"""
    own = 1.0 / config.theta ** (torch.arange(0, config.dim, 2, dtype=torch.float32) / config.dim)
    if config.yarn is None:
        return own
    keep = _yarn_keep(config.yarn, config.theta, config.dim)
    return own / config.yarn.factor * (1 - keep) + own * keep


class Rotary:
    """One RoPE's frequencies, on the device of the positions it last saw."""

    def __init__(self, config: RopeConfig) -> None:
        self._frequencies = inverse_frequencies(config)
        self._factor = config.yarn.attention_factor if config.yarn else 1.0

    def __call__(self, positions: Tensor) -> Angles:
        self._frequencies = self._frequencies.to(positions.device)
        radians = positions.float()[:, None] * self._frequencies
        return Angles(radians.cos() * self._factor, radians.sin() * self._factor)
