"""What a split is scored by."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.accuracy import score
from benchmarks.study import SATURATED
from calibration.serving.points import parse_point
from calibration.serving.predict import saturated


def test_bands_of_a_normal_law_hold_four_fifths_and_its_median_error_is_that_of_the_law() -> None:
    rng = np.random.default_rng(1)
    errors = rng.normal(0.05, 0.2, (4000, 3))
    errors[:100, 2] = np.nan  # saturated rows
    bands = errors + np.array([-1.2816, 0.0, 1.2816])[:, None, None] * 0.2
    found = score(bands)
    assert found["ttft_ms"]["n"] == 3900
    for metric in found.values():
        assert metric["coverage"] == pytest.approx(0.8, abs=0.03)
        assert metric["bias"] == pytest.approx(np.expm1(0.05), abs=0.02)
        assert metric["median_ape"] == pytest.approx(0.14, abs=0.02)


@pytest.mark.parametrize(("ttft_ms", "queued"), [(100.0, False), (6000.0, True)])
def test_first_tokens_later_than_half_of_decode_are_queueing(ttft_ms: float, queued: bool) -> None:
    row = {"model": "DeepSeek-R1", "gpu": "H200", "n_gpu": 8, "engine": "SGLang", "decode_parallel": "TP8",
           "isl": 1000, "osl": 500, "concurrency": 8, "tpot_ms": 12.0, "ttft_ms": ttft_ms}  # fmt: skip
    assert saturated(parse_point(0, row), SATURATED) is queued
