"""Prefilled sequences that leave an instance: their KV waits here, or is under way from here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from simulator.des.instance.handover import Handover, KvSource, Streams
from simulator.des.instance.rank import PromptChunk, Rank
from simulator.des.records.request_log import RequestLog


class KvSender:
    """hand_over: called with each prefilled sequence that still has tokens to emit.
    streams: is told of hand-overs before their KV is whole; None where it leaves when it is.
    """

    def __init__(
        self, source: KvSource, log: RequestLog, hand_over: Callable[[Handover], None], streams: Streams | None
    ) -> None:
        self._source = source
        self._log = log
        self._hand_over = hand_over
        self.streams = streams
        self._announced: dict[int, Handover] = {}  # by request; in its last chunk
        self._leaving: dict[int, Handover] = {}  # by request; KV that waits here or is under way from here

    def __len__(self) -> int:
        """Sequences with KV that waits here or is under way from here."""
        return len(self._leaving)

    @property
    def is_empty(self) -> bool:
        return not (self._announced or self._leaving)

    def announce(self, chunks: Sequence[PromptChunk], ready_s: float) -> None:
        """Offer what a step completes by `ready_s`, so that KV can leave while it is computed."""
        assert self.streams is not None
        log = self._log
        for rank, prompt, new in chunks:
            request = prompt.request
            if prompt.done + new == prompt.tokens and log.output_tokens[request] - log.emitted[request] > 1:
                handover = self._announced[request] = Handover(request, self._source, rank, prompt.tokens + 1)
                self.streams.announce(handover, ready_s, new / prompt.tokens)
                self._hand_over(handover)

    def computed(self, request: int, rank: Rank, tokens: int) -> None:
        """A prompt is computed: its KV, of `tokens` with the one just emitted, waits on `rank` or is announced."""
        if self.streams is None:
            handover = self._leaving[request] = Handover(request, self._source, rank, tokens)
            self._hand_over(handover)
        else:
            handover = self._leaving[request] = self._announced.pop(request)
            self.streams.computed(handover)

    def let_go(self, handover: Handover) -> None:
        """Free the KV of a sequence that has arrived elsewhere."""
        del self._leaving[handover.request]
        handover.rank.release(handover.tokens)

    def drop(self) -> list[int]:
        """Forget all; returns the requests whose KV waited here or was under way from here."""
        lost = list(self._leaving)
        self._announced.clear()
        self._leaving.clear()
        return lost
