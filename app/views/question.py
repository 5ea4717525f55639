"""What the dashboard is asked, as it stands in the URL and as the Scenario it means."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from app.errors import InputError
from app.scenarios import default_scenario
from simulator.scenario import OpenLoop, Scenario, parse_scenario

CONFIDENCES = (0, 60, 70, 80, 90)  # percent; 0: chances are only shown
PERCENTILES = (50, 90, 95, 99)  # those that every report has
CONVENTIONS: tuple[str, ...] = typing.get_args(Scenario.model_fields["price_convention"].annotation)
# Lowest and highest value that the number fields take; all assumed, far outside what is real.
LIMITS: dict[str, tuple[float, float]] = {
    "rate": (0.01, 100_000.0),  # [requests/s]
    "isl": (1, 10_000_000),  # [tokens]
    "osl": (1, 1_000_000),  # [tokens]
    "ttft": (0.001, 3_600.0),  # [s]
    "tpot": (0.0001, 60.0),  # [s]
}


@dataclass(frozen=True)
class Question:
    """Everything that a visitor can set. Field names are the URL's parameter names."""

    model: str
    gpu: tuple[str, ...]
    rate: float  # requests/s
    isl: int  # prompt tokens
    osl: int  # output tokens
    ttft: float  # s
    tpot: float  # s
    percentile: int  # share of requests inside the limits, in percent
    prices: str  # convention
    confidence: int = 0  # chance with which each limit has to hold, in percent; 0: only shown

    def to_query(self) -> dict[str, str | list[str]]:
        """URL parameters that bring this question back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            key: list(value)
            if isinstance(value, tuple)
            else format(value, "g")
            if isinstance(value, float)
            else str(value)
            for key, value in values.items()
        }

    def to_scenario(self) -> Scenario:
        """The scenario to plan for; ScenarioError says what is wrong with it."""
        base = default_scenario().model_dump()
        workload = base["workload"] | {"rate": self.rate, "prompt": self.isl, "output": self.osl}
        slo = {"ttft_s": self.ttft, "tpot_s": self.tpot, "percentile": self.percentile}
        return parse_scenario(
            base
            | {
                "name": "dashboard",
                "model": self.model,
                "workload": workload,
                "slo": slo,
                "search": base["search"] | {"gpus": self.gpu, "confidence": self.confidence / 100 or None},
                "price_convention": self.prices,
            },
            "question",
        )


def default_question() -> Question:
    """The shipped default scenario, as a question."""
    from hw_profiles.catalog import load

    scenario = default_scenario()
    workload = scenario.workload
    assert isinstance(workload, OpenLoop)
    assert workload.prompt.value
    assert workload.output.value
    assert scenario.slo.ttft_s
    assert scenario.slo.tpot_s
    return Question(
        model=scenario.model,
        gpu=tuple(load(name).name for name in scenario.search.gpus),
        rate=workload.rate,
        isl=workload.prompt.value,
        osl=workload.output.value,
        ttft=scenario.slo.ttft_s,
        tpot=scenario.slo.tpot_s,
        percentile=int(scenario.slo.percentile),
        prices=scenario.price_convention,
    )


def from_query(
    query: Mapping[str, Sequence[str]], models: Sequence[str], gpus: Sequence[str]
) -> tuple[Question, list[str]]:
    """The question in the URL; what is missing or unusable is taken from the default, and said.

    models, gpus: names on offer.
    """
    default = default_question()
    values: dict[str, Any] = {}
    problems: list[str] = []
    for key, texts in query.items():
        try:
            values[key] = _read(key, texts, default, models, gpus)
        except InputError as error:
            problems.append(f"In the address: {error}")
    known = {field.name: getattr(default, field.name) for field in fields(Question)}
    return Question(**(known | values)), problems


def _read(key: str, texts: Sequence[str], default: Question, models: Sequence[str], gpus: Sequence[str]) -> Any:
    """Value of one URL parameter."""
    offered = {
        "model": models,
        "gpu": gpus,
        "percentile": [*map(str, PERCENTILES)],
        "prices": CONVENTIONS,
        "confidence": [*map(str, CONFIDENCES)],
    }
    if key not in {field.name for field in fields(Question)}:
        raise InputError(f"unknown parameter '{key}' was left out")
    if key in offered:
        for text in texts:
            if text not in offered[key]:
                raise InputError(f"{key}={text} is not on offer, so the default {key} is shown")
        if key == "gpu":
            return tuple(dict.fromkeys(texts))
        return int(texts[-1]) if key in ("percentile", "confidence") else texts[-1]
    kind = type(getattr(default, key))
    try:
        value = kind(texts[-1])
    except ValueError:
        value = None
    low, high = LIMITS[key]
    if value is None or not low <= value <= high:
        raise InputError(f"{key}={texts[-1]} is not between {low:g} and {high:g}, so the default {key} is shown")
    return value
