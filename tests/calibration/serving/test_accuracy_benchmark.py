"""What is left of errors once the level of each stack is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.accuracy import levelled


def study(*stacks: tuple[str, int]) -> Any:
    """Rows of stacks that differ in their accelerator."""
    gpu = np.array([name for name, rows in stacks for _ in range(rows)])
    same = np.array(["x"] * len(gpu))
    return SimpleNamespace(gpu=gpu, engine=same, model=same, disaggregated=np.zeros(len(gpu), dtype=bool))


def test_the_level_of_a_stack_comes_from_its_other_rows() -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.1, (400, 3))
    level = np.repeat([[0.5], [-0.2]], 200, axis=0)
    noise[0, 2] = np.nan  # a saturated row
    left = levelled(study(("a", 200), ("b", 200)), np.arange(400), level + noise)
    assert np.nanmedian(np.abs(left), axis=0) == pytest.approx(np.nanmedian(np.abs(noise), axis=0), rel=0.1)
    assert not np.allclose(np.nanmedian(left[:200], axis=0), 0.0, atol=1e-6)  # its own row does not count


def test_stacks_with_few_rows_keep_their_errors() -> None:
    errors = np.full((3, 3), 0.5)
    assert levelled(study(("a", 3)), np.arange(3), errors) == pytest.approx(errors)
