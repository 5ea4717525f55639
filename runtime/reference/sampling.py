"""Token sampling with a random stream that depends on (seed, step) alone: same tokens on any device and
batch.
"""

import numpy as np
import torch
from torch import Tensor

# Philox4x32-10, its constants and rounds: Salmon et al., "Parallel Random Numbers", SC 2011.
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)  # the low 32 bits


def philox(seed: np.ndarray, counter: np.ndarray) -> np.ndarray:
    """First word of Philox4x32-10 with a 64-bit key `seed` and a 32-bit counter; uint32 values in uint64."""
    c0, c1, c2, c3 = counter.astype(np.uint64) & _LOW, *(np.zeros(counter.shape, np.uint64) for _ in range(3))
    k0, k1 = seed.astype(np.uint64) & _LOW, seed.astype(np.uint64) >> np.uint64(32)
    for _ in range(_ROUNDS):
        first, second = np.uint64(_MULTIPLIERS[0]) * c0, np.uint64(_MULTIPLIERS[1]) * c2
        c0, c1, c2, c3 = (
            (second >> np.uint64(32)) ^ c1 ^ k0,
            second & _LOW,
            (first >> np.uint64(32)) ^ c3 ^ k1,
            first & _LOW,
        )
        k0, k1 = (k0 + np.uint64(_WEYL[0])) & _LOW, (k1 + np.uint64(_WEYL[1])) & _LOW
    return c0


def uniform(seeds: Tensor, steps: Tensor) -> Tensor:
    """One float32 in (0, 1) for each (seed, step): 23 random bits, centred in their cell, so never 0 or 1."""
    bits = philox(seeds.cpu().numpy().view(np.uint64), steps.cpu().numpy().astype(np.uint64))
    values = ((bits >> np.uint64(9)).astype(np.float64) + 0.5) / 2.0**23
    return torch.from_numpy(values.astype(np.float32)).to(seeds.device)


def sample(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, seeds: Tensor, steps: Tensor) -> Tensor:
    """One token a row: greedy where temperature is 0, else from the tempered, truncated distribution.

    logits: [B, V]; temperature, top_p: [B] float32; top_k: [B] int32 (0: off); seeds: [B] int64; steps: [B]
    int32 (the index of the token within its request). Returns [B] int64.
    Kept by top-k: probability >= the k-th largest. Kept by top-p: probability mass strictly above the token,
    among those kept by top-k and renormalised, is < top_p. Equal probabilities are kept or dropped together.
    The draw inverts the cumulative sum in vocabulary order.
    """
    rows, vocab = logits.shape
    greedy = logits.float().argmax(-1)
    tempered = logits.float() / torch.where(temperature > 0, temperature, 1.0)[:, None]
    weight = torch.exp(tempered - tempered.amax(-1, keepdim=True))
    descending = weight.sort(-1, descending=True).values
    kth = torch.where((top_k > 0) & (top_k < vocab), top_k, vocab).long()
    weight = torch.where(weight >= descending.gather(1, kth[:, None] - 1), weight, 0.0)
    descending = weight.sort(-1, descending=True).values.double()
    cumulative = descending.cumsum(-1)
    # First position of each run of equal weights: the mass strictly above is the cumulative sum before the
    # run.
    above = torch.searchsorted(-descending, -weight.double())
    mass_above = torch.nn.functional.pad(cumulative, (1, 0)).gather(1, above)
    weight = torch.where(mass_above < top_p.double()[:, None] * cumulative[:, -1:], weight, 0.0)
    running = weight.double().cumsum(-1)
    target = uniform(seeds, steps).double()[:, None] * running[:, -1:]
    drawn = torch.searchsorted(running, target, right=True).clamp_max(vocab - 1).view(rows)
    return torch.where(temperature > 0, drawn, greedy)
