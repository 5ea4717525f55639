"""From a question to a ranked table: size pools, estimate designs, keep the cheapest of each idea, simulate the best."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from hw_profiles.catalog import load, stacks_of
from simulator.model.architecture import ModelSpec
from simulator.model.presets import load_model
from simulator.planner.candidates import OVER_MAX_GPUS, Candidates, SizedPool
from simulator.planner.design import Design, Plan
from simulator.planner.engines import Offer
from simulator.planner.estimate import assumptions, estimates
from simulator.planner.frontier import frontier
from simulator.planner.pools import Pricing
from simulator.planner.refine import Idea, Refinement
from simulator.planner.rejections import binding_limit
from simulator.planner.traffic import Traffic, traffic_of
from simulator.progress import Progress
from simulator.scenario import Deployment, Scenario, ScenarioError, Transfer

TABLE_ROWS = 12  # of the answer [designs]
# Estimated designs of an idea that its refinement may choose from, and how far above its limits one may be estimated.
PER_IDEA = 24
NOT_READ = (
    "pools are searched anew: the scenario's [deployment], with its batching, prefix cache and other options, is for "
    "`simulate`"
)


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
    pricing = Pricing(model, traffic, scenario.price_convention, Transfer())
    offers = offered(scenario)
    found = Candidates(scenario, pricing, offers)
    deployments: list[Deployment] = []
    for form, deployed in (("disaggregated", _disaggregated), ("colocated", _colocated)):
        if form in scenario.search.forms:
            report(f"sizing {form} pools", len(deployments), 0)
            deployments += deployed(scenario, found)
    designs = estimates(scenario, pricing, deployments)
    ideas = _ideas(designs)
    _simulate(scenario, Refinement(scenario, pricing, report), ideas)
    ranked = _ranked(ideas)
    return Plan(
        model=model.name,
        traffic=traffic.description,
        slo=scenario.slo,
        confidence=scenario.search.confidence,
        price_convention=scenario.price_convention,
        designs=tuple(ranked),
        frontier=frontier(scenario, pricing, found.tables()),
        rejected=dict(found.rejections.counts.most_common()),
        binding=None if ranked else binding_limit(found.rejections, scenario.slo, scenario.search.max_gpus),
        assumptions=(
            *assumptions(model, [offer.profile for offer in offers]),
            *(() if scenario.deployment is None else (NOT_READ,)),
        ),
    )


def offered(scenario: Scenario) -> list[Offer]:
    """Accelerators and stacks to choose from."""
    search = scenario.search
    found = []
    for gpu in dict.fromkeys(search.gpus):
        stacks = search.stacks or stacks_of(gpu)[0]
        for stack in stacks:
            load(gpu, stack)  # refuses what is not known
            found.append(Offer(gpu, stack, search.draft_tokens, search.acceptance_length))
    return list(dict.fromkeys(found))


def _check_lengths(model: ModelSpec, traffic: Traffic) -> None:
    longest = max(p + o for p, o in zip(traffic.prompts, traffic.outputs, strict=True))
    if longest > model.max_positions:
        raise ScenarioError(
            f"prompt + output reaches {longest} tokens but {model.name} takes at most {model.max_positions}; "
            "shorten workload.prompt or workload.output"
        )


def _disaggregated(scenario: Scenario, found: Candidates) -> list[Deployment]:
    """Pairs of pools. Pools of one stack hand KV to each other, of unlike accelerators where those may be mixed."""
    pairs = []
    for p, d in itertools.product(found.prefill(), found.decode()):
        a, b = p.choice.engine.offer, d.choice.engine.offer
        if a.stack != b.stack or (a.gpu != b.gpu and not scenario.search.mixed_pools):
            continue
        if p.pool.gpus + d.pool.gpus > scenario.search.max_gpus:
            found.rejections.add(OVER_MAX_GPUS)
            continue
        pairs.append((p, d))
    return [Deployment(prefill=p.pool, decode=d.pool) for p, d in _cheap(pairs)]


def _cheap(pairs: list[tuple[SizedPool, SizedPool]]) -> Iterator[tuple[SizedPool, SizedPool]]:
    """Of each idea those that cost least."""
    seen: dict[object, int] = {}
    for p, d in sorted(pairs, key=lambda pair: (pair[0].usd + pair[1].usd, pair[0].pool.gpus + pair[1].pool.gpus)):
        key = (p.choice.engine.offer, d.choice.engine.offer)
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= PER_IDEA:
            yield p, d


def _colocated(scenario: Scenario, found: Candidates) -> list[Deployment]:
    return [Deployment(colocated=one.pool) for one in found.colocated()]


def _ideas(designs: Iterable[Design]) -> list[Idea]:
    """Designs by form and accelerators, of each the stack that costs least."""
    by_stack: dict[object, list[Design]] = {}
    for design in sorted(designs, key=lambda d: (not d.meets_slo, d.rank)):
        pools = design.deployment.groups
        key = (design.form, *((pool.gpu, pool.stack) for pool in pools))
        by_stack.setdefault(key, []).append(design)
    best: dict[object, list[Design]] = {}
    for several in by_stack.values():
        key = (several[0].form, *(pool.gpu for pool in several[0].deployment.groups))
        if key not in best or several[0].rank < best[key][0].rank:
            best[key] = several
    return [Idea(several) for several in sorted(best.values(), key=lambda s: (not s[0].meets_slo, s[0].rank))]


def _simulate(scenario: Scenario, refinement: Refinement, ideas: Sequence[Idea]) -> None:
    """The best idea of each form first, then the cheapest of the rest, `simulate_top` in all."""
    top = scenario.search.simulate_top
    first = list({idea.designs[0].form: idea for idea in reversed(ideas)}.values())[::-1][:top]
    refinement.refine(first)
    rest = [idea for idea in ideas if all(idea is not other for other in first)][: max(0, top - len(first))]
    if rest:
        refinement.refine(rest)


def _ranked(ideas: Sequence[Idea]) -> list[Design]:
    """One design an idea: cheapest inside the limits first, simulated before estimated at equal cost; simulated and
    outside the limits last."""
    rows = [idea.best for idea in ideas]
    return sorted(rows, key=lambda d: (not d.meets_slo, *d.rank[:2], d.simulated is None, d.violation))[:TABLE_ROWS]
