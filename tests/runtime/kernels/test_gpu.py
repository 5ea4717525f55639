"""On a GPU only: every kernel at serving shapes against its reference on the same device."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch

from benchmarks.kernels import cases

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# The reference would hold [8192, 64, 8192] float32 at once; alignments are compared as sets in test_moe_align.py.
TOO_LARGE = {"indexer_scores_8192"}
UNORDERED = {"moe_align_8192", "moe_align_64"}


def reference_of(kernel: object) -> object:
    module = inspect.getmodule(kernel)
    assert module is not None
    twin = importlib.import_module(module.__name__.replace("runtime.kernels", "runtime.reference"))
    return getattr(twin, kernel.__name__)  # type: ignore[attr-defined]


def values(result: object) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    return [part for part in result if isinstance(part, torch.Tensor)] if isinstance(result, tuple) else []


@pytest.mark.parametrize("name", [case.name for case in cases.CASES if case.name not in TOO_LARGE | UNORDERED])
def test_kernel_equals_reference_at_serving_shape(
    name: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = next(case for case in cases.CASES if case.name == name)
    if case.fp8 and torch.version.hip is None and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no fp8 type")
    torch.manual_seed(1)
    got = values(case.build(device)())
    for attribute, kernel in vars(cases).copy().items():
        if getattr(kernel, "__module__", "").startswith("runtime.kernels."):
            monkeypatch.setattr(cases, attribute, reference_of(kernel))
    torch.manual_seed(1)
    expected = values(case.build(device)())
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        if not theirs.is_floating_point():
            # Ids: a score within rounding of another may change places.
            assert (ours == theirs).float().mean() > 0.999
            continue
        difference = (ours.float() - theirs.float()).norm() / theirs.float().norm()
        assert difference < 2e-2, f"relative error {difference}"
