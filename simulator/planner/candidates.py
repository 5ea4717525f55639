"""Pools that could serve the traffic: cuts that memory holds, priced, sized, the cheapest kept.

Cheap looks come first: memory, then steps that only decode, then prompts alone at a few token budgets, and prompts
beside decode last, for the cuts that were cheap before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from simulator.model.arrays import Floats
from simulator.model.engine import Form
from simulator.model.memory import DoesNotFitError
from simulator.model.parallelism import Parallelism
from simulator.planner.engines import Choice, Engine, Offer
from simulator.planner.pools import PoolTable, Pricing, layout, most_at
from simulator.planner.rejections import Rejections
from simulator.planner.sizing import Limits, Sized, size_colocated, size_decode, size_prefill
from simulator.planner.space import (
    BUDGETS,
    DECODE_BUDGET,
    FIRST_COLOCATED_BUDGETS,
    FIRST_PREFILL_BUDGETS,
    LONG_PROMPT,
    context_parallel_cuts,
    cuts,
)
from simulator.scenario import Pool, Scenario
from simulator.steady_state.arrays import Place
from simulator.steady_state.policies import batching_of, batchings_of
from simulator.uncertainty.chances import demand
from simulator.uncertainty.spreads import uncertainty_of

KEPT_PER_POOL = 5  # cheapest choices per offer and role that go on to be combined [assumed: enough]
COLOCATED_CUTS = 6  # per offer whose prompts are priced beside decode [assumed: enough]
REFINED = 4  # choices per offer and role whose other token budgets are looked at [assumed: enough]
ROUNDS = 3  # of that
# Prompts that a prefill instance works on at once, over all its ranks. [sequences; assumed]
PREFILL_SEQUENCES = 512
FULL_LOAD = 1.0  # share of its capacity that a pool may be sized to where no chance is demanded
OVER_MAX_GPUS = "needs more accelerators than max_gpus"


@dataclass(frozen=True)
class SizedPool:
    """A pool that keeps its limits by the estimate. usd: per hour; infinite without a price."""

    choice: Choice
    pool: Pool
    usd: float

    @property
    def rank(self) -> tuple[float, int]:
        return (self.usd, self.pool.gpus)


class Candidates:
    """The pools of one question, and why others were turned down."""

    def __init__(self, scenario: Scenario, pricing: Pricing, offers: Sequence[Offer]) -> None:
        self.scenario, self.pricing, self.offers = scenario, pricing, offers
        self.rejections = Rejections()
        self._cuts: dict[Offer, list[Parallelism]] = {}

    def prefill(self) -> list[SizedPool]:
        long = max(self.pricing.traffic.prompts) >= LONG_PROMPT
        found: list[SizedPool] = []
        for offer in self.offers:
            engines = self._engines(offer, "disaggregated")
            if long:
                extra = context_parallel_cuts(self.pricing.model, offer.profile.scale_up_domain)
                engines += self._fitting(offer, "disaggregated", extra)
            batching = batching_of(offer.stack)
            first = self._choices(engines, "prefill", FIRST_PREFILL_BUDGETS, (batching,))
            found += self._improved(self._sized(first, size_prefill, "prefill: TTFT above the limit"), size_prefill)
        return found

    def decode(self) -> list[SizedPool]:
        found: list[SizedPool] = []
        for offer in self.offers:
            engines = self._engines(offer, "disaggregated")
            choices = self._choices(engines, "decode", (DECODE_BUDGET,), (batching_of(offer.stack),))
            found += cheapest(self._sized(choices, size_decode, "decode: TPOT above the limit"), KEPT_PER_POOL)
        return found

    def colocated(self) -> list[SizedPool]:
        found: list[SizedPool] = []
        for offer in self.offers:
            engines = self._promising(self._engines(offer, "colocated"))
            first = self._choices(engines, "colocated", FIRST_COLOCATED_BUDGETS, batchings_of(offer.stack))
            reason = "colocated: TTFT or TPOT above the limit"
            found += self._improved(self._sized(first, size_colocated, reason), size_colocated)
        return found

    def tables(self) -> list[PoolTable]:
        """All that was priced, by layout."""
        groups: dict[object, list[Choice]] = {}
        for choice in self.pricing.priced:
            groups.setdefault(layout(choice), []).append(choice)
        return [self.pricing.table(choices) for choices in groups.values()]

    # ---- which engines there are

    def _engines(self, offer: Offer, form: Form) -> list[Engine]:
        if offer not in self._cuts:
            shapes = cuts(self.pricing.model, offer.profile.scale_up_domain)
            fitting = list(self._fitting(offer, form, shapes))
            self._cuts[offer] = [engine.cut for engine in fitting]
            return fitting
        return [self.pricing.engine(offer, cut, form) for cut in self._cuts[offer]]

    def _fitting(self, offer: Offer, form: Form, shapes: Iterable[Parallelism]) -> Iterator[Engine]:
        """Engines that memory holds with room for a request."""
        for cut in shapes:
            if cut.gpus > self.scenario.search.max_gpus:
                self.rejections.add(OVER_MAX_GPUS)
                continue
            engine = self.pricing.engine(offer, cut, form)
            try:
                most = self.pricing.most_sequences(Choice(engine, "decode", DECODE_BUDGET, "chunked"))
            except DoesNotFitError as error:
                self.rejections.add("weights do not fit in memory")
                self.rejections.memory = str(error)
                continue
            if most == 0:
                self.rejections.add("no room for the KV of one request")
                continue
            yield engine

    def _choices(
        self, engines: Iterable[Engine], role: str, budgets: Iterable[int], batchings: Iterable[str]
    ) -> list[Choice]:
        """With working memory for the token budget."""
        found = []
        for engine in engines:
            for batching in batchings:
                for budget in budgets:
                    choice = Choice(engine, role, budget, batching)  # type: ignore[arg-type]
                    if self.pricing.holds(choice):
                        found.append(choice)
        return found

    def _promising(self, engines: list[Engine]) -> list[Engine]:
        """Those that do prompts and decode at the least cost when they do one after the other."""
        if len(engines) <= COLOCATED_CUTS:
            return engines
        apart = [self.pricing.engine(engine.offer, engine.cut, "disaggregated") for engine in engines]
        decode = self._choices(apart, "decode", (DECODE_BUDGET,), (batching_of(engines[0].offer.stack),))
        prompts = self._choices(apart, "prefill", FIRST_PREFILL_BUDGETS[:1], (batching_of(engines[0].offer.stack),))
        d, p = self.pricing.table(decode), self.pricing.table(prompts)
        cap = np.maximum(1.0, most_at(d, self._limits(d).tpot_s))
        step = Place.on(d.steps.batches, cap).of(d.steps.decode_s)
        by_decode = cap / (self.pricing.demand.decode_steps(d.acceptance) * step)
        seconds = dict(zip((c.engine.cut for c in decode), (1 / by_decode).ravel().tolist(), strict=True))
        whole = dict(zip((c.engine.cut for c in prompts), p.steps.full_s[:, 0, 0].tolist(), strict=True))
        kept = [engine for engine in engines if engine.cut in seconds and engine.cut in whole]
        kept.sort(key=lambda engine: engine.gpus * (seconds[engine.cut] + whole[engine.cut]))
        return kept[:COLOCATED_CUTS]

    # ---- how large they have to be

    def _limits(self, table: PoolTable) -> Limits:
        """What each choice is sized for."""
        search, slo = self.scenario.search, self.scenario.slo
        asked = []
        for choice in table.choices:
            known = uncertainty_of(choice.engine.offer.profile, choice.engine.form, self.pricing.model.name)
            wanted = demand(slo, FULL_LOAD, known, search.confidence)
            asked.append((wanted.slo, wanted.load))
        return Limits.of(asked, slo.percentile)

    def _sized(
        self, choices: Sequence[Choice], size: Callable[[Pricing, PoolTable, Limits], Sized], reason: str
    ) -> list[SizedPool]:
        groups: dict[object, list[Choice]] = {}
        for choice in choices:
            groups.setdefault(layout(choice), []).append(choice)
        found: list[SizedPool] = []
        for several in groups.values():
            table = self.pricing.table(several)
            limits = self._limits(table)
            self._saw_idle(table, limits)
            found += self._kept(table, size(self.pricing, table, limits), reason)
        return found

    def _kept(self, table: PoolTable, sized: Sized, reason: str) -> Iterator[SizedPool]:
        for choice, count, sequences, usd in zip(
            table.choices, sized.instances[:, 0], sized.sequences[:, 0], table.usd[:, 0], strict=True
        ):
            if not count:
                self.rejections.add(reason)
                continue
            gpus = int(count) * choice.engine.gpus
            self.rejections.sized(choice.role, gpus)
            if gpus > self.scenario.search.max_gpus:
                self.rejections.add(OVER_MAX_GPUS)
                continue
            most = PREFILL_SEQUENCES if choice.role == "prefill" else int(sequences)
            yield SizedPool(choice, choice.pool(int(count), most), float(count * usd))

    def _improved(
        self, found: list[SizedPool], size: Callable[[Pricing, PoolTable, Limits], Sized]
    ) -> list[SizedPool]:
        """The cheapest, their token budgets moved while that makes one cheaper."""
        tried = {pool.choice for pool in found}
        for _ in range(ROUNDS):
            best = cheapest(found, REFINED)
            more = [choice for pool in best for choice in neighbours(pool.choice) if choice not in tried]
            tried.update(more)
            more = [choice for choice in more if self.pricing.holds(choice)]
            if not more:
                break
            added = self._sized(more, size, "another token budget does not keep the limits")
            found = found + added
            if not added or min(one.rank for one in added) >= best[0].rank:
                break
        return cheapest(found, KEPT_PER_POOL)

    def _saw_idle(self, table: PoolTable, limits: Limits) -> None:
        """Note what one request alone on an instance gets: no batch and no queue can be faster."""
        if table.choices[0].role != "prefill":
            step = Place.on(table.steps.batches, np.ones((len(table), 1))).of(table.steps.decode_s)
            self._saw("tpot_s", step / table.acceptance, limits.tpot_s, table)
        if table.choices[0].role != "decode":
            slowest = table.steps.lone_s[:, :, 0].max(axis=-1) + table.overhead_s
            self._saw("ttft_s", slowest, limits.ttft_s, table)

    def _saw(self, limit: str, values: Floats, allowed: Floats, table: PoolTable) -> None:
        row = int(np.argmin(values / allowed if np.isfinite(allowed).all() else values))
        self.rejections.saw(limit, float(values[row, 0]), float(allowed[row, 0]), str(table.choices[row].engine))


def cheapest(pools: Iterable[SizedPool], count: int) -> list[SizedPool]:
    """One for each cut, the cheapest first."""
    kept: dict[Engine, SizedPool] = {}
    for pool in sorted(pools, key=lambda one: one.rank):
        kept.setdefault(pool.choice.engine, pool)
    return list(kept.values())[:count]


def neighbours(choice: Choice, steps: Sequence[int] = (-2, -1, 1, 2)) -> list[Choice]:
    """With token budgets next to its own."""
    place = int(np.argmin([abs(budget - choice.budget) for budget in BUDGETS]))
    places = [place + step for step in steps if 0 <= place + step < len(BUDGETS)]
    return [Choice(choice.engine, choice.role, BUDGETS[at], choice.batching) for at in places]
