"""From logits to the next token of each sequence.

A draw depends on (seed, index of the token) alone, so batch composition, preemption and a change of worker
leave a request's random stream as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from runtime import ops
from runtime.sequence import SamplingParams


def sample_tokens(logits: torch.Tensor, params: Sequence[SamplingParams], positions: Sequence[int]) -> list[int]:
    """logits: [B, vocab] float32; positions: index of the wanted token within each request's output."""
    if all(p.temperature == 0 for p in params):
        return logits.argmax(-1).tolist()
    device = logits.device
    tokens = ops.sample(
        logits,
        torch.tensor([p.temperature for p in params], dtype=torch.float32, device=device),
        torch.tensor([p.top_k for p in params], dtype=torch.int32, device=device),
        torch.tensor([p.top_p for p in params], dtype=torch.float32, device=device),
        torch.tensor([p.seed for p in params], dtype=torch.int64, device=device),
        torch.tensor(positions, dtype=torch.int32, device=device),
    )
    return tokens.tolist()
