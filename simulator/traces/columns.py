"""What a trace holds: arrivals and token counts as columns, and what was said while they were read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.scenario import ScenarioError

BLOCK_TOKENS = 512  # prompt tokens of a block that prefixes are compared by, as in the Mooncake traces
MOST_TOKENS = 10**9  # of one side of a request: far above any real one, far below int64


class TraceError(ScenarioError):
    """A trace file that cannot be replayed; the message names file, line and column."""


@dataclass(frozen=True)
class Turns:
    """Sessions of which a turn comes its delay after the answer before it.

    Requests lie session by session, turn by turn.
    first: of each session the index of its first request, and at last the number of requests.
    begin_s: when each session begins. [s]
    delay_s: of each request the pause before it; 0 before a first turn. [s]
    kept_blocks: of each request the KV blocks that its prompt and answer fill.
    """

    first: list[int]
    begin_s: list[float]
    delay_s: list[float]
    kept_blocks: list[tuple[int, ...]]


@dataclass(frozen=True)
class TraceColumns:
    """Requests in order of arrival; the first arrives at 0 s. A column has one entry a request.

    arrival_s: of `turns` only the first of each session arrives at a known time, the others count their delays alone.
    timed: False where the file has no arrivals, so that a rate has to be given.
    blocks: prefix block ids of each prompt; None where the trace has none.
    session: the session of each request as a number from 0; -1 where it has none; None where the trace has none.
    failed: rows of requests without an answer or a prompt, left out.
    unreadable: one sentence for each row left out because it could not be read.
    notes: what was told from the data, and what the file does not say.
    """

    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    blocks: list[tuple[int, ...]] | None = None
    block_tokens: int = BLOCK_TOKENS
    timed: bool = True
    session: NDArray[np.int64] | None = None
    turns: Turns | None = None
    format: str = ""
    time_unit: str | None = None
    failed: int = 0
    unreadable: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    @property
    def left_out(self) -> tuple[str, ...]:
        """What was left out, in sentences."""
        said = []
        if self.failed:
            said.append(f"{self.failed:,} rows without a prompt or an answer are left out as failed requests")
        if self.unreadable:
            said.append(
                f"{len(self.unreadable):,} rows cannot be read and are left out, the first: {self.unreadable[0]}"
            )
        return tuple(said)
