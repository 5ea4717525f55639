"""Step times that differ from step to step by the draw of the experts' loads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simulator.model.expert_load import SAMPLES
from simulator.model.latency import NO_DECODE, Chunk, DecodeLoad, StepLatency


class DrawnTimes:
    """Mean times of `latency`, and what a draw for each step adds to them. One instance's."""

    def __init__(self, latency: StepLatency, rng: np.random.Generator) -> None:
        self._latency = latency
        self._rng = rng
        self._drawn: list[int] = []
        self.caps = latency.caps
        self.first_token_extra_s = latency.first_token_extra_s

    def _draw(self) -> int:
        if not self._drawn:  # one call of the generator for many steps
            self._drawn = self._rng.integers(SAMPLES, size=4096).tolist()
        return self._drawn.pop()

    def decode_s(self, load: DecodeLoad) -> float:
        return self._latency.decode_s(load) + self._latency.experts_swing_s((), load, 0, self._draw())

    def prefill_s(self, chunks: Sequence[Chunk], total_tokens: int | None = None) -> float:
        swing_s = self._latency.experts_swing_s(chunks, NO_DECODE, total_tokens, self._draw())
        return self._latency.prefill_s(chunks, total_tokens) + swing_s

    def mixed_s(self, chunks: Sequence[Chunk], load: DecodeLoad, total_tokens: int | None = None) -> float:
        swing_s = self._latency.experts_swing_s(chunks, load, total_tokens, self._draw())
        return self._latency.mixed_s(chunks, load, total_tokens) + swing_s
