"""Scenarios as the command line and the dashboard make them: the shipped default, and changes to one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.errors import InputError
from simulator.scenario import Deployment, OpenLoop, Scenario, Trace, load_scenario, parse_scenario

FORMS = ("disaggregated", "colocated")
TRACE_REPLAY = ("speed", "rate", "limit")  # keys of a trace that do not say how its file is read
DEFAULT_SCENARIO = Path(__file__).parent / "data" / "default_scenario.toml"


def default_scenario() -> Scenario:
    """The scenario of `make plan`."""
    return load_scenario(DEFAULT_SCENARIO)


def with_changes(
    scenario: Scenario,
    *,
    model: str | None = None,
    gpus: Sequence[str] = (),
    rate: float | None = None,
    trace: Path | None = None,
    trace_keys: Mapping[str, Any] | None = None,
    isl: int | None = None,
    osl: int | None = None,
    ttft_s: float | None = None,
    tpot_s: float | None = None,
    max_gpus: int | None = None,
    confidence: float | None = None,
    stacks: Sequence[str] = (),
    form: str | None = None,
    drafts: int | str | None = None,
    seed: int | None = None,
    prices: str | None = None,
    knobs: Mapping[str, Any] | None = None,
) -> Scenario:
    """`scenario` with what was given replaced. rate in requests/s, isl and osl in tokens; trace_keys: how the trace,
    that of the scenario or the given one, is to be read. knobs: keys of `simulator.scenario.Knobs`, for the search and
    for every pool."""
    changes: dict[str, Any] = {}
    if model is not None:
        changes["model"] = model
    search: dict[str, Any] = {"gpus": _unique(gpus)} if gpus else {}
    if max_gpus is not None:
        search["max_gpus"] = max_gpus
    if confidence is not None:
        search["confidence"] = confidence
    if stacks:
        search["stacks"] = tuple(dict.fromkeys(stacks))
    if form is not None:
        search["forms"] = FORMS if form == "both" else (form,)
    if drafts is not None:
        search["draft_tokens"] = drafts
    search.update(knobs or {})
    if search:
        changes["search"] = scenario.search.model_dump() | search
    if workload := _workload(scenario, rate, trace, trace_keys or {}, isl, osl):
        changes |= {"workload": workload, "tenants": ()}
    limits = {"ttft_s": ttft_s, "tpot_s": tpot_s}
    if any(limit is not None for limit in limits.values()):
        changes["slo"] = scenario.slo.model_dump() | {k: v for k, v in limits.items() if v is not None}
    if seed is not None:
        changes["seed"] = seed
    if prices is not None:
        changes["price_convention"] = prices
    if knobs and scenario.deployment is not None:
        changes["deployment"] = _with_knobs(scenario.deployment, knobs)
    return parse_scenario(scenario.model_dump() | changes, "options") if changes else scenario


def _with_knobs(deployment: Deployment, knobs: Mapping[str, Any]) -> dict[str, Any]:
    """The deployment's keys with those of every pool replaced."""
    keys = deployment.model_dump()
    for name, groups in deployment.pools.items():
        changed = [group.model_dump() | dict(knobs) for group in groups]
        keys[name] = changed if isinstance(keys[name], (list, tuple)) else changed[0]
    return keys


def _workload(
    scenario: Scenario,
    rate: float | None,
    trace: Path | None,
    trace_keys: Mapping[str, Any],
    isl: int | None,
    osl: int | None,
) -> dict[str, Any] | None:
    synthetic = {name: value for name, value in (("rate", rate), ("prompt", isl), ("output", osl)) if value is not None}
    old = scenario.workload if isinstance(scenario.workload, Trace) else None
    if trace is not None:
        if synthetic:
            raise InputError("--trace brings its own arrivals and lengths; leave out --rate, --isl and --osl")
        if trace.is_dir():
            raise InputError(f"trace file {trace} is a directory; give a trace file in it")
        if not trace.exists():
            raise InputError(f"trace file {trace} does not exist; give the path of a recorded trace")
        kept = old.model_dump(include={"kind", *TRACE_REPLAY}) if old else {"kind": "trace"}
        return {**kept, "path": trace, **trace_keys}
    if trace_keys:
        if old is None:
            raise InputError(f"--{next(iter(trace_keys)).replace('_', '-')} says how a trace is read; give a --trace")
        return {**old.model_dump(), **trace_keys}
    if not synthetic:
        return None
    if isinstance(scenario.workload, OpenLoop):
        return scenario.workload.model_dump() | synthetic
    if len(synthetic) < 3:
        kind = "not one alone" if scenario.workload is None else scenario.workload.kind
        raise InputError(f"the scenario's workload is {kind}; to replace it give --rate, --isl and --osl together")
    return {"kind": "open_loop", **synthetic}


def _unique(gpus: Sequence[str]) -> list[str]:
    """The accelerators under their catalogue names, each once. Raises CatalogError for an unknown one."""
    from hw_profiles.catalog import load

    return list(dict.fromkeys(gpu if gpu.endswith(".toml") else load(gpu).name for gpu in gpus))
