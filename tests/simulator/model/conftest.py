"""Hardware with known rates, so that times can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from hw_profiles.catalog import load
from hw_profiles.profile import HardwareProfile
from simulator.model.latency import DecodeLoad, StepLatency


def _with_classes(profile: HardwareProfile, **changes: float) -> HardwareProfile:
    """`profile` with the given parameters in every op class."""
    classes = {name: c.model_copy(update=changes) for name, c in profile.efficiency.classes.items()}
    return replace(profile, efficiency=profile.efficiency.model_copy(update={"classes": classes}))


def _decode_load(latency: StepLatency, contexts: list[int], total: int | None = None) -> DecodeLoad:
    capped = tuple(sum(min(context, cap) for context in contexts) for cap in latency.caps)
    ranks = latency.parallelism.dp
    return DecodeLoad(len(contexts), sum(contexts), capped, len(contexts) * ranks if total is None else total)


@pytest.fixture(scope="session")
def peak_h200() -> HardwareProfile:
    """H200 that reaches its data sheet, without latencies; roofs combine by maximum as nearly as q = 16 does."""
    return _with_classes(
        load("h200_sxm"),
        matrix_fraction=1.0,
        memory_fraction=1.0,
        network_fraction=1.0,
        latency_s=0.0,
        depth_s=0.0,
        depth_s_by={},
        exponent=16.0,
    )


@pytest.fixture(scope="session")
def with_classes() -> Callable[..., HardwareProfile]:
    return _with_classes


@pytest.fixture(scope="session")
def decode_load() -> Callable[..., DecodeLoad]:
    return _decode_load
