import pytest
import torch

from runtime.kernels import mhc as kernels
from runtime.reference import mhc as reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "streams", "hidden"), [(5, 4, 200), (17, 3, 1100)])
def test_streams_collapse_and_expand_as_the_reference(
    tokens: int, streams: int, hidden: int, dtype: torch.dtype, device: torch.device
) -> None:
    mixes = (2 + streams) * streams
    x = torch.randn(tokens, streams, hidden, device=device).to(dtype)
    fn = torch.randn(mixes, streams * hidden, device=device) * 0.05
    base, scale = torch.randn(mixes, device=device), torch.rand(3, device=device) + 0.5
    got = kernels.mhc_pre(x, fn, base, scale, 1e-6, 1e-6, 20)
    want = reference.mhc_pre(x, fn, base, scale, 1e-6, 1e-6, 20)
    rtol, atol = (1e-4, 1e-5) if dtype == torch.float32 else (1e-2, 1e-2)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)
    comb = got[2]  # doubly stochastic: every stream gives and receives one whole
    torch.testing.assert_close(comb.sum(1), torch.ones_like(comb[:, 0]), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(comb.sum(2), torch.ones_like(comb[:, 0]), rtol=1e-2, atol=1e-2)

    y = torch.randn(tokens, hidden, device=device).to(dtype)
    torch.testing.assert_close(
        kernels.mhc_post(x, y, want[1], want[2]), reference.mhc_post(x, y, want[1], want[2]), rtol=rtol, atol=atol
    )
    head = (fn[:streams], base[:streams], scale[:1], 1e-6, 1e-6)
    torch.testing.assert_close(kernels.mhc_head(x, *head), reference.mhc_head(x, *head), rtol=rtol, atol=atol)
