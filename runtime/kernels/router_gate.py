"""Router gate: score, choose and weigh the experts of one token in one program."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.reference.router_gate import SCORING, TINY

_TINY = tl.constexpr(TINY)
_SOFTMAX, _SIGMOID = (tl.constexpr(SCORING.index(name)) for name in ("softmax", "sigmoid"))


@triton.jit
def log1p(x):
    """log(1 + x) for x >= 0 without losing small x (Goldberg, "What every computer scientist ...", theorem 4)."""
    one_more = 1.0 + x
    safe = tl.where(one_more == 1.0, 1.0, one_more - 1.0)
    return tl.where(one_more == 1.0, x, tl.log(one_more) * (x / safe))


@triton.jit
def _router_gate_kernel(
    logits,
    bias,
    hash_ids,
    weights,
    ids,
    num_experts,
    per_group,
    num_groups,
    row_stride,
    scale,
    TOP_K: tl.constexpr,
    SCORE: tl.constexpr,
    BIASED: tl.constexpr,
    HASHED: tl.constexpr,
    NORMALIZE: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
    LIMIT_GROUPS: tl.constexpr,
    GROUPS: tl.constexpr,
    MEMBERS: tl.constexpr,
    CHOICES: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    group, member = tl.arange(0, GROUPS), tl.arange(0, MEMBERS)
    inside = (group < num_groups)[:, None] & (member < per_group)[None, :]
    expert = group[:, None] * per_group + member[None, :]
    logit = tl.load(logits + token * row_stride + expert, mask=inside, other=float("-inf")).to(tl.float32)
    if SCORE == _SOFTMAX:
        score = tl.exp(logit - tl.max(tl.max(logit, 1), 0))
        score = score / tl.sum(tl.sum(score, 1), 0)
    elif SCORE == _SIGMOID:
        score = tl.sigmoid(logit)
    else:
        score = tl.sqrt(tl.maximum(logit, 0.0) + log1p(tl.exp(-tl.abs(logit))))
    score = tl.where(inside, score, 0.0)
    slot = tl.arange(0, CHOICES)
    chosen = tl.full((CHOICES,), 0.0, tl.float32)
    chosen_id = tl.full((CHOICES,), 0, tl.int32)
    choice = score
    if BIASED:
        choice += tl.load(bias + expert, mask=inside, other=0.0).to(tl.float32)
    choice = tl.where(inside, choice, float("-inf"))
    if LIMIT_GROUPS:
        best = tl.max(choice, 1)
        first = tl.argmax(choice, 1)
        second = tl.max(tl.where(member[None, :] == first[:, None], float("-inf"), choice), 1)
        rank = tl.where(group < num_groups, best + second, float("-inf"))
        kept = tl.zeros((GROUPS,), tl.int32)
        for _ in tl.static_range(TOP_GROUPS):
            winner = group == tl.argmax(rank, 0)
            kept = tl.where(winner, 1, kept)
            rank = tl.where(winner, float("-inf"), rank)
        choice = tl.where(kept[:, None] > 0, choice, float("-inf"))
    flat = tl.reshape(choice, (GROUPS * MEMBERS,))
    flat_score = tl.reshape(score, (GROUPS * MEMBERS,))
    flat_expert = tl.reshape(expert, (GROUPS * MEMBERS,))
    place = tl.arange(0, GROUPS * MEMBERS)
    for k in tl.static_range(TOP_K):
        if HASHED:
            found = flat_expert == tl.load(hash_ids + token * TOP_K + k).to(tl.int32)
            found = found & tl.reshape(inside, (GROUPS * MEMBERS,))
        else:
            found = place == tl.argmax(flat, 0)
            flat = tl.where(found, float("-inf"), flat)
        chosen = tl.where(slot == k, tl.sum(tl.where(found, flat_score, 0.0), 0), chosen)
        chosen_id = tl.where(slot == k, tl.sum(tl.where(found, flat_expert, 0), 0), chosen_id)
    if NORMALIZE:
        chosen = chosen / (tl.sum(chosen, 0) + _TINY)
    tl.store(weights + token * TOP_K + slot, chosen * scale, mask=slot < TOP_K)
    tl.store(ids + token * TOP_K + slot, chosen_id, mask=slot < TOP_K)


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
    """See runtime.reference.router_gate."""
    if scoring not in SCORING:
        raise ValueError(f"scoring={scoring!r} is not known; use one of {', '.join(SCORING)}")
    tokens, num_experts = logits.shape
    weights = torch.empty(tokens, top_k, dtype=torch.float32, device=logits.device)
    ids = torch.empty(tokens, top_k, dtype=torch.int32, device=logits.device)
    if tokens:
        per_group = num_experts // num_groups
        _router_gate_kernel[(tokens,)](
            logits,
            bias,
            None if hash_ids is None else hash_ids.contiguous(),
            weights,
            ids,
            num_experts,
            per_group,
            num_groups,
            logits.stride(0),
            scale,
            TOP_K=top_k,
            SCORE=SCORING.index(scoring),
            BIASED=bias is not None,
            HASHED=hash_ids is not None,
            NORMALIZE=normalize,
            TOP_GROUPS=top_groups,
            LIMIT_GROUPS=num_groups > 1,
            GROUPS=triton.next_power_of_2(num_groups),
            MEMBERS=triton.next_power_of_2(per_group),
            CHOICES=triton.next_power_of_2(top_k),
            num_warps=1,
        )
    return weights, ids
