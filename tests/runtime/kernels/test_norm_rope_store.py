import pytest
import torch

from runtime.kernels import norm_rope_store as kernels
from runtime.kernels import rms_norm as norm_kernels
from runtime.kernels import rope as rope_kernels
from runtime.kernels import store_rows as store_kernels
from runtime.reference import norm_rope_store as reference
from runtime.reference import rms_norm as norm_reference
from runtime.reference import rope as rope_reference
from runtime.reference import store_rows as store_reference

DTYPES = [torch.float32, torch.bfloat16]


def angles(tokens: int, pairs: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    turn = torch.rand(tokens, pairs, device=device) * 6.28
    return turn.cos(), turn.sin()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [True, False])
def test_rms_norm_matches_reference(dtype: torch.dtype, weighted: bool, device: torch.device) -> None:
    x = torch.randn(3, 5, 77, device=device).to(dtype)[:, :4]
    weight = torch.randn(77, device=device) if weighted else None
    torch.testing.assert_close(
        norm_kernels.rms_norm(x, weight, 1e-6), norm_reference.rms_norm(x, weight, 1e-6), rtol=1e-2, atol=1e-6
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("inverse", [True, False])
def test_rope_matches_reference(dtype: torch.dtype, interleaved: bool, inverse: bool, device: torch.device) -> None:
    x = torch.randn(3, 5, 44, device=device).to(dtype)
    cos, sin = angles(3, 6, device)
    expected = rope_reference.rope(x, cos, sin, interleaved, inverse)
    torch.testing.assert_close(rope_kernels.rope(x, cos, sin, interleaved, inverse), expected, rtol=1e-2, atol=1e-5)
    assert torch.equal(expected[..., :32], x[..., :32])


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_rope_store_fills_only_named_rows(dtype: torch.dtype, device: torch.device) -> None:
    x = torch.randn(4, 6, 3, 40, device=device).to(dtype)[:, 1:4].transpose(1, 2)[:, 0]  # strided view
    cos, sin = angles(4, 16, device)
    weight = torch.randn(40, device=device)
    rows = torch.tensor([5, -1, 0, 3], dtype=torch.int32, device=device)
    caches = [torch.full((7, 3, 40), 9.0, dtype=torch.bfloat16, device=device) for _ in range(2)]
    got = kernels.norm_rope_store(x, weight, 1e-6, cos, sin, True, caches[0], rows)
    expected = reference.norm_rope_store(x, weight, 1e-6, cos, sin, True, caches[1], rows)
    torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-5)
    torch.testing.assert_close(caches[0], caches[1], rtol=1e-2, atol=1e-5)
    assert (caches[0][[1, 2, 4, 6]] == 9.0).all()


def test_store_rows_casts_and_skips(device: torch.device) -> None:
    values = torch.randn(5, 2, 33, device=device)
    rows = torch.tensor([4, -1, 2, 0, -1], dtype=torch.int32, device=device)
    caches = [torch.zeros(6, 2, 33, dtype=torch.bfloat16, device=device) for _ in range(2)]
    store_kernels.store_rows(values, caches[0], rows)
    store_reference.store_rows(values, caches[1], rows)
    assert torch.equal(caches[0], caches[1])
    assert caches[0].any()
