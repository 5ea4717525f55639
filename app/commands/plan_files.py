"""Designs of a plan as scenario files that `moeplan simulate` runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.errors import InputError
from simulator.scenario import Scenario, load_scenario

LEFT_OUT = {"search"}  # of a scenario that is run


def save_designs(scenarios: Sequence[Scenario], folder: Path) -> list[Path]:
    """Write each as `design_1.toml` and so on into `folder`, which is made where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for rank, scenario in enumerate(scenarios, 1):
            path = folder / f"design_{rank}.toml"
            path.write_text(scenario_toml(scenario), encoding="utf-8")
            load_scenario(path)  # whatever cannot be read again must not be left behind unseen
            written.append(path)
    except OSError as error:
        raise InputError(f"--save {folder} cannot be written ({error.strerror}); name a folder of your own") from None
    return written


def scenario_toml(scenario: Scenario) -> str:
    """A scenario as TOML: what stands at its default is left out, paths are absolute."""
    data = scenario.model_dump(mode="json", exclude_defaults=True, exclude=LEFT_OUT)
    workload = data.get("workload")
    if isinstance(workload, dict):
        assert scenario.workload is not None
        workload["kind"] = scenario.workload.kind
        if "path" in workload:
            workload["path"] = str(Path(workload["path"]).resolve())
    if data["model"].endswith(".json"):
        data["model"] = str(Path(data["model"]).resolve())
    return _table(data, ())


def _table(data: Mapping[str, Any], path: tuple[str, ...]) -> str:
    """Plain keys first, then tables under their dotted names."""
    lines = [f"{key} = {_value(value)}" for key, value in data.items() if not isinstance(value, dict)]
    text = (f"[{'.'.join(path)}]\n" if path and lines else "") + "".join(f"{line}\n" for line in lines)
    for key, value in data.items():
        if isinstance(value, dict):
            inner = _table(value, (*path, key))
            text += f"\n{inner}" if text else inner
    return text


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(inner)}" for key, inner in value.items()) + " }"
    return json.dumps(value)
