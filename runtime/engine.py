"""One engine: schedule -> run -> postprocess, over one model and one paged cache."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from runtime import models, weights
from runtime.backend import run_requests
from runtime.block_manager import BlockManager, SlotCopy, SlotOp, SlotReset
from runtime.cache import KVCache, SequenceInput
from runtime.config.spec import ModelConfig
from runtime.model_runner import ModelRunner
from runtime.sampler import sample_tokens
from runtime.scheduler import ScheduledStep, Scheduler, SchedulerConfig
from runtime.sequence import (
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
    Sizes are assumed: what a scaled-down model needs on a laptop.
    """

    num_blocks: int = 256
    block_size: int = 128
    num_snapshots: int = 16
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 1024
    max_model_len: int = 0
    prefix_caching: bool = True


@dataclass(frozen=True)
class StepRecord:
    """One step as it happened, for calibration.

    duration_s: model and sampling.  setup_s: scheduling, slot copies and imports before it.
    prefills: (new, past) tokens of each prompt chunk.  decode_contexts: tokens each decode attends to.
    """

    start_s: float
    duration_s: float
    setup_s: float
    prefills: tuple[tuple[int, int], ...]
    decode_contexts: tuple[int, ...]
    num_imported: int


Importer = Callable[[KVCache, Sequence[int], int], int]
"""Fills blocks and a slot of a cache; returns the bytes moved."""


class Engine:
    def __init__(self, model: models.Model, model_config: ModelConfig, config: EngineConfig) -> None:
        parameter = next(model.parameters())
        scheduler_config = SchedulerConfig(config.max_num_seqs, config.max_num_batched_tokens)
        num_slots = config.max_num_seqs + config.num_snapshots
        self.config = config
        self.device = parameter.device
        self.cache = KVCache(
            model_config, config.num_blocks, num_slots, config.block_size, parameter.device, parameter.dtype
        )
        self.blocks = BlockManager(
            config.num_blocks,
            config.block_size,
            num_slots if self.cache.has_state else 0,
            config.prefix_caching,
        )
        self.scheduler = Scheduler(scheduler_config, self.blocks)
        self.runner = ModelRunner(model, self.cache)
        self.vocab_size = model_config.vocab_size
        self.eos_token_ids = model_config.eos_token_ids
        self.capacity_tokens = config.num_blocks * config.block_size
        if config.max_model_len > model_config.max_position_embeddings:
            raise SettingError(
                f"max_model_len={config.max_model_len} exceeds the model's "
                f"{model_config.max_position_embeddings} positions; use at most that"
            )
        self.max_model_len = config.max_model_len or model_config.max_position_embeddings
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
    ) -> Engine:
        """Weights from a checkpoint, or random ones from `seed`."""
        if weights_directory is not None:
            model = weights.load(model_config, weights_directory, device=device, dtype=dtype)
        else:
            model = models.build(model_config, seed=seed, device=device, dtype=dtype)
        return cls(model, model_config, config)

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
        begin_s = time.monotonic()
        step = self.scheduler.schedule()
        self.blocked = not step.chunks
        if self.blocked:
            assert self.scheduler.held or not self.has_work, "work is waiting, but nothing can run"
            return []
        events = self._prepare(step)
        if not step.chunks:
            return events
        start_s = time.monotonic()
        tokens = self._run(step)
        end_s = time.monotonic()
        self._record(step, begin_s, start_s, end_s)
        self._apply(self.scheduler.complete(step))
        return events + self._postprocess(step, tokens, end_s)

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

    def export(self, request_id: str) -> list[torch.Tensor]:
        """Cache contents of a held sequence, for another engine's importer."""
        sequence = self.scheduler.held[request_id]
        return self.cache.export_blocks(self._computed_blocks(sequence), sequence.slot or 0)

    def close(self) -> None:
        for sequence in list(self._sequences.values()):
            self._forget(sequence)
        self.blocks.check_idle()

    def _prepare(self, step: ScheduledStep) -> list[TokenEvent]:
        """Slot operations and imports before a step; a failed import ends its request alone."""
        self._apply(step.slot_ops)
        events = []
        for sequence in step.imports:
            begin_s = time.monotonic()
            importer = self._importers.pop(sequence.request_id)
            try:
                moved = importer(self.cache, self._computed_blocks(sequence), sequence.slot or 0)
            except OSError as error:
                step.drop(sequence)
                self._forget(sequence)
                events.append(failed(sequence.request, f"hand-over failed: {error}", time.monotonic(), sequence.timing))
                continue
            sequence.timing.transfer_bytes = moved
            sequence.timing.import_s = time.monotonic() - begin_s
        return events

    def _run(self, step: ScheduledStep) -> list[int]:
        """Next token of each chunk that reaches the end of its sequence, in order of chunks."""
        inputs = [
            SequenceInput(
                tuple(chunk.sequence.token_ids[chunk.past : chunk.past + chunk.new]),
                chunk.past,
                tuple(chunk.sequence.block_ids[: self.blocks.blocks_for(chunk.past + chunk.new)]),
                chunk.sequence.slot or 0,
            )
            for chunk in step.chunks
        ]
        logits = self.runner.step(inputs)
        rows = [row for row, chunk in enumerate(step.chunks) if chunk.samples]
        if not rows:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            return []
        sequences = [step.chunks[row].sequence for row in rows]
        return sample_tokens(logits[rows], [s.sampling for s in sequences], [s.num_output for s in sequences])

    def _postprocess(self, step: ScheduledStep, tokens: list[int], now_s: float) -> list[TokenEvent]:
        events = []
        finished = [chunk.sequence for chunk in step.chunks if chunk.samples]
        for sequence, token in zip(finished, tokens, strict=True):
            sequence.token_ids.append(token)
            sequence.timing.token_times_s.append(now_s)
            reason = sequence.finish_reason_after(self.eos_token_ids)
            output = None
            if reason is not None:
                output = sequence.output(reason)
                self._forget(sequence)
            elif sequence.prefill_only:
                self.scheduler.hold(sequence)
            events.append(TokenEvent(sequence.request_id, token, now_s, output))
        return events

    def _record(self, step: ScheduledStep, begin_s: float, start_s: float, end_s: float) -> None:
        for chunk in step.chunks:
            if chunk.sequence.timing.scheduled_s is None:
                chunk.sequence.timing.scheduled_s = start_s
        self.step_records.append(
            StepRecord(
                start_s,
                end_s - start_s,
                start_s - begin_s,
                tuple((chunk.new, chunk.past) for chunk in step.chunks if not chunk.is_decode),
                tuple(chunk.past + 1 for chunk in step.chunks if chunk.is_decode),
                len(step.imports),
            )
        )

    def _computed_blocks(self, sequence: TokenSequence) -> list[int]:
        """Blocks with contents; a block for the newest token alone is not among them."""
        return sequence.block_ids[: self.blocks.blocks_for(sequence.num_computed)]

    def _apply(self, ops: list[SlotOp]) -> None:
        for op in ops:
            if isinstance(op, SlotReset):
                self.cache.reset_slot(op.slot)
            elif isinstance(op, SlotCopy):
                self.cache.copy_slot(op.source, op.target)

    def _forget(self, sequence: TokenSequence) -> None:
        self.scheduler.finish(sequence)
        self._importers.pop(sequence.request_id, None)
        del self._sequences[sequence.request_id]
