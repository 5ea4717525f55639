"""From a question to a ranked table: enumerate, estimate, keep the cheapest, simulate the best."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from hw_profiles.catalog import load
from hw_profiles.profile import HardwareProfile
from simulator.model.architecture import ModelSpec
from simulator.model.engine import Form
from simulator.model.limits import TOKENS_PER_STEP
from simulator.model.memory import DoesNotFitError
from simulator.model.parallelism import Parallelism
from simulator.model.presets import load_model
from simulator.planner.design import Design, Plan
from simulator.planner.estimate import assumptions, estimate, handover_s, pool_cost
from simulator.planner.frontier import frontier
from simulator.planner.priced_instance import PricedInstance, in_form, price_instance
from simulator.planner.rejections import Rejections, binding_limit
from simulator.planner.sizing import MAX_UTILISATION, size_colocated, size_decode, size_prefill
from simulator.planner.space import (
    COLOCATED_BUDGETS,
    LONG_PROMPT,
    PREFILL_CHUNKS,
    context_parallel_cuts,
    cuts,
)
from simulator.planner.steady_state import PrefillTimes, prefill_times
from simulator.planner.traffic import Traffic, traffic_of
from simulator.planner.verify import check_designs
from simulator.progress import Progress
from simulator.scenario import Deployment, Pool, Scenario, ScenarioError, Slo, Transfer
from simulator.uncertainty.chances import Demand, demand
from simulator.uncertainty.spreads import uncertainty_of

KEPT_PER_POOL = 3  # cheapest cuts per accelerator and role that go on to be combined [assumed: enough]
# Prompts that a prefill instance works on at once, over all its ranks; a scenario's pool that names no max_sequences
# has simulator.scenario.SEQUENCES_PER_RANK, which is as many, on each of them. [sequences; assumed]
PREFILL_SEQUENCES = 512
TABLE_ROWS = 12  # of the answer [designs]
NOT_READ = (
    "pools are searched anew with chunked batching: the scenario's [deployment], with its batching, prefix cache and "
    "other options, is for `simulate`"
)
OVER_MAX_GPUS = "needs more accelerators than max_gpus"
ROWS_PER_PAIR = 2  # of those, with the same form and accelerators [designs]


def plan(scenario: Scenario, progress: Progress | None = None) -> Plan:
    """Rank cluster designs for the scenario's model, traffic and limits.

    progress(stage, done, total) is called as work goes on.
    Raises ValueError (ScenarioError, CatalogError, ModelError) for what cannot be asked; a question that no design
    answers returns a Plan with no designs and `binding` set.
    """
    report = progress or (lambda stage, done, total: None)
    model = load_model(scenario.model)
    traffic = traffic_of(scenario.one_workload(), scenario.seed)
    _check_lengths(model, traffic)
    hardware = [load(name, scenario.search.stack) for name in dict.fromkeys(scenario.search.gpus)]
    found = _Search(scenario, model, traffic, Rejections())
    candidates = [e for profile in hardware for e in found.candidates(profile, cuts(model, profile.scale_up_domain))]
    if max(traffic.prompts) >= LONG_PROMPT and "disaggregated" in scenario.search.forms:
        for profile in hardware:
            found.prefill_only += found.candidates(profile, context_parallel_cuts(model, profile.scale_up_domain))
    deployments: list[Deployment] = []
    for form, deployed in (("disaggregated", found.disaggregated), ("colocated", found.colocated)):
        if form in scenario.search.forms:
            report(f"sizing {form} pools", len(deployments), 0)
            deployments += deployed(candidates)
    designs = [estimate(scenario, model, traffic, deployment) for deployment in deployments]
    ranked = check_designs(scenario, model, traffic, _table(designs), report)
    return Plan(
        model=model.name,
        traffic=traffic.description,
        slo=scenario.slo,
        confidence=scenario.search.confidence,
        price_convention=scenario.price_convention,
        designs=tuple(ranked),
        frontier=frontier(scenario, traffic, candidates),
        rejected=dict(found.rejections.counts.most_common()),
        binding=None if ranked else binding_limit(found.rejections, scenario.slo, scenario.search.max_gpus),
        assumptions=(*assumptions(model, hardware), *(() if scenario.deployment is None else (NOT_READ,))),
    )


def _check_lengths(model: ModelSpec, traffic: Traffic) -> None:
    longest = max(p + o for p, o in zip(traffic.prompts, traffic.outputs, strict=True))
    if longest > model.max_positions:
        raise ScenarioError(
            f"prompt + output reaches {longest} tokens but {model.name} takes at most {model.max_positions}; "
            "shorten workload.prompt or workload.output"
        )


class _Search:
    """The candidates of one question, and why others were turned down."""

    def __init__(self, scenario: Scenario, model: ModelSpec, traffic: Traffic, rejections: Rejections) -> None:
        self.scenario = scenario
        self.model = model
        self.traffic = traffic
        self.rejections = rejections
        self.search = scenario.search
        self.prefill_only: list[PricedInstance] = []  # cuts that do nothing for decode

    def candidates(self, hardware: HardwareProfile, shapes: list[Parallelism]) -> Iterator[PricedInstance]:
        """An instance of each cut that the accelerator's memory holds, priced as in colocated serving."""
        for cut in shapes:
            if cut.gpus > self.search.max_gpus:
                self.rejections.add(OVER_MAX_GPUS)
                continue
            pool = Pool(
                gpu=hardware.name,
                stack=self.search.stack,
                tp=cut.tp,
                dp=cut.dp,
                ep=cut.ep,
                cp=cut.cp,
                draft_tokens=self.search.draft_tokens,
                acceptance_length=self.search.acceptance_length,
            )
            try:
                priced = price_instance(self.model, pool, "colocated")
            except DoesNotFitError as error:
                self.rejections.add("weights do not fit in memory")
                self.rejections.memory = str(error)
                continue
            if priced.sequence_limit(self.traffic) == 0:
                self.rejections.add("no room for the KV of one request")
                continue
            yield priced

    def disaggregated(self, candidates: list[PricedInstance]) -> list[Deployment]:
        both, alone = ([in_form(e, "disaggregated") for e in some] for some in (candidates, self.prefill_only))
        prefill = self._cheapest([pool for priced in (*both, *alone) for pool in self._prefill(priced)])
        decode = self._cheapest([pool for priced in both for pool in self._decode(priced)])
        found = []
        for p, d in itertools.product(prefill, decode):
            if p.gpu != d.gpu and not self.search.mixed_pools:
                continue
            if p.gpus + d.gpus > self.search.max_gpus:
                self.rejections.add(OVER_MAX_GPUS)
                continue
            found.append(Deployment(prefill=p, decode=d))
        return found

    def _prefill(self, priced: PricedInstance) -> Iterator[Pool]:
        asked = self._asked(priced, "disaggregated")
        for chunk in PREFILL_CHUNKS:
            times = prefill_times(priced, self.traffic, chunk)
            self._saw_idle(priced, asked.slo, times)
            instances = size_prefill(priced, self.traffic, times, asked.slo, asked.load)
            if instances is None:
                self.rejections.add("prefill: TTFT above the limit")
            elif self._allowed("prefill", priced, instances):
                yield self._pool(priced, instances, chunk, PREFILL_SEQUENCES)

    def _decode(self, priced: PricedInstance) -> Iterator[Pool]:
        prompt = round(self.traffic.mean_prompt)
        stall = handover_s(self.model, prompt, priced.hardware, priced.parallelism, Transfer())
        asked = self._asked(priced, "disaggregated")
        self._saw_idle(priced, asked.slo)
        size = size_decode(priced, self.traffic, stall, asked.slo, asked.load)
        if size is None:
            self.rejections.add("decode: TPOT above the limit")
        elif self._allowed("decode", priced, size.instances):
            yield self._pool(priced, size.instances, TOKENS_PER_STEP, size.max_sequences)

    def colocated(self, candidates: list[PricedInstance]) -> list[Deployment]:
        pools = [pool for priced in candidates for pool in self._colocated(priced)]
        return [Deployment(colocated=pool) for pool in self._cheapest(pools)]

    def _colocated(self, priced: PricedInstance) -> Iterator[Pool]:
        asked = self._asked(priced, "colocated")
        for budget in COLOCATED_BUDGETS:
            size = size_colocated(priced, self.traffic, budget, asked.slo, asked.load)
            if size is None:
                self.rejections.add("colocated: TTFT or TPOT above the limit")
                self._saw_idle(priced, asked.slo, prefill_times(priced, self.traffic, budget))
            elif self._allowed("colocated", priced, size.instances):
                yield self._pool(priced, size.instances, budget, size.max_sequences)

    def _asked(self, priced: PricedInstance, form: Form) -> Demand:
        """Limits and load to size a pool of such instances for."""
        known = uncertainty_of(priced.hardware, form, self.model.name)
        return demand(self.scenario.slo, MAX_UTILISATION, known, self.search.confidence)

    def _saw_idle(self, priced: PricedInstance, slo: Slo, times: PrefillTimes | None = None) -> None:
        """Note what one request alone on the instance gets: no batch and no queue can be faster."""
        self.rejections.saw("tpot_s", priced.tpot_s(self.traffic, 1), slo.tpot_s, _label(priced))
        if times is not None:
            slowest = max(times.own_s) + priced.latency.first_token_extra_s
            self.rejections.saw("ttft_s", slowest, slo.ttft_s, _label(priced))

    def _allowed(self, role: str, priced: PricedInstance, instances: int) -> bool:
        """Whether the pool stays within max_gpus; the smallest pool of each role is remembered."""
        gpus = instances * priced.parallelism.gpus
        self.rejections.sized(role, gpus)
        if gpus > self.search.max_gpus:
            self.rejections.add(OVER_MAX_GPUS)
        return gpus <= self.search.max_gpus

    def _pool(self, priced: PricedInstance, instances: int, tokens: int, sequences: int) -> Pool:
        cut = priced.parallelism
        return Pool(
            gpu=priced.hardware.name,
            stack=self.search.stack,
            instances=instances,
            tp=cut.tp,
            dp=cut.dp,
            ep=cut.ep,
            cp=cut.cp,
            max_tokens_per_step=tokens,
            max_sequences=sequences,
            draft_tokens=self.search.draft_tokens,
            acceptance_length=self.search.acceptance_length,
        )

    def _cheapest(self, pools: list[Pool]) -> list[Pool]:
        """The cheapest few cuts of each accelerator, one step size each."""
        kept: list[Pool] = []
        for gpu in dict.fromkeys(pool.gpu for pool in pools):
            per_cut: dict[object, Pool] = {}
            for pool in sorted((p for p in pools if p.gpu == gpu), key=self._cost):
                per_cut.setdefault(pool.parallelism, pool)
            kept += list(per_cut.values())[:KEPT_PER_POOL]
        return kept

    def _cost(self, pool: Pool) -> tuple[float, int]:
        hardware = load(pool.gpu, pool.stack)
        cost = pool_cost(pool, hardware, self.scenario.price_convention, 0.0)
        return (cost.usd_per_hour if cost else float("inf"), pool.gpus)


def _label(priced: PricedInstance) -> str:
    return f"{priced.hardware.name} {priced.parallelism}"


def _table(designs: list[Design]) -> list[Design]:
    """Cheapest first, with at most a few rows for the same form and accelerators."""
    rows: list[Design] = []
    seen: dict[tuple[str, ...], int] = {}
    for design in sorted(designs, key=lambda d: (not d.meets_slo, *d.cost_rank)):
        key = (design.form, *(pool.gpu for pool in design.deployment.groups))
        if seen.get(key, 0) < ROWS_PER_PAIR:
            seen[key] = seen.get(key, 0) + 1
            rows.append(design)
    return rows[:TABLE_ROWS]
