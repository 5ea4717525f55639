"""From a question to a ranked table: size pools, estimate designs, keep the cheapest ideas, simulate the best."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from hw_profiles.catalog import stacks_of
from simulator.model.architecture import ModelSpec
from simulator.model.engine import form_of
from simulator.planner.candidates import OVER_MAX_GPUS, Candidates, SizedPool
from simulator.planner.design import Design, Plan
from simulator.planner.engines import Offer
from simulator.planner.estimate import assumptions, estimates
from simulator.planner.frontier import frontier
from simulator.planner.offers import LeftOut, drafts_assumed, not_offered, offered, own_stacks, unpriced, usd
from simulator.planner.pools import Pricing
from simulator.planner.refine import Idea, Refinement
from simulator.planner.rejections import binding_limit
from simulator.planner.traffic import Traffic, traffic_of
from simulator.planner.verify import as_scenario
from simulator.progress import Progress
from simulator.scenario import Deployment, PrefixCacheKeys, Scenario, ScenarioError, Transfer, model_of

TABLE_ROWS = 12  # of the answer [designs]
LEAST_SAVED = 0.05  # of the cost, for an accelerator that was not offered to be named [assumed]
CONFIDENT = 0.8  # chance that the second design of the headline keeps each limit with
# Estimated designs of an idea that its refinement may choose from,
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
    model = model_of(scenario.model, knobs=scenario.search)
    traffic = traffic_of(scenario.one_workload(), scenario.seed)
    _check_lengths(model, traffic)
    pricing = Pricing(model, traffic, scenario.price_convention, Transfer())
    offers = offered(scenario, model)
    found = Candidates(scenario, pricing, offers)
    report("sizing pools", 0, 0)
    ideas = _ideas(estimated(scenario, found))
    refinement = Refinement(scenario, pricing, report)
    _simulate(scenario, refinement, ideas)
    ranked = _ranked(ideas)
    used = _used(offers, ranked)
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
            *assumptions(model, [offer.profile for offer in used or offers]),
            *drafts_assumed(scenario, used or offers),
            *scenario.costs.said,
            *(() if scenario.deployment is None else (NOT_READ,)),
        ),
        own_stacks=tuple(own_stacks(scenario)),
        sure=_sure(scenario, found, ranked),
        cheaper=_cheaper(scenario, found, ranked[0]) if ranked else (),
        scenarios=tuple(_to_simulate(scenario, refinement, rank, design) for rank, design in enumerate(ranked, 1)),
    )


def estimated(scenario: Scenario, found: Candidates) -> list[Design]:
    """Of the cheapest pools in each form that is asked for."""
    forms = {"disaggregated": _disaggregated, "colocated": _colocated}
    deployments = [one for form in forms if form in scenario.search.forms for one in forms[form](scenario, found)]
    return estimates(scenario, found.pricing, deployments)


def _sure(scenario: Scenario, found: Candidates, ranked: Sequence[Design]) -> Design | None:
    """The cheapest design of what the best is made of that is estimated to keep each limit with CONFIDENT chance.

    None where there is none, or where the question demands a chance of its own.
    """
    if not ranked or scenario.search.confidence is not None or not scenario.slo.limits:
        return None
    wary = scenario.model_copy(
        update={"search": scenario.search.model_copy(update={"confidence": CONFIDENT, "simulate_top": 0})}
    )
    designs = estimated(wary, Candidates(wary, found.pricing, _used(found.offered, ranked[:1])))
    return min((design for design in designs if design.meets_slo), key=lambda d: d.rank, default=None)


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
        if (a.stack, a.draft_tokens) != (b.stack, b.draft_tokens) or (
            a.gpu != b.gpu and not scenario.search.mixed_pools
        ):
            continue
        if p.pool.gpus + d.pool.gpus > scenario.search.max_gpus:
            found.rejections.add(OVER_MAX_GPUS)
            continue
        pairs.append((p, d))
    cache = _cache(found)
    return [Deployment(prefill=p.pool, decode=d.pool, prefix_cache=cache) for p, d in _cheap(pairs)]


def _cheap(pairs: list[tuple[SizedPool, SizedPool]]) -> Iterator[tuple[SizedPool, SizedPool]]:
    """Of each idea those that cost least."""
    seen: dict[object, int] = {}
    for p, d in sorted(pairs, key=lambda pair: (pair[0].usd + pair[1].usd, pair[0].pool.gpus + pair[1].pool.gpus)):
        key = (p.choice.engine.offer, d.choice.engine.offer)
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= PER_IDEA:
            yield p, d


def _colocated(scenario: Scenario, found: Candidates) -> list[Deployment]:
    return [Deployment(colocated=one.pool, prefix_cache=_cache(found)) for one in found.colocated()]


def _cache(found: Candidates) -> PrefixCacheKeys | None:
    """A prefix cache where prompts begin alike: engines have it on."""
    return PrefixCacheKeys() if found.pricing.traffic.cached else None


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


def _to_simulate(scenario: Scenario, refinement: Refinement, rank: int, design: Design) -> Scenario:
    """The design as it was played, or would be."""
    played = as_scenario(scenario, design.deployment, refinement.lifetime_s(design))
    return played.model_copy(update={"name": f"design {rank} for {scenario.model}"})


def _used(offers: Sequence[Offer], ranked: Iterable[Design]) -> list[Offer]:
    """Offers that some design was made of."""
    made_of = {(pool.gpu, pool.stack, pool.draft_tokens) for design in ranked for pool in design.deployment.groups}
    return [offer for offer in offers if (offer.gpu, offer.stack, offer.draft_tokens) in made_of]


def _cheaper(scenario: Scenario, found: Candidates, best: Design) -> tuple[LeftOut, ...]:
    """Accelerators of the same vendor that were not offered and may cost less, the cheapest first."""
    entry = best.deployment.groups[-1]
    stack, form = entry.stack, form_of(not best.deployment.colocated)
    knobs = unpriced(entry)
    here = min(
        found.gpu_seconds(Offer(pool.gpu, stack, entry.draft_tokens, entry.acceptance_length, knobs), form)
        * usd(pool.gpu, scenario)
        for pool in best.deployment.groups
    )
    seen = []
    for gpu in not_offered(scenario, entry.gpu):
        if stack not in stacks_of(gpu)[0]:
            continue
        offer = Offer(gpu, stack, entry.draft_tokens, entry.acceptance_length, knobs)
        price = usd(gpu, scenario)
        saves = 1 - found.gpu_seconds(offer, form) * price / here
        if saves > LEAST_SAVED:
            seen.append(LeftOut(gpu, stack, price, saves))
    return tuple(sorted(seen, key=lambda one: -one.saves))


def _ranked(ideas: Sequence[Idea]) -> list[Design]:
    """One design an idea: cheapest inside the limits first, simulated before estimated at equal cost; simulated and
    outside the limits last."""
    rows = [idea.best for idea in ideas]
    return sorted(rows, key=lambda d: (not d.meets_slo, *d.rank[:2], d.simulated is None, d.violation))[:TABLE_ROWS]
