"""Hardware with known rates, and the load of a decode batch."""

from __future__ import annotations

from dataclasses import replace

from hw_profiles.profile import HardwareProfile
from simulator.model.latency import DecodeLoad, StepLatency


def with_classes(profile: HardwareProfile, **changes: float) -> HardwareProfile:
    """`profile` with the given parameters in every op class."""
    classes = {name: c.model_copy(update=changes) for name, c in profile.efficiency.classes.items()}
    return replace(profile, efficiency=profile.efficiency.model_copy(update={"classes": classes}))


def decode_load(latency: StepLatency, contexts: list[int], total: int | None = None) -> DecodeLoad:
    capped = tuple(sum(min(context, cap) for context in contexts) for cap in latency.caps)
    ranks = latency.parallelism.dp
    return DecodeLoad(len(contexts), sum(contexts), capped, len(contexts) * ranks if total is None else total)
