"""The most traffic that a number of accelerators carries inside the limits."""

from __future__ import annotations

from dataclasses import replace

from simulator.model.presets import load_model
from simulator.planner.candidates import Candidates
from simulator.planner.design import Design, Plan
from simulator.planner.offers import offered
from simulator.planner.pools import Pricing
from simulator.planner.search import estimated, plan
from simulator.planner.traffic import traffic_of
from simulator.progress import Progress
from simulator.scenario import OpenLoop, Scenario, ScenarioError, Transfer

WIDENINGS = 24  # doublings of the rate, or halvings, until one does not fit, or does [assumed: a factor of 10^7]
HALVINGS = 6  # of the interval between the two, on logarithms: to 1%
BELOW = (1.0, 0.97, 0.93, 0.88, 0.8)  # shares of the estimated rate that are simulated until a design holds [assumed]


def most_traffic(scenario: Scenario, gpus: int, progress: Progress | None = None) -> Plan:
    """The plan for the highest rate at which a design of at most `gpus` accelerators holds, found to within a few
    percent: by bisection over estimates, then simulated there. Raises ScenarioError for traffic without a rate."""
    if not isinstance(scenario.workload, OpenLoop):
        raise ScenarioError(
            "--gpus asks for the highest rate, which only an open_loop has; give --rate, --isl and --osl"
        )
    report = progress or (lambda stage, done, total: None)
    model = load_model(scenario.model)
    pricing = Pricing(model, traffic_of(scenario.workload, scenario.seed), scenario.price_convention, Transfer())
    asked = scenario.model_copy(update={"search": scenario.search.model_copy(update={"max_gpus": gpus})})
    offers = offered(asked, model)

    def fits(rate: float) -> bool:
        at_rate = pricing.at(rate)
        return any(d.meets_slo for d in estimated(asked, Candidates(asked, at_rate, offers)))

    report("looking for the highest rate", 0, 0)
    low = high = scenario.workload.rate
    for _ in range(WIDENINGS):
        if fits(high):
            low, high = high, 2 * high
        elif low < high:
            break
        else:
            low = high = high / 2
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if fits(middle) else (low, middle)
    answer = plan(_at(asked, low * BELOW[0]), progress)
    for share in BELOW[1:]:
        if answer.designs and answer.designs[0].meets_slo:
            break
        answer = plan(_at(asked, low * share), progress)
    return replace(answer, idle=_idle(answer.designs[0], gpus) if answer.designs else None)


def _at(scenario: Scenario, rate: float) -> Scenario:
    """Rounded to three digits, as people write rates."""
    assert isinstance(scenario.workload, OpenLoop)
    return scenario.model_copy(update={"workload": scenario.workload.model_copy(update={"rate": float(f"{rate:.3g}")})})


def _idle(best: Design, gpus: int) -> str | None:
    """Why accelerators of the budget are not used by the best design; None where all are."""
    left = gpus - best.deployment.gpus
    if not left:
        return None
    smallest = min(pool.gpus_per_instance for pool in best.deployment.groups)
    if left < smallest:
        return f"{left} of {gpus} accelerators stay idle: an instance has at least {smallest}"
    return f"{left} of {gpus} accelerators stay idle: as estimated, no design carries a higher rate with them"
