"""What a cluster is made of, as a run needs to know it: groups of instances, and the whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from simulator.des.cluster.power import PowerDraw
from simulator.des.instance.spec import InstanceSpec
from simulator.scenario import Autoscale, Faults, FirstToken, Slo, Transfer


@dataclass(frozen=True)
class GroupSpec:
    """Identical instances of a pool: "prefill", "decode" or "colocated". Most pools are one group.

    count: instances that the group has at most. begins_with: of them, instances that serve at first; none: all.
    startup_s: from the end of a fault, or from being added, until an instance serves.
    node_gpus: accelerators that a fault of their node takes down together. power: of one accelerator; None: not known.
    label: tells the groups of a pool apart.
    """

    pool: str
    instance: InstanceSpec
    count: int = 1
    begins_with: int | None = None
    startup_s: float = 0.0
    node_gpus: int = 8
    autoscale: Autoscale | None = None
    power: PowerDraw | None = None
    label: str = ""

    @property
    def name(self) -> str:
        """For reports: that of the pool, where the group is all of it."""
        return f"{self.pool}.{self.label}" if self.label else self.pool

    @property
    def gpus(self) -> int:
        return self.count * self.instance.gpus


@dataclass(frozen=True)
class ClusterSpec:
    """Everything that a run needs to know of the cluster.

    entry: the groups of the pool that takes arrivals (prefill or colocated); decode: those of the pool that it hands
        over to, if any. Instances of a pool are numbered through its groups.
    decode_router: none: as `router`, or least_loaded where that looks at queues or caches.
    first_token: the pool that sends it to the client: at the end of the prompt, or of the first decode step.
    max_queue: requests that may wait in each queue of the entry pool; none: any number.
    transfer_bytes: KV and state that move with a sequence, from its prompt tokens. [B]
    max_positions: longest sequence of the model. [tokens]
    layers: of the model, for layer-wise transfers.
    slos: limits of all requests, or of each tenant, that autoscaling by attainment looks at.
    """

    entry: tuple[GroupSpec, ...]
    decode: tuple[GroupSpec, ...] = ()
    router: str = "least_loaded"
    decode_router: str | None = None
    first_token: FirstToken = "prefill"
    max_queue: int | None = None
    transfer: Transfer = field(default_factory=Transfer)
    transfer_bytes: Callable[[int], float] = lambda tokens: 0.0
    max_positions: int | None = None
    layers: int = 1
    faults: Faults | None = None
    slos: tuple[Slo, ...] = (Slo(),)

    @property
    def groups(self) -> tuple[GroupSpec, ...]:
        return (*self.entry, *self.decode)

    @property
    def pools(self) -> tuple[tuple[GroupSpec, ...], ...]:
        """The groups of each pool."""
        return (self.entry, self.decode) if self.decode else (self.entry,)

    def is_entry(self, group: GroupSpec) -> bool:
        return group.pool == self.entry[0].pool

    def limits_of(self, group: GroupSpec) -> list[dict[str, float]]:
        """As `slos`, those that a pool answers for. [s]

        Prefill for TTFT, decode for TPOT and for TTFT where it sends first tokens, a colocated one for all.
        """
        if not self.decode:
            return [slo.limits for slo in self.slos]
        if self.is_entry(group):
            own = ["ttft_s"]
        else:
            own = ["tpot_s", "ttft_s"] if self.first_token == "decode" else ["tpot_s"]
        return [{name: limit for name, limit in slo.limits.items() if name in own} for slo in self.slos]
