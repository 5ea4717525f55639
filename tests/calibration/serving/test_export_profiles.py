"""Profiles in situations say what the serving fit says of points there."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from calibration.serving.effects import shipped
from calibration.serving.export_profiles import engines_of, in_engine
from calibration.serving.parameters import LEVELS, kernel_profile, kind_of, values
from calibration.serving.point_engines import parallelism_of
from calibration.serving.predict import prepare
from calibration.serving.served_model import variant
from hw_profiles.catalog import load
from hw_profiles.efficiency import OpClass, Situation
from simulator.model.engine import form_of, in_service, in_situation

R1 = {"model": "DeepSeek-R1", "gpu": "B200", "n_gpu": 8, "isl": 1000, "osl": 1000, "concurrency": 16, "tpot_ms": 10.0}
POINTS = [
    ("sglang", {"engine": "SGLang", "precision": "FP8", "decode_parallel": "TP8"}),
    ("sglang", {"engine": "SGLang", "precision": "NVFP4", "decode_parallel": "TP8 EP8 DPattn", "spec_decode": "MTP"}),
    ("trtllm", {"engine": "TensorRT-LLM", "precision": "NVFP4", "decode_parallel": "TP8 EP8", "spec_decode": "MTP"}),
    ("sglang", {"engine": "MoRI+SGLang", "gpu": "MI355X", "precision": "FP8", "disaggregated": 1, "n_gpu": 16,
                "n_prefill_gpu": 8, "n_decode_gpu": 8, "decode_parallel": "TP8", "prefill_parallel": "TP8"}),
    ("sglang", {"engine": "Dynamo+SGLang", "precision": "FP8", "disaggregated": 1, "n_gpu": 16, "n_prefill_gpu": 8,
                "n_decode_gpu": 8, "decode_parallel": "TP8 EP8 DPattn", "prefill_parallel": "TP8"}),
    ("vllm", {"engine": "vLLM", "model": "DeepSeek-V4-Pro", "precision": "FP4", "decode_parallel": "TP8 EP8"}),
]  # fmt: skip


@pytest.mark.parametrize(("stack", "row"), POINTS)
def test_a_profile_in_a_situation_is_what_the_fit_says_of_a_point_there(stack: str, row: dict[str, object]) -> None:
    """Software of one month apart, which a profile does not tell from others."""
    fit = shipped()
    prepared = prepare(pd.DataFrame([{**R1, **row}]))
    point, hardware = prepared.points[0].point, prepared.points[0].hardware
    assert engines_of(hardware.name, stack, fit)[form_of(point.disaggregated)] == point.engine
    levels = [x for x in prepared.levels[0] if "release" not in LEVELS[kind_of(x)][1]]
    expected = {name: float(value[0]) for name, value in values(fit.theta([tuple(levels)])).items()}
    cut = parallelism_of(point.decode)
    model = variant(point.model, point.precision, point.engine, hardware, cut.ep)
    profile = replace(hardware, efficiency=in_engine(hardware.name, stack, fit))
    found = in_service(profile, model, form_of(point.disaggregated)).efficiency
    for name in ("kernel_overhead_s", "sequence_overhead_s", "exit_latency_s", "request_overhead_s", "acceptance"):
        assert getattr(found, name) == pytest.approx(expected[name], rel=3e-3), name
    assert found.step_overhead_s == 0.0
    kernels = kernel_profile(hardware.name, stack).efficiency.classes
    for op_class, own in (
        (OpClass.DENSE_GEMM, 1.0),
        (OpClass.LATENT_DECODE, "attention"),
        (OpClass.GROUPED_GEMM, "experts"),
    ):
        alone, inside = kernels[op_class], found.classes[op_class]
        more = expected[own] if isinstance(own, str) else own
        assert inside.latency_s == alone.latency_s
        for name in ("matrix", "memory"):
            share = min(1.0, getattr(alone, f"{name}_fraction") * expected[name] * more)
            assert getattr(inside, f"{name}_fraction") == pytest.approx(share, rel=3e-3)


def test_situations_that_hold_multiply_and_others_do_not() -> None:
    plain = load("h200_sxm")
    found = (
        Situation(when={"model": "deepseek-r1"}, factors={"kernel_overhead_s": 2.0}),
        Situation(
            when={"model": "deepseek-r1", "form": "colocated"}, factors={"kernel_overhead_s": 3.0, "memory": 0.5}
        ),
        Situation(when={"form": "disaggregated"}, factors={"kernel_overhead_s": 100.0}),
    )
    hardware = replace(
        plain, efficiency=plain.efficiency.model_copy(update={"situations": found, "kernel_overhead_s": 2e-6})
    )
    before = hardware.efficiency
    r1 = in_situation(hardware, (("model", "deepseek-r1"), ("form", "colocated"))).efficiency
    assert r1.kernel_overhead_s == pytest.approx(6 * 2e-6)
    dense = OpClass.DENSE_GEMM
    assert r1.classes[dense].memory_fraction == pytest.approx(0.5 * before.classes[dense].memory_fraction, rel=1e-3)
    other = in_situation(hardware, (("model", "another"), ("form", "colocated"))).efficiency
    assert other.kernel_overhead_s == 2e-6
    assert in_situation(plain, (("model", "deepseek-r1"),)) is plain
