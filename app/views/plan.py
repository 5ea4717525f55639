"""First view: model, hardware, traffic and limits in; ranked designs and Pareto fronts out."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import streamlit as st

from app.errors import is_input_error, sentence
from app.output import plain
from app.render.plan import grounds, limits_text, no_design_text
from app.render.plan_charts import cost_front, design_bands, rate_front
from app.render.plan_frames import bands_frame, designs_frame, frontier_frame
from app.render.tables import MS_PER_S, number
from app.views.compute import offered, plan_answer, speeds_of
from app.views.question import CONFIDENCES, CONVENTIONS, LIMITS, PERCENTILES, Question, from_query
from simulator.scenario import Scenario

COLUMNS = {
    "rank": st.column_config.NumberColumn("#", width=40),
    "pools": st.column_config.TextColumn("Pools", width=320),
    "gpus": st.column_config.NumberColumn("GPUs", width=50),
    "ttft_s": st.column_config.NumberColumn("TTFT [s]", format="%.2f"),
    "ttft_s_range": st.column_config.TextColumn("p10-p90", width=80),
    "tpot_ms": st.column_config.NumberColumn("TPOT [ms]", format="%.1f"),
    "tpot_s_range": st.column_config.TextColumn("p10-p90", width=80),
    "chance": st.column_config.NumberColumn("Chance", format="percent", width=60),
    "tok_s_per_user": st.column_config.NumberColumn("tok/s/user", format="%.0f"),
    "total_tok_s_per_gpu": st.column_config.NumberColumn("tok/s/GPU", format="%.0f"),
    "total_tok_s_per_gpu_range": st.column_config.TextColumn("p10-p90", width=90),
    "usd_per_hour": st.column_config.NumberColumn("USD/h", format="%.2f"),
    "usd_per_mtok_blended": st.column_config.NumberColumn("USD/Mtok", format="%.3f"),
    "usd_per_mtok_blended_range": st.column_config.TextColumn("p10-p90", width=80),
    "meets_slo": st.column_config.CheckboxColumn("In limits", width=70),
    "checked_by": st.column_config.TextColumn("By", width=50),
}


ROW_PX = 35  # height of a table row, as Streamlit draws it [pixels]
BORDER_PX = 3  # of the table [pixels]


def show() -> None:
    """Draw the view."""
    st.title("Capacity plan")
    models, gpus = offered()
    query = {key: st.query_params.get_all(key) for key in st.query_params}
    question, problems = from_query(query, models, gpus)
    for problem in problems:
        st.warning(problem)
    question = _ask(question, models, gpus)
    st.query_params.from_dict(question.to_query())
    try:
        scenario = question.to_scenario()
        answer = plan_answer(scenario.model_dump_json())
    except (ValueError, OSError) as error:
        if not is_input_error(error):
            raise
        st.error(sentence(error))
        return
    _answer(scenario, answer)


def _ask(question: Question, models: list[str], gpus: list[str]) -> Question:
    """The form; returns what it holds."""

    def field(label: str, key: str, step: float, **extra: Any) -> float:
        value = getattr(question, key)
        low, high = (type(value)(limit) for limit in LIMITS[key])
        return st.number_input(label, low, high, value, type(value)(step), key=key, **extra)

    with st.sidebar.form("question", border=False):
        model = st.selectbox("Model", models, models.index(question.model), key="model")
        chosen = st.multiselect("Accelerators to choose from", gpus, list(question.gpu), key="gpu")
        st.subheader("Traffic")
        rate = field("Requests per second", "rate", 1, format="%g")
        isl = field("Prompt tokens", "isl", 1024)
        osl = field("Output tokens", "osl", 256)
        st.subheader("Limits")
        ttft = field("Time to first token [s]", "ttft", 0.5, format="%g")
        tpot = field("Time per output token [s]", "tpot", 0.01, format="%g")
        shares = list(PERCENTILES)
        percentile = st.selectbox(
            "Share of requests inside both [%]", shares, shares.index(question.percentile), key="percentile"
        )
        prices = st.selectbox("Prices", CONVENTIONS, CONVENTIONS.index(question.prices), key="prices")
        confidence = st.selectbox(
            "Chance with which each limit has to hold [%]",
            CONFIDENCES,
            CONFIDENCES.index(question.confidence),
            format_func=lambda chance: str(chance) if chance else "show only",
            key="confidence",
        )
        st.form_submit_button("Plan", type="primary", width="stretch")
    return Question(model, tuple(chosen), rate, int(isl), int(osl), ttft, tpot, percentile, prices, confidence)


def _answer(scenario: Scenario, answer: dict[str, Any]) -> None:
    st.write(f"**{answer['model']}**: {answer['traffic']}; {limits_text(scenario.slo)}.")
    if reason := no_design_text(answer):
        st.error(reason)
    if answer["designs"]:
        _best(answer)
    _assumed(answer)
    if answer["designs"]:
        _designs(answer)
    if answer["frontier"]:
        _fronts(scenario, answer)
    _turned_down(answer)
    _speeds(scenario)


def _best(answer: dict[str, Any]) -> None:
    best = designs_frame(answer).iloc[0]
    figures = {
        "Accelerators": f"{best['gpus']}",
        "USD per hour": number(best["usd_per_hour"], 2),
        "USD per million tokens": number(best["usd_per_mtok_blended"], 3),
        "Time to first token [s]": number(best["ttft_s"], 2),
        "Time per output token [ms]": number(best["tpot_ms"], 1),
    }
    ranges = ("", "", best["usd_per_mtok_blended_range"], best["ttft_s_range"], best["tpot_s_range"])
    columns = st.columns(len(figures))
    for column, (label, figure), spread in zip(columns, figures.items(), ranges, strict=True):
        column.metric(label, figure)
        if spread:
            column.caption(f"p10-p90: {spread}")
    chance = "" if pd.isna(best["chance"]) else f" Each limit holds with a chance of at least {best['chance']:.0%}."
    st.caption(f"Best design: {best['pools']} ({best['checked_by']}).{chance}")


def _designs(answer: dict[str, Any]) -> None:
    st.subheader("Ranked designs")
    frame = designs_frame(answer)
    st.dataframe(
        frame,
        column_config=COLUMNS,
        column_order=list(COLUMNS),
        hide_index=True,
        width="stretch",
        height=ROW_PX * (len(frame) + 1) + BORDER_PX,
    )
    st.caption(
        f"Latencies at p{answer['slo']['percentile']:g}. tok/s/GPU counts input and output tokens over all GPUs; "
        f"USD/Mtok blends both, at {answer['price_convention']} prices. P, D, C: prefill, decode, colocated pools. "
        "DES: re-run request by request in the discrete-event model; est.: steady-state estimate only. "
        "Chance: of the limit that is least sure to hold."
    )
    slo = answer["slo"]
    limits = {"ttft_s": slo["ttft_s"], "tpot_s": slo["tpot_s"] and slo["tpot_s"] * MS_PER_S}
    st.plotly_chart(design_bands(bands_frame(answer), limits), key="design_bands", config={"displayModeBar": False})
    st.caption(grounds(answer["designs"]).replace("\n", "  \n"))
    st.download_button("Download JSON", json.dumps(plain(answer), indent=2), "plan.json", "application/json")


def _fronts(scenario: Scenario, answer: dict[str, Any]) -> None:
    st.subheader("Pareto fronts")
    points = frontier_frame(answer)
    left, right = st.columns(2)
    left.plotly_chart(rate_front(points, scenario.slo.tpot_s), key="rate_front")
    right.plotly_chart(cost_front(points, scenario.slo.tpot_s), key="cost_front")
    st.caption("Steady-state operating points of single designs, without the limits, rate-matched between pools.")


def _assumed(answer: dict[str, Any]) -> None:
    """What the answer rests on that is neither published nor measured."""
    if answer["assumptions"]:
        with st.expander(f"What is assumed here ({len(answer['assumptions'])})"):
            st.markdown("\n".join(f"- {line}" for line in answer["assumptions"]))


def _speeds(scenario: Scenario) -> None:
    """Of the chosen accelerators: measured, fitted from published tables, or assumed."""
    with st.expander("Where speeds come from"):
        st.dataframe(speeds_of(list(scenario.search.gpus)), hide_index=True, width="stretch", key="speeds")
        named = ", ".join(scenario.search.stacks)
        st.caption(f"Stacks of this plan: {named or 'the best of those fitted to each accelerator'}.")


def _turned_down(answer: dict[str, Any]) -> None:
    if answer["rejected"]:
        with st.expander("Turned down"):
            st.markdown("\n".join(f"- {reason}: {count}" for reason, count in answer["rejected"].items()))
