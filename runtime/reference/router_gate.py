"""Router gate: expert scores to the chosen experts and their weights."""

import torch
from torch import Tensor

TINY = 1e-20  # keeps weights finite where all scores are zero
SCORING = ("softmax", "sigmoid", "sqrtsoftplus")


def scores_of(logits: Tensor, scoring: str) -> Tensor:
    """Elementwise (softmax: row-wise) score in float32."""
    if scoring == "softmax":
        return torch.softmax(logits.float(), -1)
    if scoring == "sigmoid":
        return torch.sigmoid(logits.float())
    if scoring == "sqrtsoftplus":
        return torch.sqrt(torch.nn.functional.softplus(logits.float()))
    raise ValueError(f"scoring={scoring!r} is not known; use one of {', '.join(SCORING)}")


def router_gate(
    logits: Tensor,
    top_k: int,
    scoring: str,
    bias: Tensor | None = None,
    normalize: bool = True,
    scale: float = 1.0,
    num_groups: int = 1,
    top_groups: int = 1,
    hash_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose top_k experts a token by score + bias; weigh them by score alone.

    logits: [T, E]; bias: [E]. With num_groups > 1 only the top_groups groups with the best sum of their two
    best biased scores compete (DeepSeek-V3, section 2.1.2). hash_ids [T, top_k], from the table of token ids
    of a hash-routed layer, replaces the choice but not the weights.
    Returns weights [T, top_k] float32 and expert ids [T, top_k] int32, best first; the lower id wins a tie.
    """
    scores = scores_of(logits, scoring)
    if hash_ids is not None:
        ids = hash_ids.long()
    else:
        choice = scores if bias is None else scores + bias.float()
        if num_groups > 1:
            grouped = choice.unflatten(-1, (num_groups, -1))
            group_score = grouped.topk(2, -1).values.sum(-1)
            best = torch.argsort(group_score, dim=-1, descending=True, stable=True)[:, :top_groups]
            keep = torch.zeros_like(group_score, dtype=torch.bool).scatter_(1, best, True)
            choice = grouped.masked_fill(~keep[..., None], float("-inf")).flatten(1)
        ids = torch.argsort(choice, dim=-1, descending=True, stable=True)[:, :top_k]
    weights = scores.gather(1, ids)
    if normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + TINY)
    return weights * scale, ids.int()
