"""The planner's speed, and what it misses: `python -m benchmarks.planner --json F`.

designs_per_cpu_s: pool cuts with their sizes, priced under a fitted V4-Pro stack and estimated, on one core.
verified_plan_s: V4-Pro on 64 accelerators at most, simulations included.
regret_small_spaces: price of the plan over that of the cheapest design that holds, all of a small space simulated, - 1.
hand_search: price of the cheapest of random hand designs that holds over that of the plan; 1 where none is cheaper.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hw_profiles.catalog import load
from simulator.model.presets import load_model
from simulator.planner.design import Design
from simulator.planner.engines import Choice, Offer
from simulator.planner.estimate import estimates
from simulator.planner.pools import Pricing
from simulator.planner.refine import Refinement
from simulator.planner.search import plan
from simulator.planner.space import BUDGETS, DECODE_BUDGET, cuts
from simulator.planner.traffic import traffic_of
from simulator.planner.verify import Played, played
from simulator.scenario import Deployment, Pool, Scenario, Transfer, parse_scenario
from simulator.steady_state.open_loop import open_loop
from simulator.steady_state.policies import batchings_of

SEED = 20_261_201
PRICED = ("b300", "trtllm")  # whose fitted stack designs are priced under
SHARES = np.array([0.1, 0.2, 0.4, 0.7, 1.0])  # of the sequences that fit
INSTANCES = np.array([1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0])
MODELS = (("qwen3-30b-a3b", "h200"), ("gpt-oss-120b", "b200"), ("deepseek-v4-flash", "h200"), ("deepseek-v3", "b200"))
LOADS = ((10.0, 2000, 200), (30.0, 1000, 100), (6.0, 6000, 300))  # requests/s, prompt and output tokens
LIMITS = ((2.0, 0.03), (1.0, 0.05), (4.0, 0.02))  # TTFT and TPOT [s]
STACKS = ("vllm", "sglang", "trtllm")
HAND_BUDGETS = (256, 512, 1024, 2048, 4096, 8192, 16384)
SMALL_BUDGETS = (256, 1024, 4096)
MOST_SMALL = 3  # accelerators of a small space


def questions() -> list[Scenario]:
    """Twelve: four models, three loads, unlike limits, all stacks."""
    return [
        parse_scenario(
            {
                "model": model,
                "seed": SEED,
                "workload": {"kind": "open_loop", "rate": rate, "prompt": prompt, "output": output},
                "slo": {"ttft_s": LIMITS[(m + k) % 3][0], "tpot_s": LIMITS[(m + k) % 3][1]},
                "search": {"gpus": [gpu], "stacks": [STACKS[(m + 2 * k) % 3]], "simulate_top": 2},
            }
        )
        for m, (model, gpu) in enumerate(MODELS)
        for k, (rate, prompt, output) in enumerate(LOADS)
    ]


def pricing_of(scenario: Scenario) -> Pricing:
    traffic = traffic_of(scenario.one_workload(), scenario.seed)
    return Pricing(load_model(scenario.model), traffic, scenario.price_convention, Transfer())


def speed() -> dict[str, float]:
    """Decode and prefill cuts of V4-Pro with their sizes, priced and estimated."""
    scenario = parse_scenario(
        {"model": "deepseek-v4-pro", "workload": {"kind": "open_loop", "rate": 20.0, "prompt": 8192, "output": 1024}}
    )
    pricing = pricing_of(scenario)
    offer = Offer(*PRICED)
    engines = [pricing.engine(offer, cut, "disaggregated") for cut in cuts(pricing.model, 8)]
    start, designs = time.process_time(), 0
    for role, budgets in (("decode", (DECODE_BUDGET,)), ("prefill", BUDGETS)):
        several = [Choice(engine, role, budget, "chunked") for engine in engines for budget in budgets]
        table = pricing.table([choice for choice in several if pricing.holds(choice)])
        shares = SHARES if role == "decode" else SHARES[-1:]
        sizes = np.array(list(itertools.product(shares, INSTANCES)))
        sequences = np.maximum(1.0, table.most * sizes[:, 0])
        found = open_loop(pricing.alone(table, sizes[None, :, 1], sequences), np.array([[pricing.traffic.rate]]), 90.0)
        designs += found.tpot_s.size
    return {"designs": designs, "designs_per_cpu_s": designs / (time.process_time() - start)}


def verified_plan() -> float:
    """Seconds of V4-Pro on up to 64 accelerators."""
    scenario = parse_scenario(
        {
            "model": "deepseek-v4-pro",
            "workload": {"kind": "open_loop", "rate": 20.0, "prompt": 8192, "output": 1024},
            "slo": {"ttft_s": 3.0, "tpot_s": 0.05},
            "search": {"gpus": ["b300"], "max_gpus": 64},
        }
    )
    start = time.perf_counter()
    plan(scenario)
    return time.perf_counter() - start


def cheapest_that_holds(scenario: Scenario, deployments: Iterable[Deployment], below: float) -> tuple[float, int]:
    """USD per hour of the cheapest that holds when it is simulated, cheapest first; `below` where none is cheaper. And
    how many were simulated."""
    pricing = pricing_of(scenario)
    refinement = Refinement(scenario, pricing, lambda stage, done, total: None)
    designs = sorted(estimates(scenario, pricing, list(deployments)), key=lambda design: design.rank)
    count = 0
    for design in designs:
        if design.price >= below:
            break
        count += 1
        if played(Played(scenario, pricing.model.name, design, refinement.lifetime_s(design))).meets_slo:
            return design.price, count
    return below, count


def planned(scenario: Scenario) -> Design | None:
    """The plan's answer; None where nothing holds."""
    designs = plan(scenario).designs
    return designs[0] if designs and designs[0].meets_slo and designs[0].simulated else None


