"""Routed experts spread over ranks: every rank has its own tokens, each token visits the ranks of its
experts.

Large steps send one copy of a token to each rank that holds any of its experts; that rank adds up its experts'
weighted outputs and returns one partial sum a copy: the host must learn the counts. Small steps, of at most
FEW_ROWS tokens a rank, send every token to every rank, so that all shapes are known beforehand and the host waits
for nothing. Over torch.distributed (gloo on CPU, nccl on GPU). All ranks must call every layer together, idle ones with
a dummy token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

ExpertFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


FEW_ROWS = 256  # tokens of a rank up to which sending all to all costs less than waiting for counts (assumed)


@dataclass
class StepRows:
    """Most tokens that any rank sends in the step under way, if all ranks know that they are few; else None."""

    most: int | None = None


@dataclass(frozen=True)
class ExpertGroup:
    """This rank's place among the ranks that share the experts; alone by default."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None  # None: the default group
    step: StepRows = field(default_factory=StepRows)

    def local(self, num_experts: int) -> range:
        """The experts this rank holds: a contiguous equal share."""
        if num_experts % self.size:
            raise ValueError(f"{self.size} ranks cannot share {num_experts} experts equally; use a divisor")
        share = num_experts // self.size
        return range(self.rank * share, (self.rank + 1) * share)


def _exchange(rows: Tensor, send: list[int], receive: list[int], group: ExpertGroup) -> Tensor:
    """Rows [sum(send), ...], grouped by destination, to rows [sum(receive), ...], grouped by source."""
    out = rows.new_empty(sum(receive), *rows.shape[1:])
    dist.all_to_all_single(out, rows.contiguous(), receive, send, group=group.group)
    return out


def parallel_experts(
    x: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    num_experts: int,
    group: ExpertGroup,
    run_local: ExpertFunction,
) -> Tensor:
    """Weighted sum of each token's experts, wherever they are.

    x: [T, H]; expert_ids: [T, K] int32 over all experts; weights: [T, K] float32.
    run_local(x, ids, weights): this rank's experts, with ids counted from its first and others dropped.
    """
    share = num_experts // group.size
    if group.step.most is not None:
        return _all_to_all(x, expert_ids, weights, share, group, group.step.most, run_local)
    owner = expert_ids // share  # [T, K]
    ranks = torch.arange(group.size, device=x.device)
    wanted = (owner[:, :, None] == ranks).any(1)  # [T, size]
    destination, token = wanted.T.nonzero(as_tuple=True)  # sorted by destination
    counts = torch.bincount(destination, minlength=group.size)
    arriving = torch.empty_like(counts)
    dist.all_to_all_single(arriving, counts, group=group.group)
    send, receive = counts.tolist(), arriving.tolist()
    local = torch.where(owner[token] == destination[:, None], expert_ids[token] % share, -1).int()
    got_x = _exchange(x[token], send, receive, group)
    got_ids = _exchange(local, send, receive, group)
    got_weights = _exchange(weights[token], send, receive, group)
    partial = run_local(got_x, got_ids, got_weights) if got_x.shape[0] else got_x
    returned = _exchange(partial, receive, send, group)
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    return out.index_add_(0, token, returned.float()).to(x.dtype)


def _all_to_all(
    x: Tensor, expert_ids: Tensor, weights: Tensor, share: int, group: ExpertGroup, rows: int, run_local: ExpertFunction
) -> Tensor:
    """As `parallel_experts`, each rank with `rows` rows, those beyond its tokens without experts."""

    def gathered(values: Tensor, filler: float) -> Tensor:
        own = values.new_full((rows, *values.shape[1:]), filler)
        own[: values.shape[0]] = values
        out = values.new_empty(group.size * rows, *values.shape[1:])
        dist.all_gather_into_tensor(out, own, group=group.group)
        return out

    local = gathered(expert_ids, -1) - group.rank * share
    local = torch.where((local >= 0) & (local < share), local, -1)
    partial = run_local(gathered(x, 0), local, gathered(weights, 0))
    returned = torch.empty_like(partial)
    dist.all_to_all_single(returned, partial.contiguous(), group=group.group)
    return returned.view(group.size, rows, -1).float().sum(0)[: x.shape[0]].to(x.dtype)
