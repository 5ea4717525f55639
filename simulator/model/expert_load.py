"""How unevenly tokens fall on expert ranks: popular experts, and the chance of the draw in each step.

Each layer has popularities of its own and a placement of its own, both fixed; in every step each layer draws how
often each expert is chosen (multinomial: choices of a token are drawn with replacement, which overstates the variance
of a rank's load by (E - 1) / (E - K)). Loads are given relative to the expectation under uniform routing, as means
over layers, because a step runs all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from simulator.model.architecture import MoeSpec
from simulator.model.arrays import Floats
from simulator.model.moe import RankLoad, tile_of, touched_experts
from simulator.model.parallelism import ParallelismError

SAMPLES = 32  # steps drawn for each token count; assumed
SEED = 20_240  # of popularities, placements and draws: a fixed table
# A power law's loads lie between 1 and this, as where aiconfigurator's collector draws loads of 8,192 tokens. [-]
POWER_LAW_SPAN = 0.8 * 8192
LARGEST_BUCKET = 36  # half powers of two; assumed: beyond 2^18 tokens the draws no longer matter
ROUNDING = 1e-12  # by which a chance may pass 1 [-]


@dataclass(frozen=True)
class ExpertSkew:
    """Popularity of experts over the tokens that an instance sees.

    uniform: all alike. power_law: loads of density x^-alpha, alpha > 1, on [1, POWER_LAW_SPAN]. dirichlet: drawn for
    each layer with this concentration an expert; their squared coefficient of variation is about 1 / concentration.
    redundant_experts: second and further copies of the most loaded experts of each layer, over all ranks; with them
    copies share an expert's tokens evenly and are packed so that ranks are as even as can be (EPLB, which then knows
    the popularity exactly); without them experts lie on ranks at random.
    """

    kind: Literal["uniform", "power_law", "dirichlet"] = "uniform"
    alpha: float = 1.2
    concentration: float = 10.0
    redundant_experts: int = 0


def expert_chances(skew: ExpertSkew, experts: int, chosen: int, rng: np.random.Generator) -> Floats:
    """Chance of a token to choose each expert of one layer, adding up to the experts per token, at most 1 each."""
    if skew.kind == "power_law":
        quantiles = (np.arange(experts) + 0.5) / experts
        power = 1.0 - skew.alpha
        weights = (1 + quantiles * (POWER_LAW_SPAN**power - 1)) ** (1 / power)
    elif skew.kind == "dirichlet":
        weights = rng.dirichlet(np.full(experts, skew.concentration))
    else:
        weights = np.ones(experts)
    return _capped(weights, chosen)


def _capped(weights: Floats, chosen: int) -> Floats:
    """Chances in proportion to the weights, but where that exceeds 1."""
    chances = weights * (chosen / weights.sum())
    while chances.max() > 1 + ROUNDING:
        certain = chances >= 1
        rest = chances[~certain]
        chances = np.where(certain, 1.0, chances * ((chosen - certain.sum()) / rest.sum()))
    return chances


def place(chances: Floats, ranks: int, redundant: int, rng: np.random.Generator) -> Floats:
    """Chance of a token to reach each slot: [ranks, slots of a rank].

    Greedy, as EPLB does: copies go one by one to the expert whose copies are most loaded; then slots, the most
    loaded first, to the least loaded rank that has one free.
    """
    if not redundant:
        return rng.permutation(chances).reshape(ranks, -1)
    copies = np.ones(len(chances))
    for _ in range(redundant):
        copies[np.argmax(chances / copies)] += 1
    loads = np.sort(np.repeat(chances / copies, copies.astype(int)))[::-1]
    held = len(loads) // ranks
    slots = np.zeros((ranks, held))
    filled = np.zeros(ranks, dtype=int)
    total = np.zeros(ranks)
    for load in loads:
        rank = int(np.argmin(np.where(filled < held, total, np.inf)))
        slots[rank, filled[rank]] = load
        filled[rank] += 1
        total[rank] += load
    return slots


class ExpertLoads:
    """Loads of the two ranks of `ranks` that may bind: most choices, most experts touched.

    layers: of this kind in the model. Tables are filled as token counts are asked for.
    """

    def __init__(self, skew: ExpertSkew, ffn: MoeSpec, ranks: int, layers: int) -> None:
        if (ffn.experts + skew.redundant_experts) % ranks:
            raise ParallelismError(
                f"redundant_experts={skew.redundant_experts} with {ffn.experts} experts does not fill ep={ranks} ranks "
                f"evenly; give {-ffn.experts % ranks} or a multiple of {ranks} more"
            )
        self._skew, self._ffn, self._ranks, self._layers = skew, ffn, ranks, layers
        self._tables: dict[int, Floats] = {}

    @cached_property
    def _slots(self) -> Floats:
        """[layers, ranks, slots of a rank]"""
        rng = np.random.default_rng(SEED)
        ffn, skew = self._ffn, self._skew
        return np.stack(
            [
                place(
                    expert_chances(skew, ffn.experts, ffn.experts_per_token, rng),
                    self._ranks,
                    skew.redundant_experts,
                    rng,
                )
                for _ in range(self._layers)
            ]
        )

    def draws(self, bucket: int) -> Floats:
        """Of 2^(bucket/2) tokens: [6, SAMPLES], means over layers.

        Choices and touched experts, relative to uniform expectation, and experts read again, of the rank with most
        choices, then of the rank with most touched ones.
        """
        table = self._tables.get(bucket)
        if table is None:
            table = self._tables[bucket] = self._draw(bucket)
        return table

    def _draw(self, bucket: int) -> Floats:
        rng = np.random.default_rng([SEED, bucket])
        slots = self._slots
        tokens = bucket_tokens(bucket)
        chosen = self._ffn.experts_per_token
        flat = slots.reshape(self._layers, -1) / chosen
        counts = rng.multinomial(tokens * chosen, flat, size=(SAMPLES, self._layers))
        counts = counts.reshape(SAMPLES, *slots.shape)
        choices = counts.sum(axis=3) * (self._ranks / (tokens * chosen))
        expected = touched_experts(tokens, self._ffn.experts, chosen, self._ffn.experts / self._ranks)
        touched = (counts > 0).sum(axis=3) / expected
        tile = tile_of(tokens * chosen / self._ffn.experts)
        again = tiles_beyond(counts, tile).sum(axis=3)
        rows = []
        for key in (choices, touched):
            rank = np.argmax(key, axis=2)[..., None]
            rows += [np.take_along_axis(x, rank, axis=2)[..., 0].mean(axis=1) for x in (choices, touched, again)]
        return np.array(rows)

    def mean(self, tokens: float) -> tuple[RankLoad, RankLoad]:
        """Expected loads of the two ranks."""
        bucket, part = position(tokens)
        low, high = self.draws(bucket).mean(axis=1), self.draws(bucket + 1).mean(axis=1)
        return self.loads(tokens, low + part * (high - low))

    def loads(self, tokens: float, relative: Floats) -> tuple[RankLoad, RankLoad]:
        """Loads of `tokens` tokens from the six numbers of one draw."""
        ffn = self._ffn
        choices = tokens * ffn.experts_per_token / self._ranks
        touched = touched_experts(tokens, ffn.experts, ffn.experts_per_token, ffn.experts / self._ranks)
        a, b, again, c, d, again_too = relative.tolist()
        return RankLoad(choices * a, touched * b, again), RankLoad(choices * c, touched * d, again_too)


def tiles_beyond(counts: NDArray[Any], tile: int) -> Floats:
    """Tiles of tokens beyond the first of each expert."""
    further: Floats = np.maximum(np.ceil(counts / tile), 1) - 1
    return further


def bucket_tokens(bucket: int) -> int:
    """Tokens of a bucket: half powers of two.

    >>> [bucket_tokens(bucket) for bucket in (0, 1, 2, 3, 20)]
    [1, 1, 2, 3, 1024]
    """
    return round(2 ** (bucket / 2))


def position(tokens: float) -> tuple[int, float]:
    """Bucket at or below a token count, and how far towards the next it lies.

    >>> position(8), position(1), position(1 << 30)
    ((6, 0.0), (0, 0.0), (35, 1.0))
    """
    halves = min(2 * math.log2(max(tokens, 1.0)), float(LARGEST_BUCKET))
    bucket = min(int(halves), LARGEST_BUCKET - 1)
    return bucket, halves - bucket
