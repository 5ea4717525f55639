"""Pools that could serve the traffic: cuts that memory holds, priced, sized, the cheapest kept.

Cheap looks come first: memory, then steps that only decode, then prompts alone at a few token budgets, and prompts
beside decode last, for the cuts that were cheap before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from simulator.model.arrays import Floats
from simulator.model.engine import Form
from simulator.model.memory import DoesNotFitError
from simulator.model.parallelism import Parallelism
from simulator.planner.engines import Choice, Offer, ServingEngine
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
from simulator.uncertainty.spreads import Role, uncertainty_of

KEPT_PER_POOL = 5  # cheapest choices per offer and role that go on to be combined [assumed: enough]
COLOCATED_CUTS = 5  # per offer whose prompts are priced beside decode [assumed: enough]
REFINED = 3  # choices per offer and role whose other token budgets are looked at [assumed: enough]
ROUNDS = 3  # of that
LOOKED_AT = 5  # cuts of an accelerator that its stacks are compared by [assumed: enough]
STACKS, CLOSE = 2, 1.15  # of it that go on: so many, and only those within that factor of the best [assumed]
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
        self.scenario, self.pricing, self.offered = scenario, pricing, offers
        self.rejections = Rejections()
        self._cuts: dict[Offer, list[Parallelism]] = {}
        self._best: dict[Form, list[Offer]] = {}

    def prefill(self) -> list[SizedPool]:
        long = max(self.pricing.traffic.prompts) >= LONG_PROMPT
        first: list[Choice] = []
        for offer in self.offers("disaggregated"):
            engines = self._engines(offer, "disaggregated")
            if long:
                extra = context_parallel_cuts(self.pricing.model, offer.profile.scale_up_domain)
                engines += self._fitting(offer, "disaggregated", extra)
            first += self._choices(engines, "prefill", FIRST_PREFILL_BUDGETS, (batching_of(offer.stack),))
        return self._improved(first, size_prefill, "prefill: TTFT above the limit")

    def decode(self) -> list[SizedPool]:
        choices: list[Choice] = []
        for offer in self.offers("disaggregated"):
            engines = self._engines(offer, "disaggregated")
            choices += self._choices(engines, "decode", (DECODE_BUDGET,), (batching_of(offer.stack),))
        return cheapest(self._sized(choices, size_decode, "decode: TPOT above the limit"), KEPT_PER_POOL)

    def colocated(self) -> list[SizedPool]:
        first: list[Choice] = []
        for offer in self.offers("colocated"):
            engines = self._promising(self._engines(offer, "colocated"))
            first += self._choices(engines, "colocated", FIRST_COLOCATED_BUDGETS, batchings_of(offer.stack))
        return self._improved(first, size_colocated, "colocated: TTFT or TPOT above the limit")

    def offers(self, form: Form) -> list[Offer]:
        """Of an accelerator whose stack is not named, those that do most with it, by a few cuts; so of drafts."""
        if form not in self._best:
            self._best[form] = list(self._best_offers(form))
        return self._best[form]

    def _best_offers(self, form: Form) -> Iterator[Offer]:
        named = bool(self.scenario.search.stacks)
        groups: dict[object, list[Offer]] = {}
        for offer in self.offered:
            groups.setdefault((offer.gpu, offer.stack if named else ""), []).append(offer)
        for mine in groups.values():
            worth = {offer: self.gpu_seconds(offer, form) for offer in mine} if len(mine) > 1 else {}
            best = sorted(mine, key=lambda offer: worth.get(offer, 0.0))[:STACKS]
            yield from (offer for offer in best if not worth or worth[offer] <= CLOSE * worth[best[0]])

    def gpu_seconds(self, offer: Offer, form: Form) -> float:
        """What a request takes of the accelerator at best, over a few cuts; infinite where none keeps the TPOT limit.
        [GPU s]"""
        engines = self._engines(offer, form)
        alike = [engine for engine in engines if engine.cut.tp == 1] or engines
        some = [alike[place] for place in sorted({round(p) for p in np.linspace(0, len(alike) - 1, LOOKED_AT)})]
        by_decode, by_prompts = self._apart(some) if some else ({}, {})
        both = [engine.gpus * (by_decode[engine] + by_prompts[engine]) for engine in by_decode if engine in by_prompts]
        if form == "colocated" or not both:
            return min(both, default=np.inf)
        return min(e.gpus * s for e, s in by_decode.items()) + min(e.gpus * s for e, s in by_prompts.items())

    def _apart(self, engines: Sequence[ServingEngine]) -> tuple[dict[ServingEngine, float], dict[ServingEngine, float]]:
        """Seconds of an instance for a request's decode, at the most sequences that keep TPOT, and for its prompt."""
        decode = [c for e in engines for c in self._choices([e], "decode", (DECODE_BUDGET,), _default(e))]
        prompts = [c for e in engines for c in self._choices([e], "prefill", FIRST_PREFILL_BUDGETS, _default(e))]
        if not decode or not prompts:
            return {}, {}
        d, p = self.pricing.table(decode), self.pricing.table(prompts)
        cap = most_at(d, self._limits(d).tpot_s)
        step = Place.on(d.steps.batches, np.maximum(cap, 1.0)).of(d.steps.decode_s)
        with np.errstate(divide="ignore"):
            seconds = self.pricing.demand.decode_steps(d.acceptance) * step / np.floor(cap)
        return (
            dict(zip((c.engine for c in decode), seconds[:, 0].tolist(), strict=True)),
            dict(zip((c.engine for c in prompts), p.steps.full_s[:, 0, 0].tolist(), strict=True)),
        )

    def tables(self) -> list[PoolTable]:
        """All that was priced, by layout."""
        groups: dict[object, list[Choice]] = {}
        for choice in self.pricing.priced:
            groups.setdefault(layout(choice), []).append(choice)
        return [self.pricing.table(choices) for choices in groups.values()]

    # ---- which engines there are

    def _engines(self, offer: Offer, form: Form) -> list[ServingEngine]:
        if offer not in self._cuts:
            shapes = cuts(self.pricing.model, offer.profile.scale_up_domain)
            fitting = list(self._fitting(offer, form, shapes))
            self._cuts[offer] = [engine.cut for engine in fitting]
            return fitting
        return [self.pricing.engine(offer, cut, form) for cut in self._cuts[offer]]

    def _fitting(self, offer: Offer, form: Form, shapes: Iterable[Parallelism]) -> Iterator[ServingEngine]:
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
        self, engines: Iterable[ServingEngine], role: str, budgets: Iterable[int], batchings: Iterable[str]
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

    def _promising(self, engines: list[ServingEngine]) -> list[ServingEngine]:
        """Those that do prompts and decode at the least cost when they do one after the other."""
        by_decode, by_prompts = self._apart(engines)
        kept = [engine for engine in engines if engine in by_decode and engine in by_prompts]
        kept.sort(key=lambda engine: engine.gpus * (by_decode[engine] + by_prompts[engine]))
        return kept[:COLOCATED_CUTS]

    # ---- how large they have to be

    def _limits(self, table: PoolTable) -> Limits:
        """What each choice is sized for."""
        search, slo = self.scenario.search, self.scenario.slo
        if not self.pricing.demand.several.item():
            slo = slo.model_copy(update={"tpot_s": None})  # no request has a second token
        if search.confidence is None:
            return Limits.of([(slo, FULL_LOAD)] * len(table), slo.percentile)
        asked = []
        for choice in table.choices:
            engine, role = choice.engine, cast(Role, choice.role)
            known = uncertainty_of(engine.offer.profile, engine.model, engine.cut, engine.offer.draft_tokens, role)
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
        self, first: Sequence[Choice], size: Callable[[Pricing, PoolTable, Limits], Sized], reason: str
    ) -> list[SizedPool]:
        """The cheapest, their token budgets moved while that makes one cheaper."""
        found = self._sized(first, size, reason)
        tried = set(first)
        for _ in range(ROUNDS):
            best = cheapest(found, REFINED)
            more = [choice for pool in best for choice in neighbours(pool.choice) if choice not in tried]
            tried.update(more)
            more = [choice for choice in more if self.pricing.holds(choice)]
            added = self._sized(more, size, "another token budget does not keep the limits")
            before = {pool.choice.engine: pool.rank for pool in best}
            found = found + added
            if all(pool.rank >= before[pool.choice.engine] for pool in added):
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


def _default(engine: ServingEngine) -> tuple[str, ...]:
    return (batching_of(engine.offer.stack),)


def cheapest(pools: Iterable[SizedPool], count: int) -> list[SizedPool]:
    """Of each offer the cheapest, one for each cut."""
    kept: dict[Offer, dict[ServingEngine, SizedPool]] = {}
    for pool in sorted(pools, key=lambda one: one.rank):
        kept.setdefault(pool.choice.engine.offer, {}).setdefault(pool.choice.engine, pool)
    return [pool for mine in kept.values() for pool in list(mine.values())[:count]]


def neighbours(choice: Choice, steps: Sequence[int] = (-2, -1, 1, 2)) -> list[Choice]:
    """With token budgets next to its own."""
    place = int(np.argmin([abs(budget - choice.budget) for budget in BUDGETS]))
    places = [place + step for step in steps if 0 <= place + step < len(BUDGETS)]
    return [Choice(choice.engine, choice.role, BUDGETS[at], choice.batching) for at in places]
