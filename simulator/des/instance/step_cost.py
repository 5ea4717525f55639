"""What a step with prompt chunks costs, and which part of it prefill is charged with."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.des.instance.rank import PromptChunk
from simulator.des.instance.spec import StepTimes
from simulator.model.latency import Chunk, DecodeLoad


def step_cost(times: StepTimes, chunks: Sequence[PromptChunk], load: DecodeLoad | None) -> tuple[float, float]:
    """Seconds of a step with prompt chunks, and prefill's part of them; load: of decode, where the step decodes too.

    The step takes as long as its busiest rank: most new tokens, then most query-key pairs. In a mixed step
    decode is charged with what it would take alone, prefill with the rest.
    """
    if len(chunks) == 1:
        _, prompt, total = chunks[0]
        busiest = [tuple.__new__(Chunk, (total, prompt.done))]  # Chunk(...) in half the time
    else:
        by_rank: dict[int, list[Chunk]] = {}
        total = 0
        for rank, prompt, new in chunks:
            by_rank.setdefault(rank.index, []).append(Chunk(new, prompt.done))
            total += new
        busiest = next(iter(by_rank.values())) if len(by_rank) == 1 else max(by_rank.values(), key=_work)
    if load is None:
        duration = times.prefill_s(busiest, total)
        return duration, duration
    duration = times.mixed_s(busiest, load, total)
    return duration, max(0.0, duration - times.decode_s(load))


def _work(chunks: list[Chunk]) -> tuple[int, int]:
    """New tokens, and twice the query-key pairs, of a rank's chunks."""
    return sum(c.new for c in chunks), sum(c.new * (2 * c.past + c.new) for c in chunks)