def fitting(pricing: Pricing, offer: Offer, most: int) -> list[Pool]:
    """A pool of one instance of each cut of at most so many accelerators that memory holds."""
    found = []
    for cut in cuts(pricing.model, load(offer.gpu).scale_up_domain):
        choice = Choice(pricing.engine(offer, cut, "disaggregated"), "decode", DECODE_BUDGET, "chunked")
        if cut.gpus <= most and pricing.holds(choice):
            found.append(choice.pool(1, pricing.most_sequences(choice)))
    return found


def small_space(scenario: Scenario) -> Iterator[Deployment]:
    """All designs of at most MOST_SMALL accelerators over three token budgets."""
    pricing = pricing_of(scenario)
    stack = scenario.search.stacks[0]
    pools = fitting(pricing, Offer(scenario.search.gpus[0], stack), MOST_SMALL)
    sized = [
        pool.model_copy(update={"instances": count, "max_tokens_per_step": budget, "batching": batchings_of(stack)[0]})
        for pool in pools
        for count in range(1, MOST_SMALL // pool.gpus + 1)
        for budget in SMALL_BUDGETS
    ]
    yield from (Deployment(colocated=pool) for pool in sized)
    for p, d in itertools.product(sized, sized):
        if p.gpus + d.gpus <= MOST_SMALL and d.max_tokens_per_step == SMALL_BUDGETS[-1]:
            yield Deployment(prefill=p, decode=d)


def hand_designs(scenario: Scenario, most_gpus: int, count: int, seed: int) -> list[Deployment]:
    """Random designs of up to so many accelerators."""
    rng = random.Random(seed)
    pricing = pricing_of(scenario)
    stack = scenario.search.stacks[0]
    pools = fitting(pricing, Offer(scenario.search.gpus[0], stack), most_gpus)

    def drawn(room: int) -> Pool:
        pool = rng.choice([one for one in pools if one.gpus <= room])
        sizes = {
            "instances": rng.randint(1, room // pool.gpus),
            "max_tokens_per_step": rng.choice(HAND_BUDGETS),
            "max_sequences": max(1, round(pool.sequence_limit * rng.choice([0.1, 0.25, 0.5, 1.0]))),
            "batching": rng.choice(batchings_of(stack)),
        }
        return pool.model_copy(update=sizes)

    found: list[Deployment] = []
    least = min(pool.gpus for pool in pools)
    while len(found) < count:
        if rng.random() < 0.5 or most_gpus < 2 * least:
            found.append(Deployment(colocated=drawn(most_gpus)))
            continue
        decode = drawn(most_gpus - least)
        if most_gpus - decode.gpus >= least:
            prefill = drawn(most_gpus - decode.gpus)
            found.append(Deployment(prefill=prefill, decode=decode))
    return found


def regrets(spaces: int) -> list[float]:
    found = []
    for scenario in questions():
        if len(found) == spaces:
            break
        keys = scenario.model_dump() | {"search": scenario.search.model_dump() | {"max_gpus": MOST_SMALL}}
        small = parse_scenario(keys)
        best = planned(small)
        if best is None:
            continue
        cheapest, _ = cheapest_that_holds(small, small_space(small), best.price)
        found.append(best.price / cheapest - 1)
    return found


def hand_search(count: int, asked: int) -> list[dict[str, Any]]:
    found = []
    for place, scenario in enumerate(questions()[:asked]):
        best = planned(scenario)
        if best is None:
            continue
        hand = hand_designs(scenario, best.deployment.gpus, count, SEED + place)
        cheapest, simulated = cheapest_that_holds(scenario, hand, best.price)
        found.append(
            {
                "model": scenario.model,
                "stack": scenario.search.stacks[0],
                "usd_per_hour": best.price,
                "ratio": cheapest / best.price,
                "designs": count,
                "simulated": simulated,
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--designs", type=int, default=200, help="random designs a question")
    parser.add_argument("--spaces", type=int, default=10)
    args = parser.parse_args()
    report: dict[str, Any] = dict(speed())
    report["verified_plan_s"] = verified_plan()
    report["regrets"] = regrets(args.spaces)
    report["regret_small_spaces"] = max(report["regrets"], default=None)
    report["hand_search"] = hand_search(args.designs, args.questions)
    print(json.dumps(report, indent=1))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
