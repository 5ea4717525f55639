"""When instances are there: [deployment.startup], [deployment.faults] and [deployment.<pool>.autoscale]."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, model_validator

from simulator.scenario.keys import Bandwidth, Count, Duration, Instances, Interval, Keys, NonNegative, Positive

PoolName = Literal["prefill", "decode", "colocated"]
FaultKind = Literal["instance", "node", "link", "slow"]
LEAST_SPEED = 1e-3  # of steps, as a share of the normal one
MOST_RETRIES = 10**6  # of one request: far above any real policy (assumed)
Speed = Annotated[FiniteFloat, Field(ge=0, lt=1, strict=True)]


class Startup(Keys):
    """What an instance does before it serves, after a fault or when it is added: start, then load its weights."""

    start_s: Duration = 30.0  # processes, communicators, graphs; assumed
    weight_bandwidth: Bandwidth = 2e9  # storage to one accelerator, at most the host link's rate; assumed [B/s]
    load_s: Duration | None = None  # left out: weight bytes of an accelerator over that rate


class Outages(Keys):
    """Faults of each unit of a kind at exponential times."""

    mtbf_s: Annotated[FiniteFloat, Field(ge=1e-3, strict=True)]  # mean time from the end of one fault to the next
    mttr_s: Duration  # mean length of a fault, start and weight loading apart
    speed: Speed = 0.0  # share of normal speed that is left


class PlannedFault(Keys):
    """One fault of one unit at a given time."""

    kind: FaultKind
    pool: PoolName
    index: Annotated[int, Field(ge=0, strict=True)] = 0  # of the instance, or of the node, in its pool
    at_s: NonNegative
    duration_s: Duration  # start and weight loading apart
    speed: Speed = 0.0


class Faults(Keys):
    """What breaks, at random or at given times, and what becomes of the requests that it hits.

    instance: it dies with all KV that it holds. node: so do all instances with an accelerator on it.
    link: NICs of an instance run at `speed` of their rate, 0 stalls them. slow: its steps run at `speed`.
    """

    instance: Outages | None = None
    node: Outages | None = None
    link: Outages | None = None
    slow: Outages | None = None
    events: tuple[PlannedFault, ...] = ()
    retries: Annotated[int, Field(ge=0, le=MOST_RETRIES, strict=True)] = 3  # of one request; after them it has failed
    retry_delay_s: Duration = 1.0  # until a lost request is sent again: the fault must be noticed; assumed
    node_gpus: Count | None = None  # accelerators that fail together; left out: the profile's scale-up domain

    @model_validator(mode="after")
    def _speeds(self) -> Faults:
        random = [(kind, getattr(self, kind)) for kind in ("instance", "node", "slow")]
        faults = [(f"{kind}.speed", kind, fault.speed) for kind, fault in random if fault is not None]
        faults += [(f"events.{i}.speed", event.kind, event.speed) for i, event in enumerate(self.events)]
        for key, kind, speed in faults:
            if kind == "slow" and speed < LEAST_SPEED:
                raise ValueError(
                    f"{key}={speed:g} would never end a step; give a share of at least {LEAST_SPEED:g}, or a fault "
                    "of the instance"
                )
            if kind in ("instance", "node") and speed:
                raise ValueError(f"{key}={speed:g} of a dead {kind} has no meaning; leave it out, or use kind slow")
        return self


class ScheduledCount(Keys):
    """From `at_s` on the pool is to have `instances`."""

    at_s: NonNegative
    instances: Instances


class Autoscale(Keys):
    """How many instances a pool has over time, between `minimum` and `maximum`: by what it sees, or as planned.

    queue: waiting requests per instance above `target` add instances. utilization: share of time in steps (prefill
    pool), or of sequence slots and KV room, the fuller (pools that decode), is kept at `target`. attainment: the
    share of requests inside the limits falls below `target`; prefill looks at TTFT, decode at TPOT.
    """

    metric: Literal["queue", "utilization", "attainment"] | None = None
    target: Positive | None = None
    minimum: Instances = 1
    maximum: Instances | None = None
    window_s: Interval = 30.0  # a decision after each, on what was seen in it; assumed
    cooldown_s: NonNegative = 300.0  # from any change to the next instance less; assumed
    schedule: tuple[ScheduledCount, ...] = ()
    period_s: Interval | None = None  # after which the schedule begins anew

    @model_validator(mode="after")
    def _one_way(self) -> Autoscale:
        if (self.metric is None) == (not self.schedule):
            raise ValueError("give either metric, target and maximum, or a schedule")
        if self.metric is not None:
            if self.target is None or self.maximum is None:
                raise ValueError(f"metric={self.metric} needs target and maximum")
            if self.metric != "queue" and self.target >= 1:
                raise ValueError(f"target={self.target:g} of {self.metric} is a share; give a number below 1")
            if self.maximum < self.minimum:
                raise ValueError(f"maximum={self.maximum} is below minimum={self.minimum}")
            if self.period_s is not None:
                raise ValueError(f"period_s={self.period_s:g} repeats a schedule; leave it out beside a metric")
            return self
        times = [step.at_s for step in self.schedule]
        if times != sorted(set(times)):
            raise ValueError("schedule is not in order of at_s, each time once")
        if self.period_s is not None and times[-1] >= self.period_s:
            raise ValueError(f"schedule goes on to at_s={times[-1]:g}, beyond period_s={self.period_s:g}")
        if self.target is not None or self.maximum is not None:
            raise ValueError("target and maximum belong to a metric; leave them out beside a schedule")
        return self

    @property
    def most(self) -> int:
        """Instances that the pool may come to have."""
        return self.maximum or max(step.instances for step in self.schedule)
