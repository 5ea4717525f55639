"""What holds for every test: Hypothesis's cases, and an environment without profiles of one's own.

HYPOTHESIS_PROFILE=night pytest ... tries more, and other, random cases.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

# Machines that share their cores are slow at times, which says nothing about the code: no deadline, and slow drawing is
# fine. Fixtures that are shared between the examples of a test are plain functions here.
_EVERYWHERE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
# `make test` tries the same examples each time, so that a change alone can break it.
settings.register_profile("ci", _EVERYWHERE, max_examples=50, derandomize=True)
settings.register_profile("night", _EVERYWHERE, max_examples=500, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True)
def _own_profiles_end_with_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """`moeplan --profiles` sets the variable for the rest of its process."""
    monkeypatch.setenv("MOEPLAN_PROFILES", "")
