"""[workload]: arrivals, sessions, offline work, traces."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, field_validator, model_validator

from simulator.scenario.distributions import Lengths, Seconds
from simulator.scenario.keys import MOST_REQUESTS, Count, Duration, Interval, Keys, Rate, RequestCount

MOST_BLOCK_TOKENS = 65_536  # of a block of a prefix cache: far above any engine's (assumed)
SUFFIX = re.compile(r"_(csv|jsonl|json|parquet)$")  # of a trace's format, which does not depend on it


class SharedPrefix(Keys):
    """Prompts that begin alike: each starts with the first `tokens` of one of `groups` prefixes, drawn at random."""

    tokens: Count
    groups: Count = 1


class Diurnal(Keys):
    """A day's curve of the arrival rate: a cosine from `rate` at its peak to trough * rate half a period later."""

    trough: Annotated[FiniteFloat, Field(ge=1e-3, le=1, strict=True)] = 0.4
    period_s: Interval = 86_400.0
    peak_s: Duration = 43_200.0  # when the first peak comes
    # 0.01: the whole curve rises by 1% a day
    growth_per_day: Annotated[FiniteFloat, Field(ge=0, le=1, strict=True)] = 0.0


class Bursts(Keys):
    """Spells of `rate` between spells of quiet * rate, exponential in length (a Markov-modulated Poisson process)."""

    quiet: Annotated[FiniteFloat, Field(ge=1e-3, lt=1, strict=True)] = 0.25
    burst_s: Interval = 10.0  # mean length of a burst
    quiet_s: Interval = 60.0  # mean time between bursts


class OpenLoop(Keys):
    """Arrivals that do not wait for answers: Poisson, or Gamma with `burstiness` (squared variation) above 1.

    With `diurnal` or `bursts` the rate changes, and `rate` is the highest of it.
    """

    kind: Literal["open_loop"] = "open_loop"
    rate: Rate  # requests per second
    requests: RequestCount = 2000
    duration_s: Interval | None = None  # arrivals until then, however many; instead of requests
    burstiness: Annotated[FiniteFloat, Field(gt=0, le=1000, strict=True)] = 1.0
    diurnal: Diurnal | None = None
    bursts: Bursts | None = None
    prompt: Lengths
    output: Lengths
    shared_prefix: SharedPrefix | None = None  # counted in the prompt's length; matters to a prefix cache

    @model_validator(mode="after")
    def _countable(self) -> OpenLoop:
        if self.duration_s is not None and self.rate * self.duration_s > MOST_REQUESTS:
            raise ValueError(
                f"duration_s={self.duration_s:g} at rate={self.rate:g} is more than {MOST_REQUESTS:,} requests; "
                "give a shorter duration"
            )
        return self


class ClosedLoop(Keys):
    """A fixed number of clients, each sending its next request when the last one ends (public benchmarks)."""

    kind: Literal["closed_loop"] = "closed_loop"
    concurrency: Count
    requests: RequestCount
    prompt: Lengths
    output: Lengths


class Sessions(Keys):
    """Conversations: each prompt is all that was said before and the user's new tokens.

    A turn comes a think time after the answer before it has ended. Sessions begin as a Poisson stream of `rate`, or
    `users` people go on for ever: each begins a new session a think time after the last one's end.
    """

    kind: Literal["sessions"] = "sessions"
    rate: Rate | None = None  # sessions begun per second
    users: Count | None = None
    sessions: RequestCount = 500
    turns: Lengths = Lengths(value=5)
    think_s: Seconds = Seconds(kind="exponential", mean=30.0)  # assumed
    prompt: Lengths  # new tokens of a turn
    output: Lengths
    system_prompt: SharedPrefix | None = None  # in front of every conversation, on top of `prompt`
    max_context: Count | None = None  # a turn whose prompt and answer would exceed it is not held, nor any after it

    @model_validator(mode="after")
    def _one_pace(self) -> Sessions:
        if (self.rate is None) == (self.users is None):
            raise ValueError("sessions need either rate or users; give one of them")
        return self


class Offline(Keys):
    """Work without a deadline, all there from the start, that fills the gaps.

    A request of it is begun where no other prompt waits, and where it leaves `headroom` free: that share of an
    instance's tokens per step, of its sequences and of its KV room stays with the others.
    """

    kind: Literal["offline"] = "offline"
    requests: RequestCount
    headroom: Annotated[FiniteFloat, Field(ge=0, lt=1, strict=True)] = 0.5  # assumed
    prompt: Lengths
    output: Lengths


class TraceColumnNames(Keys):
    """Columns of a trace of one's own: which says what."""

    prompt: str  # prompt tokens
    output: str  # output tokens
    arrived: str | None = None  # a number in `time_unit`, or a date and time; left out: `rate` says how often
    session: str | None = None  # requests of one session have the same value
    delay: str | None = None  # from the end of the session's last answer, in `time_unit`
    hash_ids: str | None = None  # ids of the prompt's blocks, for prefix caches


TraceFormat = Literal[
    "auto", "azure", "mooncake", "bailian", "burstgpt", "vidur", "vidur_lengths", "splitwise", "aiperf_sessions",
    "aiperf_single_turn", "aiperf_multi_turn", "aiperf_results", "sharegpt", "vllm_custom",
]  # fmt: skip


class Trace(Keys):
    """Recorded requests. The format, the unit of its times and the tokens of its blocks are told from the file.

    Lengths and order stay as recorded; only the time between arrivals is scaled, by `speed` or to a mean `rate`.
    """

    kind: Literal["trace"] = "trace"
    path: Path
    format: TraceFormat = "auto"
    columns: TraceColumnNames | None = None  # for a file of no known format
    time_unit: Literal["s", "ms", "us", "ns"] | None = None  # of arrivals and delays; instead of what the file tells
    block_tokens: Annotated[int, Field(ge=1, le=MOST_BLOCK_TOKENS, strict=True)] | None = None  # of hash_ids, likewise
    # of a prompt or an answer that is given as text; assumed, a rule of thumb for English under large vocabularies
    characters_per_token: Annotated[FiniteFloat, Field(ge=0.1, le=100, strict=True)] = 4.0
    speed: Annotated[FiniteFloat, Field(ge=1e-6, strict=True)] = 1.0  # 2 replays twice as fast
    rate: Rate | None = None  # mean requests per second to replay at; instead of speed
    limit: Count | None = None

    @field_validator("format", mode="before")
    @classmethod
    def _without_suffix(cls, value: Any) -> Any:
        return SUFFIX.sub("", value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_scale(self) -> Trace:
        if self.rate is not None and self.speed != 1.0:
            raise ValueError(f"rate={self.rate:g} and speed={self.speed:g} both scale the trace; give one of them")
        if self.columns is not None and self.format != "auto":
            raise ValueError(f"format='{self.format}' and columns both say what the columns are; give one of them")
        return self


Workload = Annotated[OpenLoop | ClosedLoop | Sessions | Offline | Trace, Field(discriminator="kind")]
