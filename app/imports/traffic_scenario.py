"""A scenario for traffic that was recorded: it runs in `simulate` and is read by `plan` as it is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from app.errors import InputError
from app.imports.engine_metrics import SeenTraffic
from app.imports.toml_text import toml_text
from simulator.planner.search import plan
from simulator.scenario import Deployment, Scenario, Trace, parse_scenario
from simulator.traces.columns import BLOCK_TOKENS

SIMULATED_REQUESTS = 2000  # of an open loop [assumed: as the scenario that ships]
DAY_S = 86_400.0
LEAST_OF_A_DAY = 0.8  # share of a day that samples have to span for a curve of the day [assumed]
LEAST_HITS = 0.01  # share of prompt tokens: fewer are not worth a cache [assumed]
DRAWS = 20_000  # of prompt lengths, to find the common beginning that gives the hits [assumed]


def trace_workload(keys: Trace, output: Path) -> dict[str, Any]:
    """[workload] of a trace, with the path as seen from the scenario's folder."""
    given: dict[str, Any] = keys.model_dump(exclude_defaults=True, exclude_none=True)
    folder, path = output.resolve().parent, keys.path.resolve()
    near = path.is_relative_to(folder)
    return {"kind": "trace", **given, "path": os.path.relpath(path, folder) if near else str(path)}


def open_loop(seen: SeenTraffic) -> dict[str, Any]:
    """[workload] with the rate, the lengths and the prefix hits that a server's metrics tell."""
    workload: dict[str, Any] = {
        "kind": "open_loop",
        "rate": float(f"{seen.requests_per_s:.6g}"),
        "requests": SIMULATED_REQUESTS,
        "prompt": _lengths(seen.mean_prompt_tokens, seen.prompt_sigma, seen.most_prompt_tokens),
        "output": _lengths(seen.mean_output_tokens, seen.output_sigma, seen.most_output_tokens),
    }
    hours = seen.rate_by_hour
    if len(hours) * 3600 >= LEAST_OF_A_DAY * DAY_S and min(hours) < max(hours):
        workload["rate"] = float(f"{max(hours):.6g}")
        trough = max(1e-3, min(1.0, min(hours) / max(hours)))
        peak_s = (float(np.argmax(hours)) + 0.5) * 3600 % DAY_S
        workload["diurnal"] = {"trough": float(f"{trough:.3g}"), "peak_s": peak_s}
    if seen.prefix_hit_rate >= LEAST_HITS:
        tokens = common_beginning(seen.mean_prompt_tokens, seen.prompt_sigma, seen.prefix_hit_rate)
        if tokens:
            workload["shared_prefix"] = {"tokens": tokens, "groups": 1}
    return workload


def _lengths(mean: float, sigma: float, most: float | None) -> Any:
    """A lognormal with the mean; alike where the histogram shows no spread."""
    if sigma <= 0:
        return max(1, round(mean))
    median = mean / np.exp(sigma**2 / 2)
    found = {"kind": "lognormal", "median": float(f"{median:.5g}"), "sigma": float(f"{sigma:.3g}")}
    return found if most is None else {**found, "maximum": int(most)}


def common_beginning(mean: float, sigma: float, hit_share: float) -> int:
    """Tokens of one beginning common to all prompts of which a cache finds `hit_share` of all prompt tokens.

    Whole blocks of it are found, in prompts that are long enough. [tokens]
    """
    median = mean / np.exp(sigma**2 / 2)
    prompts = median * np.exp(sigma * np.random.default_rng(0).standard_normal(DRAWS))
    sizes = np.arange(0, max(BLOCK_TOKENS, prompts.max()), BLOCK_TOKENS)
    whole = prompts // BLOCK_TOKENS * BLOCK_TOKENS
    shares = [float(np.minimum(size, whole).sum() / prompts.sum()) for size in sizes]
    return int(sizes[int(np.argmin(np.abs(np.array(shares) - hit_share)))])


def scenario_text(
    base: Scenario,
    workload: dict[str, Any],
    output: Path,
    comments: Sequence[str],
    *,
    cached: bool,
    in_turns: bool = False,
) -> str:
    """`base` with the workload, and with a deployment that the planner's estimate sizes where it has none.

    cached: prompts begin alike. in_turns: turns of sessions wait for answers.
    """
    kept = base.model_dump(mode="json", exclude_defaults=True, exclude_none=True, exclude={"workload", "tenants"})
    resolved = dict(workload)
    if "path" in resolved:
        resolved["path"] = output.parent / resolved["path"]
    asked = parse_scenario(base.model_dump() | {"workload": resolved, "tenants": ()}, str(output))
    deployment = base.deployment or sized(asked)
    told = deployment.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    if cached and deployment.prefix_cache is None:
        told["prefix_cache"] = {"share": 1.0}
    elif not cached and told.pop("prefix_cache", None) and told.get("router") == "prefix_aware":
        del told["router"]  # there is nothing to match
    if told.get("router") == "session_affinity" and not in_turns:
        del told["router"]
    tables = {"name": kept.pop("name", "scenario"), "model": kept.pop("model")}
    kept.pop("deployment", None)
    tables |= {"workload": workload, **kept, "deployment": told}
    return "".join(f"# {line}\n" for line in comments) + toml_text(tables)


def sized(asked: Scenario) -> Deployment:
    """The cheapest deployment by the planner's estimate. Raises InputError where no design serves the traffic."""
    quick = asked.model_copy(update={"search": asked.search.model_copy(update={"simulate_top": 0}), "deployment": None})
    found = plan(quick)
    if not found.designs:
        raise InputError(
            f"no deployment on {', '.join(quick.search.gpus)} keeps the limits for this traffic ({found.binding}); "
            "give --scenario with a [deployment], other accelerators (--gpu) or other limits"
        )
    return found.designs[0].deployment


def with_name(base: Scenario, name: str, model: str | None, gpus: Sequence[str], stack: str | None = None) -> Scenario:
    """`base` under another name, with another model, accelerators or stack; each leaves its deployment out."""
    changes: dict[str, Any] = {"name": name}
    if model is not None:
        # the scenario may lie elsewhere than where the command runs
        changes["model"] = str(Path(model).resolve()) if Path(model).exists() else model
    search = {key: value for key, value in (("gpus", list(gpus)), ("stacks", [stack] if stack else [])) if value}
    if search:
        changes["search"] = base.search.model_dump() | search
    if model is not None or search:
        changes["deployment"] = None
    return parse_scenario(base.model_dump() | changes, "options")
