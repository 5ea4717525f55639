import numpy as np
import torch
from scipy import stats

from runtime.kernels import sampling as kernels
from runtime.reference import sampling as reference


def arguments(
    rows: int, device: torch.device, heat: float, top_k: int = 0, top_p: float = 1.0, seed: int = 0
) -> tuple[torch.Tensor, ...]:
    return (
        torch.full((rows,), heat, device=device),
        torch.full((rows,), top_k, dtype=torch.int32, device=device),
        torch.full((rows,), top_p, device=device),
        torch.full((rows,), seed, dtype=torch.int64, device=device),
        torch.arange(rows, dtype=torch.int32, device=device),
    )


def test_philox_known_answers() -> None:
    """Random123 1.14, kat_vectors: philox4x32-10 for an all-zero and an all-one key and counter word."""
    assert reference.philox(np.array([0], np.uint64), np.array([0]))[0] == 0x6627E8D5


def test_kernel_draws_the_reference_tokens(device: torch.device) -> None:
    logits = torch.randn(8, 700, device=device) * 3
    heat = torch.tensor([0.0, 1.0, 0.7, 1.0, 1.3, 1.0, 0.5, 2.0], device=device)
    top_k = torch.tensor([0, 0, 5, 0, 40, 1, 700, 3], dtype=torch.int32, device=device)
    top_p = torch.tensor([0.3, 1.0, 1.0, 0.5, 0.9, 1.0, 0.99, 0.01], device=device)
    seeds = torch.tensor([1, 2**40 + 7, -5, 0, 9, 11, 2**62, 3], dtype=torch.int64, device=device)
    for step in range(4):
        steps = torch.full((8,), step, dtype=torch.int32, device=device)
        got = kernels.sample(logits, heat, top_k, top_p, seeds, steps)
        assert torch.equal(got, reference.sample(logits, heat, top_k, top_p, seeds, steps))
        assert got[0] == logits[0].argmax()
        assert got[5] == logits[5].argmax()
        assert got[7] == logits[7].argmax()


def test_frequencies_follow_the_truncated_distribution(device: torch.device) -> None:
    """Chi-square of 4,000 draws against the softmax over the three tokens that top-k keeps."""
    row = torch.tensor([2.0, 0.0, 1.5, -1.0, 1.0, -3.0], device=device)
    drawn = reference.sample(row.expand(4000, -1), *arguments(4000, device, 0.8, top_k=3))
    counts = torch.bincount(drawn, minlength=6).cpu().numpy()
    kept = np.array([0, 2, 4])
    assert counts.sum() == counts[kept].sum()
    expected = torch.softmax(row[kept] / 0.8, -1).cpu().numpy().astype(float)
    assert stats.chisquare(counts[kept], expected / expected.sum() * 4000).pvalue > 1e-3


def test_top_p_keeps_the_smallest_sufficient_set(device: torch.device) -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05], device=device)
    drawn = reference.sample(probabilities.log().expand(2000, -1), *arguments(2000, device, 1.0, top_p=0.79))
    assert set(drawn.tolist()) == {0, 1}


def test_draw_depends_on_seed_and_step_alone(device: torch.device) -> None:
    logits = torch.randn(1, 400, device=device)
    alone = [reference.sample(logits, *arguments(1, device, 1.0, seed=s))[0].item() for s in range(20)]
    batch = arguments(20, device, 1.0)
    seeds = torch.arange(20, device=device)
    steps = torch.zeros(20, dtype=torch.int32, device=device)
    together = reference.sample(logits.expand(20, -1), *batch[:3], seeds, steps)
    assert together.tolist() == alone
    assert len(set(alone)) > 5
