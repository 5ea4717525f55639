"""Measured points that others have published, to be laid beside or over answers."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hw_profiles.catalog import CatalogError, load
from simulator.scenario import ClosedLoop, Lengths, OpenLoop, Scenario, ScenarioError

LENGTHS_APART = 0.25  # relative, up to which a row's mean lengths are the scenario's [assumed]
NEEDED = ("model", "gpu", "isl", "osl", "total_tok_s_per_gpu")
S_PER_MS = 1e-3


@dataclass(frozen=True)
class PublishedPoint:
    """A measured row. gpu: as the catalogue names it. form: "" where it is not said. tok_s_per_user: 1 / TPOT."""

    id: str
    gpu: str
    engine: str
    form: str
    tok_s_per_user: float
    total_tok_s_per_gpu: float
    concurrency: float | None
    drafts: str
    source: str


def published_points(path: Path, scenario: Scenario) -> tuple[PublishedPoint, ...]:
    """Rows of a CSV file for the scenario's model at its mean lengths; docs/validation.md names the columns.

    Raises ScenarioError for a file that lacks them.
    """
    prompt, output = _means(scenario)
    found = []
    for row in _rows(path):
        speed = _number(row, "tok_s_per_user")
        tpot_ms = _number(row, "tpot_ms")
        if speed is None and tpot_ms:
            speed = 1 / (tpot_ms * S_PER_MS)
        isl, osl, rate = (_number(row, name) for name in ("isl", "osl", "total_tok_s_per_gpu"))
        if not (speed and rate and isl and osl) or _plain(row["model"]) != _plain(scenario.model):
            continue
        if abs(isl / prompt - 1) > LENGTHS_APART or abs(osl / output - 1) > LENGTHS_APART:
            continue
        form = {"1": "disaggregated", "0": "colocated"}.get((row.get("disaggregated") or "").partition(".")[0], "")
        found.append(
            PublishedPoint(
                row.get("id") or "",
                _accelerator(row["gpu"]),
                row.get("engine") or "",
                form,
                speed,
                rate,
                _number(row, "concurrency"),
                row.get("spec_decode") or "",
                row.get("source") or "",
            )
        )
    return tuple(found)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in NEEDED if name not in (reader.fieldnames or ())]
            if missing:
                raise ScenarioError(f"{path} has no column {', '.join(missing)}; see docs/validation.md")
            yield from reader
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"file of measured points {path} cannot be read ({error}); give a CSV file") from None


def _means(scenario: Scenario) -> tuple[float, float]:
    """Mean prompt and output of the scenario. [tokens]"""
    workload = scenario.one_workload()
    if not isinstance(workload, (OpenLoop, ClosedLoop)):
        raise ScenarioError(f"workload.kind='{workload.kind}' has no lengths to find measured points by")
    return mean_length(workload.prompt), mean_length(workload.output)


def mean_length(lengths: Lengths) -> float:
    """Of the distribution, by a draw of it where it is cut or skewed."""
    import numpy as np

    from simulator.des.workload.draws import draw_lengths

    if lengths.kind == "constant":
        assert lengths.value is not None
        return float(lengths.value)
    return float(np.mean(draw_lengths(lengths, 10_000, np.random.default_rng(0))))


def _number(row: Mapping[str, str], name: str) -> float | None:
    try:
        return float(row.get(name) or "")
    except ValueError:
        return None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _accelerator(word: str) -> str:
    """The catalogue's name, or the word where it has none."""
    try:
        return load(word).name
    except CatalogError:
        return word
