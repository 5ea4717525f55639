"""Why cuts of a model were turned down, and which limit stops every design."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from simulator.scenario import Slo


@dataclass(frozen=True)
class Sight:
    """A latency that some design has on an idle cluster."""

    value: float
    allowed: float  # the limit, or what must be predicted for it to hold with the chance demanded
    design: str

    @property
    def closeness(self) -> tuple[float, float]:
        return (self.value / self.allowed, self.value)


@dataclass
class Rejections:
    """Why cuts were turned down, and the best value seen against each limit."""

    counts: Counter[str] = field(default_factory=Counter)
    best: dict[str, Sight] = field(default_factory=dict)  # by limit, what comes closest
    gpus: dict[str, int] = field(default_factory=dict)  # role -> accelerators of the smallest pool that would do
    memory: str = ""  # what the last cut that did not fit would need

    def add(self, reason: str) -> None:
        self.counts[reason] += 1

    def sized(self, role: str, gpus: int) -> None:
        self.gpus[role] = min(gpus, self.gpus.get(role, gpus))

    @property
    def least_gpus(self) -> int | None:
        """Accelerators of the smallest cluster that would do, were there no max_gpus."""
        whole = [self.gpus["colocated"]] if "colocated" in self.gpus else []
        if "prefill" in self.gpus and "decode" in self.gpus:
            whole.append(self.gpus["prefill"] + self.gpus["decode"])
        return min(whole, default=None)

    def saw(self, limit: str, value: float, allowed: float | None, design: str) -> None:
        """Note a value of a latency and what it may be predicted to be."""
        seen = Sight(value, allowed or math.inf, design)
        if limit not in self.best or seen.closeness < self.best[limit].closeness:
            self.best[limit] = seen


def binding_limit(rejections: Rejections, slo: Slo, max_gpus: int) -> str:
    """Say which limit stops every design, and by how much."""
    if not rejections.best:
        return (
            rejections.memory or "no cut of the model fits the accelerators offered; add accelerators with more memory"
        )
    sentences = []
    for name, limit in slo.limits.items():
        best = rejections.best.get(name)
        if best is None or best.value <= best.allowed:
            continue
        sure = "" if best.allowed == limit else f", of which it may take {best.allowed:.4g} s for the chance demanded,"
        sentences.append(
            f"{name}: the limit is {limit:g} s{sure} and the fastest design found ({best.design}) takes "
            f"{best.value:.4g} s on an idle cluster, {best.value / best.allowed:,.2f} times the limit"
        )
    if sentences:
        return "; ".join(sentences) + "; relax the limit or offer a faster accelerator"
    if rejections.least_gpus is not None:
        return (
            f"max_gpus: at most {max_gpus} accelerators are allowed and this traffic needs about "
            f"{rejections.least_gpus}; raise search.max_gpus (--max-gpus), or relax the limits"
        )
    wary = any(seen.allowed != slo.limits[name] for name, seen in rejections.best.items() if name in slo.limits)
    sure = " with the chance demanded" if wary else ""
    return (
        f"each limit can be met alone on an idle cluster, but no batch keeps both under this traffic{sure}; "
        "relax one of them or offer a faster accelerator"
    )
