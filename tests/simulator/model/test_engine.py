"""What a profile says of situations: names that no engine has are refused where the profile is used."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hw_profiles.catalog import CatalogError, load
from hw_profiles.efficiency import Situation
from hw_profiles.profile import HardwareProfile
from simulator.model.acceptance import tokens_per_step
from simulator.model.engine import FACTORS, in_service
from simulator.model.latency import Chunk, DecodeLoad, StepLatency
from simulator.model.parallelism import Parallelism
from simulator.model.presets import load_model

MODEL = load_model("deepseek-v3")


def profile(**changes: Any) -> HardwareProfile:
    plain = load("h200")
    return replace(plain, efficiency=plain.efficiency.model_copy(update=changes))


def served(hardware: HardwareProfile) -> HardwareProfile:
    return in_service(hardware, MODEL, "colocated")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"situations": (Situation(when={"phase": "decode"}, factors={"memory": 0.9}),)}, "when: unknown name 'phase'"),
        ({"situations": (Situation(when={}, factors={"hbm": 0.9}),)}, "factors: unknown name 'hbm'; use one of memory"),
        ({"served": ("pooled",)}, "served: unknown name 'pooled'; use one of colocated, disaggregated"),
    ],
)
def test_a_profile_with_an_unknown_name_is_refused_when_it_is_used(changes: dict[str, Any], said: str) -> None:
    hardware = profile(**changes)  # carried along as it is
    with pytest.raises(CatalogError, match=said) as refusal:
        served(hardware)
    assert str(refusal.value).startswith("profile h200_sxm@default: ")


@pytest.mark.parametrize("factor", FACTORS)
def test_every_factor_slows_a_step_or_a_request_with_drafts(factor: str) -> None:
    """Rates go down by a factor below 1, host times and floors up by one above it."""
    of_time = factor.endswith("_s")
    situations = (Situation(when={"form": "colocated"}, factors={factor: 2.0 if of_time else 0.5}),)
    host = {"kernel_overhead_s": 2e-6, "sequence_overhead_s": 1e-5, "exit_latency_s": 1e-5, "acceptance": 0.7}
    plain, changed = profile(**host), profile(**host, situations=situations)

    def seconds(hardware: HardwareProfile) -> float:
        driven = in_service(hardware, MODEL, "colocated")
        times = StepLatency(MODEL, driven, Parallelism(dp=16, ep=16), 1)
        decode_s = times.decode_s(DecodeLoad.alike(4, 1000, times.caps, 64))
        accepted = tokens_per_step(driven.efficiency.acceptance or 0.0, 1.0)
        return times.prefill_s([Chunk(4096, 0)]) + times.first_token_extra_s + decode_s / accepted

    assert seconds(changed) > seconds(plain)
