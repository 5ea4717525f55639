import pytest
import torch

from runtime.kernels import compressor as kernels
from runtime.reference import compressor as reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("ratio", "windows", "dim"), [(4, 2, 24), (4, 1, 32), (20, 1, 16)])
def test_entries_match_reference(ratio: int, windows: int, dim: int, dtype: torch.dtype, device: torch.device) -> None:
    width, ring, pairs = windows * dim, windows * ratio, 4
    past, lengths = [0, ratio + 3, 2 * ratio], [3 * ratio, 2 * ratio, ratio]
    bounds = [0, 3 * ratio, 5 * ratio, 6 * ratio]
    closed = [(s, e) for s in range(3) for e in range(past[s] // ratio, (past[s] + lengths[s]) // ratio)]
    new = torch.randn(bounds[-1], 2 * width, device=device).to(dtype)
    state = torch.randn(4, ring, 2 * width, device=device)
    turn = torch.rand(len(closed), pairs, device=device) * 6.28

    def ints(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    arguments = (
        new,
        state,
        torch.randn(ratio, width, device=device),
        ints(bounds),
        ints(past),
        ints([2, 0, 3]),
        ints([s for s, _ in closed]),
        ints([e for _, e in closed]),
        torch.randn(dim, device=device),
        1e-6,
        turn.cos(),
        turn.sin(),
        ratio,
    )
    rtol, atol = (1e-4, 1e-5) if dtype == torch.float32 else (2e-2, 2e-2)
    torch.testing.assert_close(kernels.compress(*arguments), reference.compress(*arguments), rtol=rtol, atol=atol)
