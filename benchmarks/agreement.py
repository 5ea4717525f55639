"""Steady state against the discrete-event model: `python -m benchmarks.agreement --json F [--points POINTS.csv]`.

Random scenarios of closed and open loop over models, accelerators, cuts, policies, lengths and loads; of each metric
the median and the 90th percentile of |steady / des - 1|. TTFT is compared where nothing is saturated. With measured
points also `validate` against `validate --by des` on some of their rows, drawn at random.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.study import SATURATED
from calibration.serving.by_des.predictions import predictions_by_des
from calibration.serving.effects import ServingFit, shipped
from calibration.serving.fit import SCORED_METRICS
from calibration.serving.points import read_points
from calibration.serving.predict import predictions, prepare, saturated
from hw_profiles.catalog import load
from simulator.des.cluster.build import cluster_spec, profile_key
from simulator.des.cluster.spec import GroupSpec
from simulator.des.simulate import play
from simulator.des.workload.requests import Requests, make_requests
from simulator.model.arrays import Floats
from simulator.model.latency import StepLatency
from simulator.model.memory import DoesNotFitError
from simulator.model.parallelism import ParallelismError
from simulator.model.presets import load_model
from simulator.model.step import StepOps
from simulator.scenario import FirstToken, Scenario, Slo, parse_scenario
from simulator.steady_state.closed_loop import closed_loop
from simulator.steady_state.cluster import LIMITS, ClusterArrays, Equilibrium, PoolArrays
from simulator.steady_state.open_loop import open_loop
from simulator.steady_state.parameters import EngineParameters
from simulator.steady_state.stations import DemandArrays, HandoverArrays, KvArrays
from simulator.steady_state.step_table import Batching, StepTable, price
from simulator.steady_state.traffic import TrafficSample

SCENARIOS = 300
SEED = 20_261_201
MODELS = {"deepseek-v4-flash": (4, 8), "qwen3-30b-a3b": (1, 2, 4), "gpt-oss-120b": (1, 2, 4), "deepseek-v3": (8, 16)}
ACCELERATORS = ("h200@vllm", "b200@sglang", "b200@trtllm", "h200", "b300", "gb200@sglang")
METRICS = ("throughput", "tpot", "ttft")
WAVES = 6  # requests of each client in a closed loop
FEWEST, MOST = 400, 60_000  # requests of a run
LIFETIMES = 8  # that an open loop lasts


def scenario_of(seed: int) -> dict[str, Any]:
    """One scenario, as a file would have it. An open loop's rate is a share of what the cluster sustains, put in when
    that is known: `load`."""
    rng = random.Random(seed)
    model = rng.choice(list(MODELS))
    split = rng.random() < 0.5
    prompt, output = _lengths(rng, rng.choice([300, 1000, 2000, 8000])), _lengths(rng, rng.choice([50, 200, 500, 1000]))
    closed = rng.random() < 0.5
    clients = rng.choice([1, 4, 16, 64, 256, 512])
    workload: dict[str, Any] = {"prompt": prompt, "output": output}
    if closed:
        workload |= {"kind": "closed_loop", "concurrency": clients, "requests": min(MOST, max(FEWEST, WAVES * clients))}
    else:
        workload |= {"kind": "open_loop", "rate": 1.0, "requests": 2000}
    pools = (
        {"prefill": _pool(rng, model, drafts=False), "decode": _pool(rng, model, drafts=True)}
        if split
        else {"colocated": _pool(rng, model, drafts=True)}
    )
    return {
        "name": f"agreement {seed}",
        "model": model,
        "seed": seed,
        "workload": workload,
        "deployment": {**pools, **({"transfer": {"overlap": rng.choice(["none", "layerwise"])}} if split else {})},
        "warmup_fraction": 0.3,
        "load": rng.choice([0.2, 0.5, 0.8]),
    }


def _lengths(rng: random.Random, mean: int) -> Any:
    kind = rng.choice(["constant", "uniform", "uniform", "exponential", "lognormal"])
    if kind == "constant":
        return mean
    if kind == "uniform":  # as public benchmarks draw them
        return {"kind": kind, "low": max(1, round(0.8 * mean)), "high": mean}
    if kind == "exponential":
        return {"kind": kind, "mean": float(mean), "maximum": 10 * mean}
    return {"kind": kind, "median": float(mean), "sigma": 0.6, "maximum": 10 * mean}


def _pool(rng: random.Random, model: str, *, drafts: bool) -> dict[str, Any]:
    ranks = rng.choice(MODELS[model])
    gpu, _, stack = rng.choice(ACCELERATORS).partition("@")
    pool: dict[str, Any] = {
        "gpu": gpu,
        **({"stack": stack} if stack else {}),
        "instances": rng.choice([1, 1, 2, 4]),
        **rng.choice([{"dp": ranks, "ep": ranks}, {"dp": ranks, "ep": ranks}, {"tp": min(8, ranks)}]),
        "max_tokens_per_step": rng.choice([512, 2048, 8192, 16384]),
        "max_sequences": rng.choice([16, 64, 256]) * ranks,
        "batching": rng.choice(["chunked", "prefill_first", "inflight"]),
    }
    if drafts and model.startswith("deepseek") and rng.random() < 0.5:
        count = rng.choice([1, 3])
        pool |= {"draft_tokens": count, "acceptance_length": 1 + 0.6 * count}
    return pool


@dataclass(frozen=True)
class Comparison:
    """What both models say of one scenario: values by metric, and what binds."""

    seed: int
    kind: str
    des: dict[str, float]
    steady: dict[str, float]
    limit: str
    batching: str

    def errors(self) -> dict[str, float]:
        found = {name: abs(self.steady[name] / self.des[name] - 1) for name in METRICS if self.des.get(name)}
        return {name: error for name, error in found.items() if math.isfinite(error)}


def cluster_of(scenario: Scenario, requests: Requests) -> ClusterArrays:
    """The arrays of one point, one draw."""
    deployment = scenario.deployment
    assert deployment is not None
    model = load_model(scenario.model)
    profiles = {profile_key(group): load(group.gpu, group.stack) for group in deployment.groups}
    traffic = TrafficSample.of(requests.prompt_tokens.astype(float), requests.output_tokens.astype(float))
    spec = cluster_spec(deployment, model, profiles, (Slo(),), (traffic.prompt, traffic.output))
    (entry,) = spec.entry
    colocated = not spec.decode
    first = _pool_of(entry, traffic, decodes=colocated, prefills=True)
    accepted = _number((spec.decode or spec.entry)[0].instance.acceptance_length)
    overhead = _number(entry.instance.times.first_token_extra_s)
    if colocated:
        return ClusterArrays(first, DemandArrays.of([traffic]), accepted, overhead)
    (decode,) = spec.decode
    keys = deployment.transfer
    streams = keys.overlap == "layerwise"
    size = float(np.mean([spec.transfer_bytes(int(p)) for p in requests.prompt_tokens[:200]]))
    size += keys.half_rate_bytes * (spec.layers if streams else 1)
    handover = HandoverArrays(
        _number(keys.handshake_s),
        _number(size / (keys.achieved * entry.instance.rank_bandwidth)),
        _number(size / (keys.achieved * decode.instance.rank_bandwidth)),
        _number(streams),
        _number(spec.layers),
        first.kv.sequences(_number(traffic.prompt)) * entry.instance.ranks,
    )
    second = _pool_of(decode, traffic, decodes=True, prefills=False)
    demand = DemandArrays.of([traffic])
    return ClusterArrays(first, demand, accepted, overhead, second, handover, deployment.first_token_from)


def _number(value: float) -> Floats:
    return np.array([[float(value)]])


def _pool_of(group: GroupSpec, traffic: TrafficSample, *, decodes: bool, prefills: bool) -> PoolArrays:
    spec, times, kv = group.instance, group.instance.times, group.instance.kv
    assert isinstance(times, StepLatency)
    ops = StepOps(times.model, times.hardware, times.parallelism, times.draft_tokens)
    batching = cast(Batching, spec.batching)
    priced = price(
        ops, traffic, spec.max_tokens_per_step, batching, spec.max_sequences, decodes=decodes, prefills=prefills
    )
    return PoolArrays(
        StepTable.of([priced]).seconds(EngineParameters.of([times.hardware])),
        _number(group.count),
        _number(spec.max_sequences),
        KvArrays(_number(kv.capacity_bytes), _number(kv.bytes_per_token), _number(kv.bytes_per_sequence)),
    )


def compare(seed: int, first_token: FirstToken = "decode") -> Comparison | None:
    """None where the model does not fit the cut. first_token: of disaggregated deployments."""
    keys = scenario_of(seed)
    share = keys.pop("load")
    if "decode" in keys["deployment"]:
        keys["deployment"]["first_token"] = first_token
    try:
        scenario = parse_scenario(keys)
        traffic, router = np.random.SeedSequence(seed).spawn(2)
        requests = make_requests(scenario.one_workload(), traffic)
        cluster = cluster_of(scenario, requests)
    except (DoesNotFitError, ParallelismError, ValueError) as error:
        if isinstance(error, (DoesNotFitError, ParallelismError)) or "does not divide" in str(error):
            return None
        raise
    closed = keys["workload"]["kind"] == "closed_loop"
    if closed:
        clients = keys["workload"]["concurrency"]
        measured = (1 + keys["warmup_fraction"]) / 2  # middle of what is measured
        ages = max(1.0, measured * keys["workload"]["requests"] / clients)
        found = closed_loop(cluster, np.array([[float(clients)]]), generations=ages)
    else:
        most = closed_loop(cluster, np.array([[1e5]])).rate.item()
        found = open_loop(cluster, np.array([[share * most]]))
        lifetime_s = found.mean_ttft_s.item() + found.mean_tpot_s.item() * cluster.demand.output.item()
        count = share * most * lifetime_s * LIFETIMES if math.isfinite(lifetime_s) else 0
        keys["workload"] |= {"rate": share * most, "requests": round(min(MOST, max(2000, count)))}
        scenario = parse_scenario(keys)
        requests = make_requests(scenario.one_workload(), np.random.SeedSequence(seed).spawn(2)[0])
    deployment = scenario.deployment
    assert deployment is not None
    profiles = {profile_key(group): load(group.gpu, group.stack) for group in deployment.groups}
    result = play(scenario, deployment, load_model(scenario.model), profiles, requests, np.random.default_rng(router))
    return Comparison(
        seed,
        ("closed" if closed else "open") + (" apart" if cluster.decode is not None else " colocated"),
        _des(result, keys["workload"].get("concurrency")),
        _steady(found),
        LIMITS[int(found.limit.item())],
        next(iter(keys["deployment"].values()))["batching"],
    )


def _des(result: Any, clients: float | None) -> dict[str, float]:
    """Of a closed loop the throughput by Little's law, clients / mean time of a request: requests come in waves, and a
    window of departures cuts through one at either end."""
    latency = result.metrics()
    rate = result.throughput().requests_per_s if clients is None else clients / latency["e2e_s"].mean
    values = {
        "throughput": rate,
        "tpot": latency["tpot_s"].p50,
        "ttft": latency["ttft_s"].p50,
    }
    return {name: float("nan") if value is None else float(value) for name, value in values.items()}


def _steady(found: Equilibrium) -> dict[str, float]:
    return {"throughput": found.rate.item(), "tpot": found.tpot_s.item(), "ttft": found.ttft_s.item()}


def comparisons(count: int, seed: int, workers: int, first_token: FirstToken) -> Iterator[Comparison]:
    """The first `count` scenarios that fit."""
    seeds = range(seed, seed + 10 * count)
    left = count
    with ProcessPoolExecutor(workers) as pool:
        for start in range(0, len(seeds), 32):
            for found in pool.map(partial(compare, first_token=first_token), seeds[start : start + 32]):
                if found is not None and left:
                    left -= 1
                    yield found
            if not left:
                return


def summary(found: list[Comparison]) -> dict[str, Any]:
    """Median and p90 of the errors by metric; TTFT of what is not saturated."""
    report: dict[str, Any] = {"scenarios": len(found)}
    for name in METRICS:
        errors = [c.errors()[name] for c in found if name in c.errors() and (name != "ttft" or c.limit == "clients")]
        if errors:
            report[name] = {
                "count": len(errors),
                "median": float(np.median(errors)),
                "p90": float(np.percentile(errors, 90)),
            }
    return report


def rows_of(points: Path, count: int, fit: ServingFit) -> dict[str, Any]:
    """Errors by metric on so many rows of a points file, over all and by form; TTFT as above."""
    frame = read_points(points)
    frame = frame.iloc[np.random.default_rng(0).permutation(len(frame))[:count]].reset_index(drop=True)
    played, by_des = predictions_by_des(prepare(frame), fit)
    lines = by_des.merge(predictions(played, fit), on=["row", "metric"], suffixes=("", "_steady"))
    lines["error"] = (lines["predicted_steady"] / lines["predicted"] - 1).abs()
    queued = {priced.point.row for priced in played.points if saturated(priced.point, SATURATED)}
    lines = lines[~((lines["metric"] == "ttft_ms") & lines["row"].isin(queued))]
    report: dict[str, Any] = {"file": points.name, "rows": len(played.points), "not played": len(played.unpredicted)}
    parts = {"all": lines, "colocated": lines[~lines["disaggregated"]], "disaggregated": lines[lines["disaggregated"]]}
    for form, part in parts.items():
        errors = {name: part.loc[part["metric"] == name, "error"].dropna() for name in SCORED_METRICS}
        report[form] = {
            name: {"count": len(found), "median": float(found.median()), "p90": float(found.quantile(0.9))}
            for name, found in errors.items()
            if len(found)
        }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=Path, help="measured points")
    parser.add_argument("--rows", type=int, default=200, help="of these, drawn at random")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--each", action="store_true", help="write every scenario too")
    parser.add_argument("--scenarios", type=int, default=SCENARIOS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--first-token", choices=["decode", "prefill"], default="decode", help="who sends it")
    args = parser.parse_args()
    start = time.perf_counter()
    found = list(comparisons(args.scenarios, args.seed, args.workers, args.first_token))
    report: dict[str, Any] = {"first_token": args.first_token, "scenarios": summary(found)}
    report["by_kind"] = {
        kind: summary([c for c in found if c.kind == kind]) for kind in sorted({c.kind for c in found})
    }
    if args.each:
        report["each"] = [vars(c) | {"errors": c.errors()} for c in found]
    if args.points is not None:
        report["rows"] = rows_of(args.points, args.rows, shipped())
        for form in ("all", "colocated", "disaggregated"):
            print(f"rows, {form:14}", {name: round(one["median"], 3) for name, one in report["rows"][form].items()})
    report["seconds"] = time.perf_counter() - start
    for kind, one in {"all": report["scenarios"], **report["by_kind"]}.items():
        errors = "  ".join(f"{n} {one[n]['median']:.1%} (p90 {one[n]['p90']:.1%})" for n in METRICS if n in one)
        print(f"{kind:18} {one['scenarios']:4} scenarios  {errors}")
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
