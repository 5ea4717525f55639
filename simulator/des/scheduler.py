"""Which prompts and sequences one instance works on: admission, the chunks of a step, preemption.

What a step holds is the batching policy, in the order of the waiting queue in each:
  chunked: decodes every running sequence and fills what is left of each rank's token budget with prompt chunks
    (vLLM V1).
  prefill_first: while there are prompts, steps hold prompt chunks alone and running sequences wait (SGLang).
  inflight: as chunked, but prompts are computed whole; one longer than the budget is the only prompt of its rank's
    step (TensorRT-LLM without chunked context).
Where KV grows beyond a rank's room, the newest sequence is preempted: its KV
is dropped and recomputed, on the same instance, before newcomers are admitted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from simulator.des.batching import Prefilling, Rank, RunningBatch
from simulator.des.journal import Journal
from simulator.des.paced_batch import PacedBatch
from simulator.des.pricing import Part
from simulator.des.spec import InstanceSpec


class WaitingQueue(Protocol):
    """Prompts to compute, the next one at index 0; a deque is first come first served."""

    def append(self, request: int, /) -> None: ...
    def popleft(self) -> int: ...
    def __getitem__(self, index: int, /) -> int: ...
    def __len__(self) -> int: ...


class Scheduler:
    """Prompts and sequences of one instance.

    waiting: prompts to compute; may be shared with the other instances of the pool.
    begin: called with each prompt as it is admitted, before its first chunk is cut.
    """

    def __init__(
        self,
        spec: InstanceSpec,
        journal: Journal,
        waiting: WaitingQueue,
        begin: Callable[[Prefilling], None],
    ) -> None:
        self.spec = spec
        self.journal = journal
        rates = spec.rates
        self.batch = (
            RunningBatch(spec.kv, spec.ranks, spec.times.caps, rates[0])
            if len(rates) == 1
            else PacedBatch(spec.kv, spec.ranks, spec.times.caps, rates, journal.pace)
        )
        self.waiting = waiting
        self.recompute: deque[int] = deque()  # preempted sequences; they go before `waiting`
        self.admits = True  # whether newcomers are taken from `waiting`
        self.sequences = 0  # in prefill, in transfer to the instance or running
        self.prefilling = 0
        self.mixes = spec.batching != "prefill_first"
        self._whole = spec.batching == "inflight"
        self._begin = begin

    def parts(self) -> list[Part]:
        """The prompt chunks of the next step: prompts under way first, then newcomers while budget and room last."""
        spec = self.spec
        per_sequence = 1 + spec.draft_tokens
        parts: list[Part] = []
        budgets = []
        for rank in self.batch.ranks:
            left = spec.max_tokens_per_step
            if self.mixes:
                left -= rank.size * per_sequence
            for prompt in rank.prefilling:
                if left <= 0:
                    break
                new = min(left, prompt.tokens - prompt.done)
                parts.append((rank, prompt, new))
                left -= new
            budgets.append(left)
        queues: tuple[WaitingQueue, ...] = (self.recompute, self.waiting) if self.admits else (self.recompute,)
        for queue in queues:
            while queue:
                if self.sequences >= spec.max_sequences:
                    return parts
                request = queue[0]
                tokens = self.journal.prompt_tokens[request] + self.journal.emitted[request]
                rank_or_none = self._rank_for(tokens + 1, budgets)
                if rank_or_none is None:
                    return parts
                rank = rank_or_none
                if self._whole:
                    if budgets[rank.index] < tokens and rank.prefilling:
                        return parts
                    budgets[rank.index] = max(budgets[rank.index], tokens)
                queue.popleft()
                prompt = self._admit(request, rank, tokens)
                new = min(budgets[rank.index], tokens - prompt.done)
                budgets[rank.index] -= new
                parts.append((rank, prompt, new))
        return parts

    def _rank_for(self, tokens: int, budgets: list[int]) -> Rank | None:
        """The rank with most of its budget left, then fewest sequences, among those with room for `tokens`."""
        tick = self.batch.tick
        found: Rank | None = None
        best = (0, 0)
        for rank in self.batch.ranks:
            left = budgets[rank.index]
            key = (left, -rank.size - rank.held_sequences)
            if left > 0 and (found is None or key > best) and rank.admits(tokens, tick):
                found, best = rank, key
        return found

    def _admit(self, request: int, rank: Rank, tokens: int) -> Prefilling:
        prompt = Prefilling(request, tokens)
        rank.prefilling.append(prompt)
        rank.hold(tokens + 1)
        self.sequences += 1
        self.prefilling += 1
        self._begin(prompt)
        return prompt

    def computed(self, rank: Rank, prompt: Prefilling, new: int) -> bool:
        """Book a computed chunk; whether it was the prompt's last. The prompt's KV is still held then."""
        prompt.done += new
        if prompt.done < prompt.tokens:
            return False
        finished = rank.prefilling.popleft()
        assert finished is prompt
        self.prefilling -= 1
        return True

    def reserve(self, tokens: int) -> Rank | None:
        """Hold room for a prefilled sequence on the rank with fewest of them; None where there is no room."""
        if self.recompute or self.sequences >= self.spec.max_sequences:
            return None
        tick = self.batch.tick
        ranks = self.batch.ranks
        rank = ranks[0]
        if len(ranks) == 1:
            if not rank.admits(tokens, tick):
                return None
        else:
            open_ranks = [rank for rank in ranks if rank.admits(tokens, tick)]
            if not open_ranks:
                return None
            rank = min(open_ranks, key=lambda r: (r.size + r.held_sequences, r.used_bytes(tick)))
        rank.hold(tokens)
        self.sequences += 1
        return rank

    def settle(self) -> float:
        """Preempt where KV has outgrown a rank; what is held then, over all ranks. [B of one accelerator]"""
        held = 0.0
        tick = self.batch.tick
        kv = self.spec.kv
        for rank in self.batch.ranks:
            # as Rank.used_bytes, without its calls: this runs once a step
            used = (rank.size + rank.held_sequences) * kv.bytes_per_sequence + (
                rank.offsets + rank.size * tick + rank.held_tokens
            ) * kv.bytes_per_token
            while used > kv.capacity_bytes:
                self._preempt(rank)
                used = rank.used_bytes(tick)
            held += used
        return held

    def _preempt(self, rank: Rank) -> None:
        """Drop the newest sequence of a rank, prompts under way first; it is recomputed from its start."""
        journal = self.journal
        if rank.prefilling:
            prompt = rank.prefilling.pop()
            rank.release(prompt.tokens + 1)
            self.prefilling -= 1
            request = prompt.request
        else:
            request, remaining = self.batch.preempt(rank)
            journal.emitted[request] = journal.output_tokens[request] - remaining
        self.sequences -= 1
        journal.preemptions[request] += 1
        self.recompute.appendleft(request)

    def drop(self) -> list[int]:
        """Forget all but the waiting queue; returns the requests that were under way, by number.

        What a sequence has emitted is booked. All ranks are new: what still points to an old one finds nothing.
        """
        journal = self.journal
        lost = [prompt.request for rank in self.batch.ranks for prompt in rank.prefilling]
        for request, remaining in self.batch.drop():
            journal.emitted[request] = journal.output_tokens[request] - remaining
            lost.append(request)
        lost += self.recompute
        self.recompute.clear()
        self.sequences = self.prefilling = 0
        return sorted(lost)

    @property
    def is_idle(self) -> bool:
        """No request under way and no KV left."""
        return (
            not self.recompute
            and self.sequences == self.prefilling == self.batch.size == 0
            and all(rank.held_sequences == rank.held_tokens == rank.offsets == 0 for rank in self.batch.ranks)
        )
