"""From the estimated designs of one idea to the cheapest that the discrete-event model finds inside the limits.

An idea is a form of serving on given accelerators. Its designs differ in cut, token budget, running sequences and
instances. The estimate says which changes are worth a simulation: of those that would be cheaper, the one with the
largest expected saving, saving x chance that it keeps the limits, is played next. The chance is that of a normal error
of the estimate, on logarithms, corrected by what the last simulations showed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

from simulator.planner.candidates import neighbours
from simulator.planner.design import Design
from simulator.planner.estimate import estimates
from simulator.planner.executor import run_all
from simulator.planner.pools import Pricing
from simulator.planner.verify import Played, played
from simulator.progress import Progress
from simulator.scenario import Deployment, Pool, Scenario

# Of the estimate, on logarithms: between cuts; beside a design that was simulated; with all but its running sequences.
# [assumed: medians of both models agree to 2%, nine in ten within 10% (benchmarks.agreement)]
SIGMA, SIGMA_BESIDE, SIGMA_SAME = 0.06, 0.025, 0.005
BEHIND = (
    0.015  # by which, likewise, one that misses its share of requests is taken to be slower than its percentile says
)
LEAST_CHANCE = 0.05  # below which a change is not tried [assumed]
FEWEST_RUNS, MOST_RUNS = 3, 10  # simulations of one idea [assumed]
WIDENED = 3  # designs that are looked at with more instances before any is simulated [assumed]
MOST_SAVED = 0.75  # of a price, what single changes bring it down to at most [assumed]
SEQUENCES = (0.8, 1.25)  # changes of running sequences [factors; assumed]
FEWER, MORE = (0.0, 0.05, 0.15), 0.1  # instances taken away or added: one, or such a share of them [assumed]
NORMAL = NormalDist()


@dataclass
class Idea:
    """One form on given accelerators: estimated designs, and those that were simulated."""

    designs: list[Design]  # estimated, cheapest first
    simulated: list[Design] = field(default_factory=list)
    errors: dict[Deployment, dict[str, float]] = field(default_factory=dict)  # log(simulated / estimated), by limit

    @property
    def best(self) -> Design:
        """The cheapest simulated inside the limits; else the simulated one that comes closest; else the first."""
        held = [design for design in self.simulated if design.meets_slo]
        if held:
            return min(held, key=lambda design: design.rank)
        if self.simulated:
            return min(self.simulated, key=lambda design: (design.violation, design.rank))
        return self.designs[0]

    @property
    def estimate(self) -> Design:
        return self.designs[0]


class Refinement:
    """Simulates designs of ideas."""

    def __init__(self, scenario: Scenario, pricing: Pricing, progress: Progress) -> None:
        self.scenario, self.pricing, self.progress = scenario, pricing, progress
        self._known: dict[int, dict[Deployment, Design]] = {}  # of each idea
        self._looked_at: set[Deployment] = set()

    def refine(self, ideas: Sequence[Idea]) -> None:
        """Simulate of each idea until no single change is cheaper and inside the limits, MOST_RUNS designs at most.

        An idea that has a design inside them, and that another idea undercuts by far, stops after FEWEST_RUNS.
        """
        for run in range(MOST_RUNS):
            self.progress("simulating the best designs", run, MOST_RUNS)
            chosen = []
            for idea in ideas:
                design = None if self._beaten(idea, ideas) else self._next(idea, self._around(idea))
                if design is not None:
                    chosen.append((idea, design))
            if not chosen:
                return
            self._play(chosen)

    @staticmethod
    def _beaten(idea: Idea, ideas: Sequence[Idea]) -> bool:
        """Whether it has a design that holds and another idea one that is cheaper by more than refinement finds."""
        best = idea.best
        if len(idea.simulated) < FEWEST_RUNS or not best.meets_slo:
            return False
        others = [other.best for other in ideas if other is not idea]
        return any(o.simulated and o.meets_slo and o.price < MOST_SAVED * best.price for o in others)

    def _around(self, idea: Idea) -> Iterable[Design]:
        """Estimated designs of the idea and single changes of those that were simulated."""
        known = self._known.get(id(idea))
        changes: list[Deployment] = []
        if known is None:
            known = self._known[id(idea)] = {design.deployment: design for design in idea.designs}
            changes = [one for design in idea.designs[:WIDENED] for one in self._changes(design, grow=True)]
        for design in idea.simulated:
            if design.deployment not in self._looked_at:
                self._looked_at.add(design.deployment)
                changes += self._changes(design, grow=not design.meets_slo)
        fresh = [deployment for deployment in dict.fromkeys(changes) if deployment not in known]
        known |= zip(fresh, estimates(self.scenario, self.pricing, fresh), strict=True)
        return known.values()

    def _play(self, chosen: Sequence[tuple[Idea, Design]]) -> None:
        tasks = [Played(self.scenario, self.pricing.model, d, self.lifetime_s(d)) for _, d in chosen]
        for (idea, estimated), found in zip(chosen, run_all(played, tasks), strict=True):
            idea.simulated.append(found)
            ours, theirs = estimated.at_limits, found.at_limits
            idea.errors[found.deployment] = {
                name: math.log(theirs[name] / ours[name])
                for name in ours
                if name in theirs and math.isfinite(ours[name]) and ours[name] > 0 < theirs[name]
            }

    def lifetime_s(self, design: Design) -> float:
        """Of a request; where more comes than is predicted to be carried, as long as its limits allow."""
        mean = design.steady_state.e2e_mean_s
        if math.isfinite(mean):
            return mean
        slo = self.scenario.slo
        return slo.e2e_s or (slo.ttft_s or 1.0) + (slo.tpot_s or 0.1) * self.pricing.traffic.mean_output

    def _next(self, idea: Idea, known: Iterable[Design]) -> Design | None:
        """The design with the largest expected saving; before any holds, the cheapest that it takes to find one."""
        done = {design.deployment for design in idea.simulated}
        best = idea.best
        held = best.simulated is not None and best.meets_slo
        chosen, most = None, 0.0
        for design in known:
            if design.deployment in done or design.deployment.gpus > self.scenario.search.max_gpus:
                continue
            if held and design.rank >= best.rank:
                continue
            chance = self._chance(idea, design)
            if chance < LEAST_CHANCE:
                continue
            worth = chance * (best.price - design.price) if held else chance / design.price
            if worth > most:
                chosen, most = design, worth
        return chosen

    def _chance(self, idea: Idea, design: Design) -> float:
        """That a simulation finds it inside all limits."""
        errors, sigma = _nearest(idea, design)
        worst = max(
            (math.log(value) + errors.get(name, 0.0) for name, value in design.at_limits.items() if value > 0),
            default=-math.inf,
        )
        if worst == math.inf:
            return 0.0
        return NORMAL.cdf(-worst / sigma)

    # ---- single changes

    def _changes(self, design: Design, *, grow: bool) -> Iterator[Deployment]:
        """Fewer instances of a pool, its sizes as they are or one of them changed; or as many and more."""
        deployment = design.deployment
        for role, pool in deployment.lone_pools.items():
            n = pool.instances
            counts = {n, n + 1, n + round(MORE * n)} if grow else {n, *(n - max(1, round(s * n)) for s in FEWER)}
            for count in sorted(count for count in counts if count >= 1):
                for sizes in self._sizes(role, pool):
                    yield deployment.model_copy(update={role: sizes.model_copy(update={"instances": count})})

    def _sizes(self, role: str, pool: Pool) -> Iterator[Pool]:
        yield pool
        if role != "decode":
            for choice in neighbours(self.pricing.choice_of(role, pool)):
                if self.pricing.holds(choice):
                    yield pool.model_copy(update={"max_tokens_per_step": choice.budget})
        if role != "prefill":
            for factor in SEQUENCES:
                yield pool.model_copy(update={"max_sequences": max(1, round(factor * pool.sequence_limit))})


def _nearest(idea: Idea, design: Design) -> tuple[dict[str, float], float]:
    """Errors of the estimate on the last simulated design that is most alike, and the standard deviation of what is
    left of them."""
    best: tuple[float, dict[str, float]] = (SIGMA, {})
    for other in reversed(idea.simulated):
        sigma = SIGMA_SAME if other.sizes == design.sizes else SIGMA_BESIDE if other.cuts == design.cuts else SIGMA
        if sigma < best[0] or not best[1]:
            behind = 0.0 if other.meets_slo else BEHIND
            best = (sigma, {name: error + behind for name, error in idea.errors[other.deployment].items()})
    return best[1], best[0]
