"""The dashboard's question in the URL."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.scenarios import default_scenario
from app.views.question import CONFIDENCES, CONVENTIONS, LIMITS, PERCENTILES, Question, default_question, from_query

MODELS = ["deepseek-v4-pro", "qwen3-30b-a3b"]
GPUS = ["b300_sxm", "h200_sxm", "mi355x"]


def as_lists(query: dict[str, str | list[str]]) -> dict[str, list[str]]:
    """What the browser hands back."""
    return {key: value if isinstance(value, list) else [value] for key, value in query.items()}


def numbers(key: str) -> st.SearchStrategy[float]:
    low, high = LIMITS[key]
    return st.floats(low, high).map(lambda x: min(high, max(low, float(f"{x:.6g}"))))


QUESTIONS = st.builds(
    Question,
    model=st.sampled_from(MODELS),
    gpu=st.lists(st.sampled_from(GPUS), min_size=1, unique=True).map(tuple),
    rate=numbers("rate"),
    isl=st.integers(1, 1_000_000),
    osl=st.integers(1, 1_000_000),
    ttft=numbers("ttft"),
    tpot=numbers("tpot"),
    percentile=st.sampled_from(PERCENTILES),
    prices=st.sampled_from(CONVENTIONS),
    confidence=st.sampled_from(CONFIDENCES),
)


@given(QUESTIONS)
@settings(max_examples=50)
def test_a_question_survives_the_url(question: Question) -> None:
    assert from_query(as_lists(question.to_query()), MODELS, GPUS) == (question, [])


@given(QUESTIONS)
@settings(max_examples=25)
def test_every_question_is_a_scenario(question: Question) -> None:
    scenario = question.to_scenario()
    assert (scenario.model, scenario.search.gpus) == (question.model, question.gpu)
    assert (scenario.slo.ttft_s, scenario.slo.tpot_s) == (question.ttft, question.tpot)


def test_an_empty_url_asks_the_default() -> None:
    question, problems = from_query({}, MODELS, GPUS)
    assert (question, problems) == (default_question(), [])
    scenario, default = question.to_scenario(), default_scenario()
    assert (scenario.workload, scenario.slo) == (default.workload, default.slo)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("model", "deepseek-v9"),
        ("gpu", "h2000"),
        ("rate", "-1"),
        ("rate", "nan"),
        ("rate", "many"),
        ("isl", "1.5"),
        ("osl", "0"),
        ("percentile", "100"),
        ("prices", "gift"),
        ("colour", "red"),
    ],
)
def test_what_the_url_cannot_mean_is_said_and_replaced(key: str, text: str) -> None:
    question, problems = from_query({key: [text]}, MODELS, GPUS)
    assert question == default_question()
    (problem,) = problems
    assert key in problem


def test_the_other_parameters_still_count() -> None:
    question, problems = from_query({"rate": ["x"], "isl": ["100"]}, MODELS, GPUS)
    assert question == replace(default_question(), isl=100)
    assert len(problems) == 1
