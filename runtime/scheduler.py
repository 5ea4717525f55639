"""Which tokens of which sequences run in the next step. A state machine without clock, model or torch.

`schedule()` depends only on what was added, completed and removed before it, so a simulator that makes the
same calls gets the same batches.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from runtime.block_manager import NO_MATCH, BlockManager, SlotOp
from runtime.sequence import Sequence, SequenceStatus, SettingError


@dataclass(frozen=True)
class SchedulerConfig:
    """max_num_seqs: sequences in one step.  max_num_batched_tokens: new tokens in one step."""

    max_num_seqs: int
    max_num_batched_tokens: int

    def __post_init__(self) -> None:
        if self.max_num_seqs < 1:
            raise SettingError(f"max_num_seqs={self.max_num_seqs} admits nothing; use 1 or more")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise SettingError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} is below "
                f"max_num_seqs={self.max_num_seqs}, so not all of them could decode in one step; raise it"
            )


@dataclass(frozen=True)
class Chunk:
    """`new` tokens of a sequence, after `past` tokens that have cache entries."""

    sequence: Sequence
    past: int
    new: int
    is_decode: bool
    draft: int | None = None  # a guess that follows the newest token as one of `new`, to be checked

    @property
    def samples(self) -> bool:
        """The chunk reaches the newest token, so its logits give the next one."""
        return self.past + self.new >= len(self.sequence)


@dataclass
class ScheduledStep:
    """One step's work: run `imports` and `slot_ops` in order, then all chunks together."""

    chunks: list[Chunk] = field(default_factory=list)
    slot_ops: list[SlotOp] = field(default_factory=list)
    imports: list[Sequence] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)
    num_tokens: int = 0
    rejected: set[str] = field(default_factory=set)  # requests whose draft was wrong, known once the step has run

    def add(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        self.num_tokens += chunk.new

    def drop(self, sequence: Sequence) -> None:
        """Take a sequence out of the step before it runs."""
        self.chunks = [chunk for chunk in self.chunks if chunk.sequence is not sequence]


class Scheduler:
    """Continuous batching, first come first served.

    Decodes go first; what is left of the token budget goes to prompts, in chunks. When blocks run out, the
    sequence that came last loses its blocks and is computed again later. Blocks for a whole prompt are taken
    at admission, so only decodes can run out. A sequence waits behind every earlier one: `running` and
    `waiting` together are always in order of arrival.
    """

    def __init__(self, config: SchedulerConfig, blocks: BlockManager) -> None:
        self.config = config
        self.blocks = blocks
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.held: dict[str, Sequence] = {}

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def schedule(self) -> ScheduledStep:
        step = ScheduledStep()
        self._schedule_decodes(step)
        self._schedule_prefills(step)
        if not step.preempted:
            self._admit(step)
        return step

    def _schedule_decodes(self, step: ScheduledStep) -> None:
        decodes = [sequence for sequence in self.running if sequence.is_decode]
        for place, sequence in enumerate(decodes):
            if sequence.status is not SequenceStatus.RUNNING:
                continue
            while not self.blocks.append_block(sequence):
                victim = self.running[-1]
                self._preempt(victim, step)
                if victim is sequence:
                    break
            else:
                draft, sequence.draft = sequence.draft, None
                left = self.config.max_num_batched_tokens - step.num_tokens - (len(decodes) - place - 1)
                if draft is not None and (left < 2 or not self.blocks.append_block(sequence, ahead=1)):
                    draft = None  # no room to check it: later sequences come first
                new = 1 if draft is None else 2
                step.add(Chunk(sequence, sequence.num_computed, new, is_decode=True, draft=draft))

    def _schedule_prefills(self, step: ScheduledStep) -> None:
        for sequence in self.running:
            if not sequence.is_decode:
                self._schedule_chunk(sequence, step)

    def _admit(self, step: ScheduledStep) -> None:
        while (
            self.waiting
            and len(self.running) < self.config.max_num_seqs
            and step.num_tokens < self.config.max_num_batched_tokens
        ):
            sequence = self.waiting[0]
            match = NO_MATCH if sequence.num_imported else self.blocks.match(sequence)
            ops = self.blocks.allocate(sequence, match)
            if ops is None:
                return
            step.slot_ops.extend(ops)
            if sequence.num_preemptions:
                sequence.prefill_end = len(sequence)
            if sequence.num_imported:
                step.imports.append(sequence)
                sequence.num_computed, sequence.num_imported = sequence.num_imported, 0
            elif self.blocks.has_state and self.blocks.prefix_caching:
                # A later request with this prompt as its prefix resumes at the prompt's last block boundary.
                # Blocks known but not usable show a prefix that comes again: it deserves a snapshot as well.
                size = self.blocks.block_size
                ends = {match.known * size, len(sequence) // size * size}
                sequence.snapshot_ends = tuple(sorted(end for end in ends if end > sequence.num_computed))
            if sequence.num_preemptions == 0:
                sequence.num_cached = match.usable * self.blocks.block_size
            self.waiting.popleft()
            self.running.append(sequence)
            sequence.status = SequenceStatus.RUNNING
            self._schedule_chunk(sequence, step)

    def _schedule_chunk(self, sequence: Sequence, step: ScheduledStep) -> None:
        past, budget = sequence.num_computed, self.config.max_num_batched_tokens - step.num_tokens
        new = min(len(sequence) - past, budget)
        for end in sequence.snapshot_ends:
            if past < end < past + new:
                new = end - past
        if new > 0:
            step.add(Chunk(sequence, past, new, is_decode=sequence.is_decode))

    def _preempt(self, victim: Sequence, step: ScheduledStep) -> None:
        self.running.remove(victim)
        self.blocks.free(victim)
        victim.status = SequenceStatus.WAITING
        victim.num_preemptions += 1
        victim.draft = None
        self.waiting.appendleft(victim)
        step.preempted.append(victim)

    def complete(self, step: ScheduledStep) -> list[SlotOp]:
        """The step has run. The returned slot operations (snapshots) must run before the next step."""
        ops: list[SlotOp] = []
        for chunk in step.chunks:
            wrong = chunk.sequence.request_id in step.rejected
            ops += self.blocks.commit(chunk.sequence, chunk.past + chunk.new - wrong)
        return ops

    def hold(self, sequence: Sequence) -> None:
        """A prefilled sequence leaves the batch but keeps its blocks until `finish`."""
        self.running.remove(sequence)
        sequence.status = SequenceStatus.HELD
        self.held[sequence.request_id] = sequence

    def finish(self, sequence: Sequence) -> None:
        """Forget a sequence wherever it is, and take its blocks back."""
        if sequence.status is SequenceStatus.RUNNING:
            self.running.remove(sequence)
        elif sequence.status is SequenceStatus.WAITING:
            self.waiting.remove(sequence)
        elif sequence.status is SequenceStatus.HELD:
            del self.held[sequence.request_id]
        self.blocks.free(sequence)
        sequence.status = SequenceStatus.FINISHED
