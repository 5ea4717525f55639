"""What one group of instances did in a run: how busy it was, what broke, what was paid for and drawn."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from simulator.des.cluster.cluster import Run, Snapshot
from simulator.des.cluster.group import integrate
from simulator.des.cluster.power import PowerDraw
from simulator.des.cluster.spec import GroupSpec
from simulator.des.records.usage import Usage
from simulator.des.results.cost import SECONDS_PER_HOUR
from simulator.des.results.energy import GroupEnergy
from simulator.des.results.reports import Lifecycle, Utilization

ROUNDING = 1e-9  # relative, of sums over millions of steps


@dataclass(frozen=True)
class GroupUsage:
    """What a group did; means are taken from snapshot `first` to snapshot `last`."""

    group: GroupSpec
    run: Run
    first: Snapshot
    last: Snapshot

    @property
    def _span_s(self) -> float:
        return self.last.time_s - self.first.time_s

    @cached_property
    def _usage(self) -> Usage:
        """Sums over the instances, between the snapshots."""
        pairs = zip(self.last.usage[self.group.name], self.first.usage[self.group.name], strict=True)
        return Usage.total(after.since(before) for after, before in pairs)

    def mean_instances(self, start_s: float, end_s: float) -> float:
        """Instances that are paid for, on average over a span."""
        sizes = self.run.sizes[self.group.name]
        if len(sizes) == 1 or end_s <= start_s:
            return sizes[-1].allocated
        return integrate(sizes, start_s, end_s).allocated / (end_s - start_s)

    @property
    def most_gpus(self) -> int:
        """Accelerators that were there at the same time."""
        return max(moment.allocated for moment in self.run.sizes[self.group.name]) * self.group.instance.gpus

    @property
    def prefill_share(self) -> float:
        """Prefill's part of the time in steps."""
        usage = self._usage
        return min(1.0, usage.prefill_s / usage.busy_s) if usage.busy_s > 0 else 0.0

    def utilization(self) -> Utilization:
        """Means over the instances that are paid for and over time."""
        usage = self._usage
        spec = self.group.instance
        instances = self.mean_instances(self.first.time_s, self.last.time_s)
        total = self._span_s * instances
        return Utilization(
            instances,
            instances * spec.gpus,
            _share(usage.busy_s, total),
            usage.sequence_s / usage.busy_s if usage.busy_s > 0 else 0.0,
            _share(usage.kv_byte_s, total * spec.kv.capacity_bytes * spec.ranks),
            _share(usage.link_s, total),
            usage.steps,
        )

    def lifecycle(self) -> Lifecycle:
        """Over the whole run: what was paid for, how much of it served, what broke."""
        name = self.group.name
        sizes = self.run.sizes[name]
        total = integrate(sizes, 0.0, self.run.end.time_s)
        return Lifecycle(
            total.allocated * self.group.instance.gpus / SECONDS_PER_HOUR,
            min(moment.allocated for moment in sizes),
            max(moment.allocated for moment in sizes),
            total.serving / (total.serving + total.down) if total.down else 1.0,
            dict(Counter(seen.kind for seen in self.run.incidents if seen.group == name)),
        )

    @cached_property
    def draw(self) -> PowerDraw | None:
        """Levels of one accelerator at the mean number of rows in its steps; None where the TDP is not known."""
        usage, spec = self._usage, self.group.instance
        if self.group.power is None:
            return None
        running = usage.sequence_s / usage.busy_s if usage.busy_s > 0 else 0.0
        return self.group.power.at(running * (1 + spec.draft_tokens) / spec.gpus)

    def energy(self) -> GroupEnergy | None:
        """Energy over the whole run, mean draw between the snapshots; None where the TDP is not known."""
        draw = self.draw
        if draw is None:
            return None

        def joules(powered_s: float, usage: Usage) -> float:
            decode_s = usage.busy_s - usage.prefill_s
            return float(draw.joules(powered_s, usage.prefill_s, decode_s)) * self.group.instance.gpus

        name, end, span_s = self.group.name, self.run.end, self._span_s
        whole = joules(integrate(self.run.sizes[name], 0.0, end.time_s).allocated, Usage.total(end.usage[name]))
        mean = joules(span_s * self.mean_instances(self.first.time_s, self.last.time_s), self._usage)
        return GroupEnergy(name, whole, mean / span_s if span_s > 0 else 0.0)


def _share(part: float, whole: float) -> float:
    """part / whole, which may exceed 1 by rounding of long sums only; 0 of nothing.

    >>> _share(1.0, 4.0), _share(1.0 + 1e-15, 1.0), _share(0.0, 0.0)
    (0.25, 1.0, 0.0)
    """
    if whole <= 0:
        return 0.0
    assert part <= whole * (1 + ROUNDING), f"{part} of {whole} is more than all"
    return min(1.0, part / whole)
