"""Scenarios from dictionaries and TOML files, with problems in the reader's words."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from simulator.scenario.deployment import SPELLINGS
from simulator.scenario.faults_and_scaling import PoolName
from simulator.scenario.keys import Keys, ScenarioError
from simulator.scenario.scenario import Scenario
from simulator.scenario.shared_cluster import SharedCluster

POOLS = get_args(PoolName)
Kind = TypeVar("Kind", bound=Keys)


def parse_scenario(data: dict[str, Any], where: str = "scenario") -> Scenario:
    """Build a Scenario; every problem becomes one sentence naming key and value."""
    return _parse(Scenario, data, where)


def load_scenario(path: Path | str) -> Scenario:
    """Read a TOML scenario of one model. Relative trace and model paths are taken from the file's folder."""
    found = load_any(path)
    if isinstance(found, SharedCluster):
        raise ScenarioError(f"{path} has [[models]], which only `simulate` plays together; give a file with one model")
    return found


def parse_any(data: dict[str, Any], where: str = "scenario") -> Scenario | SharedCluster:
    """As `parse_scenario`; with [[models]] it is several models on one cluster."""
    return _parse(SharedCluster, data, where) if {"models", "cluster"} & set(data) else _parse(Scenario, data, where)


def load_any(path: Path | str) -> Scenario | SharedCluster:
    """As `load_scenario`, of one model or several."""
    path = Path(path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ScenarioError(f"scenario file {path} does not exist; give the path of a TOML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"scenario file {path} cannot be read ({error}); give a readable TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{path} is not valid TOML: {error}") from None
    for served in (data, *_tables(data.get("models"))):
        for holder in (served, *_tables(served.get("tenants"))):
            workload = holder.get("workload")
            if isinstance(workload, dict) and isinstance(workload.get("path"), str):
                workload["path"] = str(path.parent / workload["path"])
        model = served.get("model")
        if isinstance(model, str) and model.endswith(".json"):
            served["model"] = str(path.parent / model)
    return parse_any(data, str(path))


def _tables(value: Any) -> list[dict[str, Any]]:
    """The tables of a list of tables."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _parse(kind: type[Kind], data: dict[str, Any], where: str) -> Kind:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise ScenarioError(f"{where}: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    """The first validation error as one sentence in the reader's words."""
    problem = error.errors()[0]
    branches = {"open_loop", "closed_loop", "sessions", "offline", "trace"}
    parts = [
        part
        for before, part in zip((None, *problem["loc"]), problem["loc"], strict=False)
        if not ((before == "workload" and part in branches) or (before in POOLS and part in SPELLINGS))
    ]
    key = ".".join(map(str, parts)) or "the file"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{key}'; remove it or correct its spelling"
    if problem["type"] == "missing":
        return f"key '{key}' is missing; add it"
    if problem["type"] == "too_short":
        return f"key '{key}' is empty; name at least one"
    shown = problem.get("input")
    value = f"={shown!r}" if isinstance(shown, (int, float, str, bool)) else ""
    if problem["type"] in ("model_type", "dict_type"):
        return f"{key}{value} is not a table; give one with its keys"
    return f"{key}{value}: {message}"
