import pytest
import torch

from runtime.kernels import indexer as kernels
from runtime.reference import indexer as reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_of_visible_entries(dtype: torch.dtype, device: torch.device) -> None:
    heads, dim, per_block, table_width = 5, 24, 4, 12
    token_seq = torch.tensor([0] * 5 + [1] * 2 + [2], dtype=torch.int32, device=device)
    visible = torch.tensor([0, 1, 1, 2, 2, 40, 41, 7], dtype=torch.int32, device=device)
    q = torch.randn(8, heads, dim, device=device).to(dtype)
    weights = torch.randn(8, heads, device=device)
    keys = torch.randn(3 * table_width, per_block, dim, device=device).to(dtype)
    table = torch.randperm(3 * table_width, device=device).int().view(3, table_width)
    arguments = (q, weights, keys, table, token_seq, visible, 41)
    got, expected = kernels.indexer_scores(*arguments), reference.indexer_scores(*arguments)
    seen = torch.arange(41, device=device) < visible[:, None]
    torch.testing.assert_close(got[seen], expected[seen], rtol=1e-4, atol=1e-4)
