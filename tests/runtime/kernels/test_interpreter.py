"""The corrected interpreter against PyTorch's own conversions, and that it leaves no trace."""

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter as stock
from triton.runtime.jit import JITFunction

from runtime.interpreter import interpreted

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a GPU")


@triton.jit
def _cast_kernel(x, out, n, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + place, mask=place < n, other=0.0)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=place < n)


@triton.jit
def _arithmetic_kernel(x, y, out, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    a, b = tl.load(x + place), tl.load(y + place)
    tl.store(out + place, tl.maximum(a * b + a, -b))


@triton.jit
def _dot_kernel(x, y, out, BLOCK: tl.constexpr):
    row, column = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    place = row * BLOCK + column
    tl.store(out + place, tl.dot(tl.load(x + place), tl.load(y + place)))


@triton.jit
def _unset_kernel(x, out, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(out + place, tl.load(x + place, mask=place < 2))


@triton.jit
def _sum_kernel(x, out, BLOCK: tl.constexpr):
    tl.store(out, tl.sum(tl.load(x + tl.arange(0, BLOCK)), 0))


def every_kind_of_float() -> torch.Tensor:
    """All exponents, mantissas that round up, down, to even and over into the exponent, both signs, no NaN."""
    generator = torch.Generator().manual_seed(1)
    bits = torch.randint(0, 2**31, (20000,), generator=generator, dtype=torch.int64).int()
    values = torch.cat([bits.view(torch.float32), torch.randn(20000, generator=generator) * 100])
    ties = torch.arange(4096).float() / 32 + 1 / 64
    special = torch.tensor([0.0, -0.0, 448.0, 449.0, 464.0, 1e9, float("inf"), 2**-9, 2**-10, 1.9375, 0.99999])
    values = torch.cat([values[values.isfinite()], ties, special])
    return torch.cat([values, -values])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casts_round_as_torch_does(dtype: torch.dtype) -> None:
    x = every_kind_of_float()
    out = torch.empty_like(x, dtype=dtype)
    _cast_kernel[(triton.cdiv(len(x), 1024),)](x, out, len(x), BLOCK=1024)
    assert torch.equal(out.view(torch.int16), x.to(dtype).view(torch.int16))
    back = torch.empty_like(x)
    _cast_kernel[(triton.cdiv(len(x), 1024),)](out, back, len(x), BLOCK=1024)
    assert torch.equal(back, out.float())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_rounds_to_even_and_saturates(dtype: torch.dtype) -> None:
    x = every_kind_of_float()
    limit = torch.finfo(dtype).max
    out = torch.empty(len(x), dtype=dtype)
    _cast_kernel[(triton.cdiv(len(x), 1024),)](x, out, len(x), BLOCK=1024)
    assert torch.equal(out.view(torch.uint8), x.clamp(-limit, limit).to(dtype).view(torch.uint8))


def test_bf16_arithmetic_rounds_after_every_operation() -> None:
    x, y = torch.randn(2, 256).to(torch.bfloat16)
    out = torch.empty_like(x)
    _arithmetic_kernel[(1,)](x, y, out, BLOCK=256)
    assert torch.equal(out, torch.maximum(x * y + x, -y))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_products_use_values_not_bits(dtype: torch.dtype) -> None:
    x, y = (torch.randn(32, 32).to(dtype) for _ in range(2))
    out = torch.empty(32, 32)
    _dot_kernel[(1,)](x, y, out, BLOCK=32)
    torch.testing.assert_close(out, x.float() @ y.float())


def test_lanes_masked_off_without_a_value_are_poisoned() -> None:
    out = torch.zeros(4)
    _unset_kernel[(1,)](torch.ones(4), out, BLOCK=4)
    assert out[:2].tolist() == [1.0, 1.0]
    assert out[2:].isnan().all()


def test_a_bf16_sum_is_refused() -> None:
    with pytest.raises(Exception, match="cast to float32"):
        _sum_kernel[(1,)](torch.ones(16, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.bfloat16), BLOCK=16)


def test_leaving_restores_triton() -> None:
    inside = (JITFunction.run, stock._convert_float, stock.InterpreterBuilder.create_dot)
    with interpreted():
        pass
    assert (JITFunction.run, stock._convert_float, stock.InterpreterBuilder.create_dot) == inside
    assert tl.exp.__module__.startswith("triton.language")
