"""Random scenarios over all that a scenario file may say: pools, routers, traffic, caches, faults, autoscaling."""

from __future__ import annotations

import json
import random
from typing import Any

MODELS = {"deepseek-v4-flash": (2, 4), "qwen3-30b-a3b": (1, 2), "gpt-oss-120b": (1, 2), "deepseek-v3": (8,)}
ACCELERATORS = ("h200", "b200", "mi355x", "b300")


def toml_of(table: dict[str, Any]) -> str:
    """A scenario as TOML, nested tables inline."""
    return "".join(f"{key} = {_value(value)}\n" for key, value in table.items())


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value)


def random_scenario(seed: int) -> dict[str, Any]:
    """One scenario, small enough for a fraction of a second; the same seed gives the same one."""
    rng = random.Random(seed)
    model = rng.choice(list(MODELS))
    sessions = rng.random() < 0.15
    blocks = sessions or rng.random() < 0.15
    split = rng.random() < 0.6
    deployment = _deployment(rng, model, split=split, sessions=sessions, blocks=blocks)
    scenario: dict[str, Any] = {
        "name": f"random {seed}",
        "model": model,
        "seed": seed,
        "warmup_fraction": rng.choice([0.0, 0.1]),
        "slo": {"ttft_s": 2.0, "tpot_s": 0.05, "percentile": rng.choice([50.0, 90.0])},
        "deployment": deployment,
    }
    if rng.random() < 0.2:
        scenario["tenants"] = _tenants(rng, sessions=sessions, blocks=blocks)
    else:
        scenario["workload"] = _workload(rng, sessions=sessions, blocks=blocks)
    return scenario


