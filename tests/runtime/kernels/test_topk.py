import pytest
import torch

from runtime.kernels import topk as kernels
from runtime.reference import topk as reference


@pytest.mark.parametrize(("columns", "k"), [(300, 37), (5000, 512), (20, 64)])
def test_top_k_is_the_same_set_in_index_order(columns: int, k: int, device: torch.device) -> None:
    scores = torch.randn(4, columns, device=device) * torch.tensor([[1e-3], [1.0], [1e6], [1.0]], device=device)
    scores[3] = scores[3].round()  # many ties
    scores[1, ::3] = -0.0
    scores[1, 1::3] = 0.0
    lengths = torch.tensor([columns, columns - 3, columns // 2, columns], dtype=torch.int32, device=device)
    got = kernels.top_k(scores, lengths, k)
    assert torch.equal(got, reference.top_k(scores, lengths, k))


def test_rows_shorter_than_k_are_padded(device: torch.device) -> None:
    scores = torch.randn(3, 50, device=device)
    lengths = torch.tensor([0, 2, 5], dtype=torch.int32, device=device)
    assert kernels.top_k(scores, lengths, 4)[:2].tolist() == [[-1] * 4, [0, 1, -1, -1]]
    assert torch.equal(kernels.top_k(scores, lengths, 4), reference.top_k(scores, lengths, 4))
