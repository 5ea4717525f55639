"""Hardware with known rates, so that times can be worked out by hand."""

from __future__ import annotations

import pytest
from support.hardware import with_classes

from hw_profiles.catalog import load
from hw_profiles.profile import HardwareProfile


@pytest.fixture(scope="session")
def peak_h200() -> HardwareProfile:
    """H200 that reaches its data sheet, without latencies; roofs combine by maximum as nearly as q = 16 does."""
    return with_classes(
        load("h200_sxm"),
        matrix_fraction=1.0,
        memory_fraction=1.0,
        network_fraction=1.0,
        latency_s=0.0,
        depth_s=0.0,
        depth_s_by={},
        exponent=16.0,
    )