def _lengths(rng: random.Random, mean: int) -> Any:
    kind = rng.choice(["constant", "uniform", "exponential", "lognormal"])
    if kind == "constant":
        return mean
    if kind == "uniform":
        return {"kind": kind, "low": max(1, mean // 2), "high": 2 * mean}
    if kind == "exponential":
        return {"kind": kind, "mean": float(mean), "maximum": 20 * mean}
    return {"kind": kind, "median": float(mean), "sigma": 0.8, "maximum": 20 * mean}


def _workload(rng: random.Random, *, sessions: bool, blocks: bool) -> dict[str, Any]:
    prompt, output = _lengths(rng, rng.choice([200, 2000, 6000])), _lengths(rng, rng.choice([1, 40, 200]))
    if sessions:
        pace = {"rate": 2.0} if rng.random() < 0.5 else {"users": 12}
        return {
            "kind": "sessions",
            **pace,
            "sessions": 30,
            "turns": _lengths(rng, 4),
            "think_s": {"kind": "exponential", "mean": 2.0},
            "prompt": _lengths(rng, 400),
            "output": _lengths(rng, 100),
            **({"system_prompt": {"tokens": 2000, "groups": 3}} if rng.random() < 0.5 else {}),
        }
    if not blocks and rng.random() < 0.3:
        return {
            "kind": "closed_loop",
            "concurrency": rng.choice([1, 8, 64]),
            "requests": 150,
            "prompt": prompt,
            "output": output,
        }
    workload: dict[str, Any] = {
        "kind": "open_loop",
        "rate": rng.choice([1.0, 8.0, 40.0, 200.0]),
        "requests": 150,
        "burstiness": rng.choice([1.0, 1.0, 4.0]),
        "prompt": prompt,
        "output": output,
    }
    if rng.random() < 0.2:
        workload["diurnal"] = {"trough": 0.2, "period_s": 40.0, "peak_s": 10.0, "growth_per_day": 0.5}
    if rng.random() < 0.2:
        workload["bursts"] = {"quiet": 0.1, "burst_s": 2.0, "quiet_s": 5.0}
    if blocks:
        workload["shared_prefix"] = {"tokens": 1024, "groups": rng.choice([1, 20])}
    return workload


def _tenants(rng: random.Random, *, sessions: bool, blocks: bool) -> list[dict[str, Any]]:
    first = {"name": "first", "priority": 1, "workload": _workload(rng, sessions=sessions, blocks=blocks)}
    if rng.random() < 0.5:
        second = {"kind": "offline", "requests": 30, "headroom": rng.choice([0.0, 0.5]), "prompt": 1500, "output": 60}
        return [first, {"name": "offline", "workload": second}]
    open_loop = {"kind": "open_loop", "rate": 6.0, "requests": 60, "prompt": 900, "output": 80}
    return [first, {"name": "second", "workload": open_loop, "slo": {"ttft_s": 0.5}}]


def _pool(rng: random.Random, model: str, *, prefills: bool) -> dict[str, Any]:
    ranks = rng.choice(MODELS[model])
    drafts = rng.choice([0, 1, 3]) if model.startswith("deepseek") else 0
    pool: dict[str, Any] = {
        "gpu": rng.choice(ACCELERATORS),
        "instances": rng.choice([1, 2, 3]),
        **rng.choice(
            [{"dp": ranks, "ep": ranks}, {"dp": ranks, "ep": ranks}, {"tp": ranks}, {"tp": ranks, "ep": ranks}]
        ),
        "max_tokens_per_step": rng.choice([512, 2048, 8192]),
        "max_sequences": rng.choice([4, 32, 256]) * ranks,
        "batching": rng.choice(["chunked", "prefill_first", "inflight"]),
    }
    if drafts:
        pool |= {"draft_tokens": drafts, "acceptance_length": 1 + 0.6 * drafts}
        if rng.random() < 0.5:
            pool["acceptance_spread"] = 0.1
    if rng.random() < 0.2:
        pool["expert_skew"] = rng.choice(
            [{"kind": "uniform"}, {"kind": "power_law", "alpha": 1.3}, {"kind": "dirichlet", "redundant_experts": 16}]
        )
    if prefills and pool["batching"] == "chunked" and rng.random() < 0.4:
        pool["long_prefill_token_threshold"] = 256
        if rng.random() < 0.5:
            pool["max_long_partial_prefills"] = 1
    return pool


def _pools(rng: random.Random, model: str, *, prefills: bool) -> Any:
    if rng.random() < 0.15:
        return [_pool(rng, model, prefills=prefills) | {"name": name} for name in ("old", "new")]
    pool = _pool(rng, model, prefills=prefills)
    if rng.random() < 0.15:
        pool["autoscale"] = {
            "metric": rng.choice(["queue", "utilization", "attainment"]),
            "target": 0.7,
            "minimum": 1,
            "maximum": 4,
            "window_s": 2.0,
            "cooldown_s": 5.0,
        }
    return pool


def _deployment(rng: random.Random, model: str, *, split: bool, sessions: bool, blocks: bool) -> dict[str, Any]:
    routers = ["round_robin", "least_loaded", "power_of_two", "shared_queue"]
    deployment: dict[str, Any] = {}
    if blocks and rng.random() < 0.8:
        deployment["prefix_cache"] = {
            "share": rng.choice([0.3, 1.0]),
            "host_bytes": rng.choice([0.0, 1e9]),
            "storage_bytes": rng.choice([0.0, 1e10]),
            "state": rng.choice(["keep_all", "checkpoint", "recompute"]),
        }
        routers.append("prefix_aware")
    if sessions:
        routers.append("session_affinity")
    deployment["router"] = rng.choice(routers)
    if split:
        deployment["prefill"] = _pools(rng, model, prefills=True)
        deployment["decode"] = _pools(rng, model, prefills=False)
        deployment["transfer"] = {
            "overlap": rng.choice(["none", "layerwise"]),
            "staged": rng.random() < 0.3,
            "oversubscription": rng.choice([1.0, 1.0, 8.0]),
        }
        if rng.random() < 0.5:
            deployment["decode_router"] = rng.choice(["round_robin", "least_loaded", "power_of_two", "kv_aware"])
    else:
        deployment["colocated"] = _pools(rng, model, prefills=True)
    if rng.random() < 0.2:
        deployment["max_queue"] = rng.choice([0, 3, 20])
    if rng.random() < 0.2:
        kinds = ("instance", "node", "slow", *(("link",) if split else ()))
        chosen = rng.choice(kinds)
        fault = {"mtbf_s": 30.0, "mttr_s": 2.0} | ({"speed": 0.3} if chosen in ("slow", "link") else {})
        deployment["faults"] = {chosen: fault, "retries": rng.choice([0, 3]), "retry_delay_s": 0.5}
        deployment["startup"] = {"start_s": 1.0, "load_s": 2.0}
    return deployment
