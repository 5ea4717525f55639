"""What runs the steps that an engine has scheduled: a model and its cache in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from runtime import handover, models
from runtime.block_manager import SlotCopy, SlotOp, SlotReset
from runtime.cache import KVCache, SequenceInput
from runtime.config.spec import GroupedAttention, ModelConfig
from runtime.config.storage import CacheDtypes
from runtime.handover import Handover
from runtime.layers.attention_paged import kv_heads_of
from runtime.logit_changes import LogitChange, apply_changes
from runtime.model_runner import ModelRunner
from runtime.sampler import sample_tokens
from runtime.sequence import SamplingParams


@dataclass(frozen=True)
class StepPlan:
    """One step of one replica: its inputs, and how to draw the next token after some of them."""

    inputs: tuple[SequenceInput, ...]
    rows: tuple[int, ...]  # inputs that reach the end of their sequence
    sampling: tuple[SamplingParams, ...]  # of each of `rows`
    positions: tuple[int, ...]  # of the wanted token within its output
    changes: tuple[LogitChange | None, ...] = ()  # of the logits of each of `rows`; empty: of none
    guesses: tuple[int | None, ...] = ()  # of each of `rows`: the last token of its input, if that is to be checked
    expert_rows: int | None = None  # most tokens that a rank sends to experts, where that is few
    following: tuple[int, ...] = ()  # of each input: the token after it, -1: yet to be drawn; empty: no drafts


@dataclass(frozen=True)
class StepResult:
    """tokens: of each of the plan's rows: one, or two where the guess held. drafts: guesses at what follows those."""

    tokens: tuple[tuple[int, ...], ...]
    drafts: tuple[int, ...] = ()


IDLE = StepPlan((), (), (), ())


@dataclass(frozen=True)
class PoolSizes:
    num_blocks: int
    num_slots: int
    block_size: int
    stored: CacheDtypes


class Executor(Protocol):
    """The device side of one replica of a model."""

    device: torch.device
    exports_aside: bool  # whether `write_out` may run in another thread, beside a step

    def run(self, plan: StepPlan) -> StepResult:
        """Make the step; next tokens of `plan.rows`."""

    def apply(self, ops: Sequence[SlotOp]) -> None: ...

    def write_out(self, segment: str, block_ids: Sequence[int], slot: int) -> Handover:
        """Blocks and a slot into a new shared memory segment. Raises OSError where that is full."""

    def import_from(self, source: Handover, block_ids: Sequence[int], slot: int) -> int:
        """Fill blocks and a slot with what `write_out` of the same model wrote; bytes read. OSError if it is gone."""

    def close(self) -> None: ...


class LocalExecutor:
    """One rank. Where several share a replica, all of them must be given the same calls."""

    def __init__(self, model: models.Model, config: ModelConfig, sizes: PoolSizes) -> None:
        embedding = model.embed  # the one weight that is never kept quantised
        self._tensor, self._experts = model.ranks.tensor, model.ranks.experts
        self._attention = config.attention
        heads = kv_heads_of(config.attention, self._tensor) if isinstance(config.attention, GroupedAttention) else None
        self.cache = KVCache(
            config,
            sizes.num_blocks,
            sizes.num_slots,
            sizes.block_size,
            embedding.device,
            embedding.dtype,
            sizes.stored,
            heads,
        )
        self.runner = ModelRunner(model, self.cache)
        self.device = embedding.device
        self.exports_aside = self._tensor.size == 1

    def run(self, plan: StepPlan) -> StepResult:
        self._experts.step.most = plan.expert_rows
        guessed = [at for at, guess in enumerate(plan.guesses) if guess is not None]
        earlier = [plan.rows[at] for at in guessed]
        logits = self.runner.step(plan.inputs, earlier)
        if not plan.rows and not plan.following:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            return StepResult(())
        # Where a guess is checked, the row before it says whether it holds, and its own what follows if it does.
        places = [*plan.rows, *range(len(plan.inputs), len(plan.inputs) + len(earlier))]
        sampling = [*plan.sampling, *(plan.sampling[at] for at in guessed)]
        positions = [place + (plan.guesses[at] is not None) if plan.guesses else place
                     for at, place in enumerate(plan.positions)]  # fmt: skip
        positions += [plan.positions[at] for at in guessed]
        wanted = logits[places]
        if plan.changes:
            wanted = apply_changes(wanted, [*plan.changes, *(plan.changes[at] for at in guessed)])
        drawn = sample_tokens(wanted, sampling, positions) if places else []
        checked = dict(zip(guessed, drawn[len(plan.rows) :], strict=True))
        tokens: list[tuple[int, ...]] = []
        for at, token in enumerate(drawn[: len(plan.rows)]):
            if at not in checked:
                tokens.append((token,))
            else:
                tokens.append((checked[at], token) if checked[at] == plan.guesses[at] else (checked[at],))
        return StepResult(tuple(tokens), self._draft(plan, tokens, checked) if plan.following else ())

    def _draft(self, plan: StepPlan, tokens: list[tuple[int, ...]], checked: dict[int, int]) -> tuple[int, ...]:
        """A guess for each row of the plan, drawn as the model itself will draw: the same share of chance."""
        following = list(plan.following)
        corrected = {}
        for at, (row, said) in enumerate(zip(plan.rows, tokens, strict=True)):
            following[row] = said[-1]
            if at in checked and len(said) == 1:
                corrected[row] = said[0]
        logits = self.runner.draft(following, corrected)
        if not plan.rows:
            return ()
        positions = [place + len(said) for place, said in zip(plan.positions, tokens, strict=True)]
        return tuple(sample_tokens(logits[list(plan.rows)], plan.sampling, positions))

    def apply(self, ops: Sequence[SlotOp]) -> None:
        for op in ops:
            if isinstance(op, SlotReset):
                self.cache.reset_slot(op.slot)
            elif isinstance(op, SlotCopy):
                self.cache.copy_slot(op.source, op.target)

    def exported(self, block_ids: Sequence[int], slot: int) -> list[Tensor]:
        """Contents of blocks and a slot, KV heads of all ranks together."""
        tensors = self.cache.export_blocks(block_ids, slot)
        if self._tensor.size == 1 or not isinstance(self._attention, GroupedAttention):
            return tensors  # other attentions keep the same on every rank
        copies = max(1, self._tensor.size // self._attention.num_kv_heads)
        return [self._all_heads(tensor, copies) for tensor in tensors]

    def _all_heads(self, own: Tensor, copies: int) -> Tensor:
        parts = [torch.empty_like(own) for _ in range(self._tensor.size)]
        dist.all_gather(parts, own.contiguous(), group=self._tensor.group)
        return torch.cat(parts[::copies], dim=-2)

    def write_out(self, segment: str, block_ids: Sequence[int], slot: int) -> Handover:
        return self.written(segment, self.exported(block_ids, slot))

    @staticmethod
    def written(segment: str, tensors: Sequence[Tensor]) -> Handover:
        return handover.write(segment, tensors)

    def import_from(self, source: Handover, block_ids: Sequence[int], slot: int) -> int:
        with handover.opened(source) as tensors:
            self.cache.import_blocks(block_ids, slot, tensors)
        return source.num_bytes

    def close(self) -> None:
        """Nothing: memory goes with the object."""
