"""What a trace says in a few figures: rates, lengths, prefix hits, sessions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.traces.columns import TraceColumns
from simulator.traces.prefixes import ideal_hit_tokens

HOUR_S = 3600.0
QUANTILES = (10, 50, 90, 99)  # of the lengths [%]


@dataclass(frozen=True)
class LengthSummary:
    """Of one side of the requests. [tokens]"""

    mean: float
    most: int
    quantiles: dict[str, float]


@dataclass(frozen=True)
class TraceSummary:
    """rate_by_hour: requests per second in each hour from the first arrival on; the last may be cut. [1/s]
    hit_share: prompt tokens that a prefix cache without bound would find, of all; None where prompts name no blocks.
    turns_per_session: mean; None where the trace has no sessions.
    """

    format: str
    requests: int
    duration_s: float
    mean_rate: float | None
    rate_by_hour: tuple[float, ...]
    prompt: LengthSummary
    output: LengthSummary
    time_unit: str | None
    block_tokens: int | None
    hit_tokens: int | None
    hit_share: float | None
    sessions: int | None
    turns_per_session: float | None
    failed: int
    unreadable: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def summary_of(trace: TraceColumns) -> TraceSummary:
    """Figures of a trace. Of sessions with delays, hours count the delays and not the answers between them."""
    span = float(trace.arrival_s.max())
    hits = None
    if trace.blocks is not None and any(trace.blocks):
        hits = ideal_hit_tokens(trace.blocks, trace.prompt_tokens.tolist(), trace.block_tokens)
    sessions = turns = None
    if trace.session is not None:
        within = trace.session[trace.session >= 0]
        sessions = len(np.unique(within))
        turns = len(within) / max(1, sessions)
    known = trace.timed and span > 0
    return TraceSummary(
        trace.format,
        len(trace),
        span,
        len(trace) / span if known else None,
        _by_hour(trace.arrival_s, span) if known else (),
        _lengths(trace.prompt_tokens),
        _lengths(trace.output_tokens),
        trace.time_unit,
        trace.block_tokens if hits is not None else None,
        hits,
        None if hits is None else hits / int(trace.prompt_tokens.sum()),
        sessions,
        turns,
        trace.failed,
        trace.unreadable,
        trace.notes,
    )


def _by_hour(arrival_s: NDArray[np.float64], span: float) -> tuple[float, ...]:
    counts = np.bincount((arrival_s // HOUR_S).astype(int))
    lasts = np.minimum(HOUR_S, span - HOUR_S * np.arange(len(counts)))
    return tuple(float(count / last) for count, last in zip(counts, lasts, strict=True) if last > 0)


def _lengths(tokens: NDArray[np.int64]) -> LengthSummary:
    found: Sequence[float] = np.percentile(tokens, QUANTILES).tolist()
    named = {f"p{q}": value for q, value in zip(QUANTILES, found, strict=True)}
    return LengthSummary(float(tokens.mean()), int(tokens.max()), named)
