import pytest
import torch

from runtime.kernels import router_gate as kernels
from runtime.reference import router_gate as reference


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid", "sqrtsoftplus"])
@pytest.mark.parametrize("normalize", [True, False])
def test_gate_matches_reference(scoring: str, normalize: bool, device: torch.device) -> None:
    logits = torch.randn(9, 37, device=device) * 4
    logits[0, 3], logits[0, 4] = -40.0, 30.0  # ends of softplus
    bias = torch.randn(37, device=device)
    for arguments in ((5, scoring, bias, normalize, 2.5), (1, scoring, None, normalize, 1.0)):
        weights, ids = kernels.router_gate(logits, *arguments)
        want_weights, want_ids = reference.router_gate(logits, *arguments)
        assert torch.equal(ids, want_ids)
        torch.testing.assert_close(weights, want_weights)


def test_groups_limit_the_choice(device: torch.device) -> None:
    logits = torch.randn(7, 24, device=device)
    bias = torch.randn(24, device=device)
    arguments = (4, "sigmoid", bias, True, 2.5, 6, 2)
    weights, ids = kernels.router_gate(logits, *arguments)
    want_weights, want_ids = reference.router_gate(logits, *arguments)
    assert torch.equal(ids, want_ids)
    torch.testing.assert_close(weights, want_weights)
    assert all(len(set((row // 4).tolist())) <= 2 for row in ids)


def test_hash_table_fixes_the_choice_but_not_the_weights(device: torch.device) -> None:
    table = torch.randint(0, 16, (50, 3), device=device)
    hash_ids = table[torch.tensor([4, 9, 4], device=device)]
    logits = torch.randn(3, 16, device=device)
    weights, ids = kernels.router_gate(logits, 3, "sqrtsoftplus", None, True, 1.5, hash_ids=hash_ids)
    want_weights, want_ids = reference.router_gate(logits, 3, "sqrtsoftplus", None, True, 1.5, hash_ids=hash_ids)
    assert torch.equal(ids, want_ids)
    assert torch.equal(ids.long(), hash_ids)
    torch.testing.assert_close(weights, want_weights)
    torch.testing.assert_close(weights.sum(-1), torch.full((3,), 1.5, device=device))


def test_a_tie_goes_to_the_lower_expert(device: torch.device) -> None:
    _, ids = kernels.router_gate(torch.zeros(2, 10, device=device), 3, "softmax")
    assert ids.tolist() == [[0, 1, 2], [0, 1, 2]]
