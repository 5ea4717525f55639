"""One engine: schedule -> run -> postprocess, over one model and one paged cache."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from runtime import models, weights
from runtime.backend import Load, run_requests
from runtime.block_manager import BlockManager
from runtime.cache import SequenceInput
from runtime.config.spec import CompressedAttention, ModelConfig
from runtime.config.storage import cache_dtypes
from runtime.executor import Executor, LocalExecutor, PoolSizes, StepPlan, StepResult
from runtime.handover import Handover
from runtime.layers.ranks import Ranks
from runtime.logit_changes import change_of
from runtime.scheduler import Chunk, ScheduledStep, Scheduler, SchedulerConfig
from runtime.sequence import (
    FinishReason,
    Request,
    RequestError,
    RequestOutput,
    SamplingParams,
    SettingError,
    TokenEvent,
    failed,
    validate_request,
)
from runtime.sequence import Sequence as TokenSequence

MAX_STEP_RECORDS = 1_000_000  # kept, the newest (assumed)


@dataclass(frozen=True)
class EngineConfig:
    """num_blocks, block_size: KV pool.  num_snapshots: spare slots for resumable state (V4).
    max_model_len: longest prompt and output together; 0 takes what the model allows.
    kv_cache_dtype, index_dtype: see runtime.config.storage. draft_tokens: guessed by the MTP layer for each step, and
    checked in the next: the same tokens in fewer steps.
    Sizes are assumed: what a scaled-down model needs on a laptop.
    """

    num_blocks: int = 256
    block_size: int = 128
    num_snapshots: int = 16
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 1024
    max_model_len: int = 0
    prefix_caching: bool = True
    kv_cache_dtype: str = "auto"
    index_dtype: str = "auto"
    draft_tokens: int = 0

    @property
    def num_slots(self) -> int:
        return self.max_num_seqs + self.num_snapshots


@dataclass(frozen=True)
class ModelSource:
    """Which weights a model takes: a checkpoint's, or random ones from `seed`."""

    config: ModelConfig
    weights_directory: Path | None = None
    seed: int = 0
    dtype: torch.dtype = torch.float32
    dequantize: bool = False


def build_executor(source: ModelSource, config: EngineConfig, device: str, ranks: Ranks | None = None) -> LocalExecutor:
    """A model on one device, whole or one rank's share, with its cache."""
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    directory = source.weights_directory
    if directory is None:
        model = models.build(source.config, source.seed, device, source.dtype, ranks)
    else:
        model = weights.load(source.config, directory, device, source.dtype, source.dequantize, ranks)
    stored = cache_dtypes(config.kv_cache_dtype, config.index_dtype, source.config, directory)
    return LocalExecutor(
        model, source.config, PoolSizes(config.num_blocks, config.num_slots, config.block_size, stored)
    )


def longest(model_config: ModelConfig, config: EngineConfig) -> int:
    """Most tokens of one request."""
    if config.max_model_len > model_config.max_position_embeddings:
        raise SettingError(
            f"max_model_len={config.max_model_len} exceeds the model's "
            f"{model_config.max_position_embeddings} positions; use at most that"
        )
    return config.max_model_len or model_config.max_position_embeddings


@dataclass(frozen=True)
class StepRecord:
    """One step as it happened, for calibration.

    duration_s: model and sampling.  setup_s: scheduling, slot copies and imports before it.
    prefills: (new, past) tokens of each prompt chunk.  decode_contexts: tokens each decode attends to.
    num_drafts, num_accepted: decodes that checked a draft token, and those whose draft held.
    """

    start_s: float
    duration_s: float
    setup_s: float
    prefills: tuple[tuple[int, int], ...]
    decode_contexts: tuple[int, ...]
    num_imported: int
    num_drafts: int = 0
    num_accepted: int = 0


Importer = Callable[[Executor, Sequence[int], int], int]
"""Fills blocks and a slot; returns the bytes moved."""


@dataclass(frozen=True)
class PendingStep:
    """A step between scheduling and its end. plan: None if nothing can run."""

    events: list[TokenEvent]
    step: ScheduledStep
    plan: StepPlan | None
    begin_s: float
    start_s: float


def _guess(chunk: Chunk) -> tuple[int, ...]:
    return () if chunk.draft is None else (chunk.draft,)


def _following(chunk: Chunk) -> int:
    """The token after a chunk of a prompt; -1 where the step itself will say."""
    return -1 if chunk.samples else chunk.sequence.token_ids[chunk.past + chunk.new]


