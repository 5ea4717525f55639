"""The dashboard, run by Streamlit's own test driver on a question that answers quickly."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

MAIN = Path(__file__).resolve().parents[3] / "app" / "main.py"
SMALL = {
    "model": "qwen3-30b-a3b",
    "gpu": "h200_sxm",
    "rate": "2",
    "isl": "512",
    "osl": "32",
    "ttft": "3",
    "tpot": "0.1",
}


def opened(**query: str | list[str]) -> AppTest:
    """The dashboard at an address."""
    page = AppTest.from_file(str(MAIN), default_timeout=90)
    for key, value in (SMALL | query).items():
        page.query_params[key] = value
    page.run()
    assert not page.exception
    return page


def test_first_view_answers_the_question_in_the_address() -> None:
    page = opened()
    assert page.title[0].value == "Capacity plan"
    assert not page.error
    assert not page.warning
    designs = page.dataframe[0].value
    assert list(designs["rank"]) == list(range(1, len(designs) + 1))
    best = designs.iloc[0]
    assert best["meets_slo"]
    assert best["ttft_s"] <= 3
    assert best["tpot_ms"] <= 100
    assert page.metric[0].value == str(best["gpus"])
    assert any("assumed" in box.label for box in page.expander)


def test_changing_the_form_changes_answer_and_address() -> None:
    page = opened()
    before = page.metric[0].value
    page.number_input(key="rate").set_value(400.0)
    page.button[0].click().run()
    assert not page.exception
    assert page.query_params["rate"] == "400"
    assert page.query_params["model"] == "qwen3-30b-a3b"
    assert int(page.metric[0].value) > int(before)


def test_limits_that_nothing_meets_are_one_sentence() -> None:
    page = opened(ttft="0.001")
    (error,) = page.error
    assert "No design meets the limits" in error.value
    assert "ttft_s" in error.value


@pytest.mark.parametrize(
    ("query", "said"),
    [({"gpu": "h2000"}, "gpu=h2000"), ({"rate": "-4"}, "rate=-4"), ({"colour": "red"}, "colour")],
)
def test_a_bad_address_is_said_and_the_rest_still_counts(query: dict[str, str], said: str) -> None:
    page = opened(**query)
    (warning,) = page.warning
    assert said in warning.value
    assert page.query_params["isl"] == "512"


def test_prompts_that_the_model_cannot_take_are_an_error() -> None:
    page = opened(isl="5000000")
    (error,) = page.error
    assert "5000032" in error.value
    assert not page.dataframe


def test_ranges_and_chances_stand_beside_the_figures() -> None:
    page = opened()
    designs = page.dataframe[0].value
    low, high = map(float, designs["ttft_s_range"][0].split("-"))
    assert low < high
    assert 0 < designs["chance"][0] <= 1
    captions = " ".join(caption.value for caption in page.caption)
    assert designs["ttft_s_range"][0] in captions
    assert "draws of the fit's parameters" in captions


def test_a_demanded_chance_is_kept_and_costs_no_less() -> None:
    shown, demanded = opened(rate="200"), opened(rate="200", confidence="70")
    assert demanded.selectbox(key="confidence").value == 70
    best = demanded.dataframe[0].value.iloc[0]
    assert best["chance"] >= 0.7
    assert best["usd_per_hour"] >= shown.dataframe[0].value.iloc[0]["usd_per_hour"]


def test_speeds_say_where_they_come_from(own_profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEPLAN_PROFILES", str(own_profile.parent))
    page = opened()
    table = next(frame.value for frame in page.dataframe if "Stack" in frame.value)
    assert dict(zip(table["Stack"], table["Speed"], strict=True)) == {
        "default": "assumed",
        "moeplan": "measured with the runtime",
        "sglang": "fitted from published tables",
        "trtllm": "fitted from published tables",
        "vllm": "fitted from published tables",
    }
    assert any("Stacks of this plan" in line.value for line in page.caption)