class Engine:
    def __init__(self, executor: Executor, model_config: ModelConfig, config: EngineConfig) -> None:
        scheduler_config = SchedulerConfig(config.max_num_seqs, config.max_num_batched_tokens)
        if config.draft_tokens not in (0, model_config.num_mtp_layers and 1):
            raise SettingError(
                f"draft_tokens={config.draft_tokens} is not possible: this model has {model_config.num_mtp_layers} MTP "
                "layers, each good for one; use 0"
            )
        self.config, self.executor = config, executor
        self.num_drafts = self.num_accepted = 0
        self.device = executor.device
        has_state = isinstance(model_config.attention, CompressedAttention)
        self.blocks = BlockManager(
            config.num_blocks,
            config.block_size,
            config.num_slots if has_state else 0,
            config.prefix_caching,
        )
        self.scheduler = Scheduler(scheduler_config, self.blocks)
        self.vocab_size = model_config.vocab_size
        self.eos_token_ids = model_config.eos_token_ids
        self.capacity_tokens = config.num_blocks * config.block_size
        self.max_model_len = longest(model_config, config)
        self.step_records: deque[StepRecord] = deque(maxlen=MAX_STEP_RECORDS)
        self.blocked = True  # the last step found nothing that it could run
        self._sequences: dict[str, TokenSequence] = {}
        self._importers: dict[str, Importer] = {}

    @classmethod
    def build(
        cls,
        model_config: ModelConfig,
        config: EngineConfig,
        *,
        weights_directory: Path | None = None,
        seed: int = 0,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        dequantize: bool = False,
    ) -> Engine:
        """Weights from a checkpoint, or random ones from `seed`."""
        source = ModelSource(model_config, weights_directory, seed, dtype, dequantize)
        return cls(build_executor(source, config, device), model_config, config)

    @property
    def exports_aside(self) -> bool:
        return self.executor.exports_aside

    @property
    def problem(self) -> str | None:
        return None

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def add_request(self, request: Request, *, prefill_only: bool = False, importer: Importer | None = None) -> None:
        """Queue a request.

        prefill_only: after the first token the sequence keeps its blocks until `abort`.
        importer: all but the newest of the request's tokens have cache entries elsewhere, brought in by this.
        """
        if request.request_id in self._sequences:
            raise RequestError(f"request id {request.request_id!r} is already in use; choose another")
        validate_request(
            request,
            vocab_size=self.vocab_size,
            max_model_len=self.max_model_len,
            capacity_tokens=self.capacity_tokens,
        )
        sequence = TokenSequence(request, self.blocks.block_size, prefill_only)
        if importer is not None:
            sequence.num_imported = len(sequence) - 1
            self._importers[request.request_id] = importer
        self._sequences[request.request_id] = sequence
        self.scheduler.add(sequence)

    def abort(self, request_id: str) -> None:
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self._forget(sequence)

    def step(self, timeout_s: float = 0.0) -> list[TokenEvent]:
        """Run one step. Never waits: nothing comes from elsewhere."""
        pending = self.begin_step()
        if pending.plan is None:
            return pending.events
        return self.finish_step(pending, self.executor.run(pending.plan))

    def begin_step(self) -> PendingStep:
        """Schedule, and do what must be done before the model runs."""
        begin_s = time.monotonic()
        step = self.scheduler.schedule()
        self.blocked = not step.chunks
        if self.blocked:
            assert self.scheduler.held or not self.has_work, "work is waiting, but nothing can run"
            return PendingStep([], step, None, begin_s, begin_s)
        events = self._prepare(step)
        plan = self._plan(step) if step.chunks else None
        return PendingStep(events, step, plan, begin_s, time.monotonic())

    def finish_step(self, pending: PendingStep, result: StepResult) -> list[TokenEvent]:
        """Account for a step that has run."""
        end_s = time.monotonic()
        step = pending.step
        said = dict(zip((id(chunk) for chunk in step.chunks if chunk.samples), result.tokens, strict=True))
        step.rejected = {
            chunk.sequence.request_id for chunk in step.chunks if chunk.draft is not None and len(said[id(chunk)]) == 1
        }
        self._record(step, pending.begin_s, pending.start_s, end_s)
        sequences = [chunk.sequence for chunk in step.chunks if chunk.samples]
        ends = [self._append(s, tokens, end_s) for s, tokens in zip(sequences, result.tokens, strict=True)]
        self.executor.apply(self.scheduler.complete(step))
        drafts = result.drafts or (None,) * len(sequences)
        events = pending.events
        for sequence, (news, reason), draft in zip(sequences, ends, drafts, strict=True):
            events += self._settle(sequence, news, reason, end_s)
            if reason is None and sequence.num_output + 2 <= sequence.sampling.max_tokens:
                sequence.draft = None if sequence.sampling.changes_logits else draft
        return events

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: SamplingParams | Sequence[SamplingParams]
    ) -> list[RequestOutput]:
        """Serve prompts given as token ids, one output each in order."""
        each = [sampling] * len(prompts) if isinstance(sampling, SamplingParams) else sampling
        now = time.monotonic()
        return run_requests(
            self,
            [Request(f"generate-{i}", tuple(p), s, now) for i, (p, s) in enumerate(zip(prompts, each, strict=True))],
        )

    def write_out(self, request_id: str, segment: str) -> Handover:
        """Cache contents of a held sequence, into shared memory for another engine's importer."""
        sequence = self.scheduler.held[request_id]
        return self.executor.write_out(segment, self._computed_blocks(sequence), sequence.slot or 0)

    def held(self, request_id: str) -> TokenSequence | None:
        """A sequence that waits for its hand-over."""
        return self.scheduler.held.get(request_id)

    def load(self) -> Load:
        """What is inside now, for whoever watches."""
        used = self.blocks.num_blocks - self.blocks.num_free_blocks
        running = len(self.scheduler.running) + len(self.scheduler.held)
        return Load(
            running, len(self.scheduler.waiting), used / self.blocks.num_blocks, self.num_drafts, self.num_accepted
        )

    @property
    def load_tokens(self) -> int:
        """Tokens of all requests inside."""
        return sum(len(sequence) for sequence in self._sequences.values())

    def close(self) -> None:
        for sequence in list(self._sequences.values()):
            self._forget(sequence)
        self.blocks.check_idle()
        self.executor.close()

    def _prepare(self, step: ScheduledStep) -> list[TokenEvent]:
        """Slot operations and imports before a step; a failed import ends its request alone."""
        self.executor.apply(step.slot_ops)
        events = []
        for sequence in step.imports:
            begin_s = time.monotonic()
            importer = self._importers.pop(sequence.request_id)
            try:
                moved = importer(self.executor, self._computed_blocks(sequence), sequence.slot or 0)
            except OSError as error:
                step.drop(sequence)
                self._forget(sequence)
                events.append(failed(sequence.request, f"hand-over failed: {error}", time.monotonic(), sequence.timing))
                continue
            sequence.timing.transfer_bytes = moved
            sequence.timing.import_s = time.monotonic() - begin_s
        return events

    def _plan(self, step: ScheduledStep) -> StepPlan:
        inputs = tuple(
            SequenceInput(
                (*chunk.sequence.token_ids[chunk.past : chunk.past + chunk.new], *_guess(chunk)),
                chunk.past,
                tuple(chunk.sequence.block_ids[: self.blocks.blocks_for(chunk.past + chunk.new)]),
                chunk.sequence.slot or 0,
            )
            for chunk in step.chunks
        )
        rows = tuple(row for row, chunk in enumerate(step.chunks) if chunk.samples)
        sequences = [step.chunks[row].sequence for row in rows]
        changes = tuple(change_of(sequence, self.eos_token_ids) for sequence in sequences)
        return StepPlan(
            inputs,
            rows,
            tuple(s.sampling for s in sequences),
            tuple(s.num_output for s in sequences),
            changes if any(change is not None for change in changes) else (),
            tuple(step.chunks[row].draft for row in rows),
            None,
            tuple(_following(chunk) for chunk in step.chunks) if self.config.draft_tokens else (),
        )

    def _append(
        self, sequence: TokenSequence, tokens: Sequence[int], now_s: float
    ) -> tuple[list[int], FinishReason | None]:
        """Give a sequence its new tokens until one ends it; those, and why it ends."""
        news = []
        for token in tokens:
            sequence.token_ids.append(token)
            sequence.timing.token_times_s.append(now_s)
            news.append(token)
            reason = sequence.finish_reason_after(self.eos_token_ids)
            if reason is not None:
                return news, reason
        return news, None

    def _settle(
        self, sequence: TokenSequence, news: list[int], reason: FinishReason | None, now_s: float
    ) -> list[TokenEvent]:
        """The events of new tokens; a sequence that has ended is forgotten, one that was only to be prefilled held."""
        output = None
        if reason is not None:
            output = sequence.output(reason)
            self._forget(sequence)
        elif sequence.prefill_only:
            self.scheduler.hold(sequence)
        *first, last = news
        events = [TokenEvent(sequence.request_id, token, now_s) for token in first]
        return [*events, TokenEvent(sequence.request_id, last, now_s, output)]

    def _record(self, step: ScheduledStep, begin_s: float, start_s: float, end_s: float) -> None:
        for chunk in step.chunks:
            if chunk.sequence.timing.scheduled_s is None:
                chunk.sequence.timing.scheduled_s = start_s
        drafted = sum(chunk.draft is not None for chunk in step.chunks)
        self.num_drafts += drafted
        self.num_accepted += drafted - len(step.rejected)
        self.step_records.append(
            StepRecord(
                start_s,
                end_s - start_s,
                start_s - begin_s,
                tuple((chunk.new, chunk.past) for chunk in step.chunks if not chunk.is_decode),
                tuple(chunk.past + 1 for chunk in step.chunks if chunk.is_decode),
                len(step.imports),
                drafted,
                drafted - len(step.rejected),
            )
        )

    def _computed_blocks(self, sequence: TokenSequence) -> list[int]:
        """Blocks with contents; a block for the newest token alone is not among them."""
        return sequence.block_ids[: self.blocks.blocks_for(sequence.num_computed)]

    def _forget(self, sequence: TokenSequence) -> None:
        self.scheduler.finish(sequence)
        self._importers.pop(sequence.request_id, None)
        del self._sequences[sequence.request_id]
