from __future__ import annotations

import pytest

from runtime.bench import Replay, distribution, replay, request_rows, summarize, warm_up
from runtime.config.spec import ModelConfig
from runtime.engine import Engine, EngineConfig
from runtime.sequence import RequestOutput, RequestTiming, SettingError
from runtime.trace import TraceRequest, poisson_trace


def output(name: str, arrival_s: float, token_times_s: list[float], prompt: int) -> RequestOutput:
    timing = RequestTiming(arrival_s, arrival_s + 0.25, token_times_s)
    return RequestOutput(name, tuple(range(len(token_times_s))), "length", None, timing, prompt)


def test_summary_of_a_hand_worked_replay() -> None:
    outputs = (
        output("a", 10.0, [11.0, 11.5, 12.5], 100),  # TTFT 1, TPOT 0.75, end to end 2.5
        output("b", 12.0, [15.0], 50),  # TTFT 3, one token: no TPOT
        RequestOutput("c", (), "error", "no", RequestTiming(13.0), 7),
    )
    summary = summarize(Replay(outputs, start_s=10.0, end_s=20.0))
    assert (summary["num_requests"], summary["num_finished"], summary["num_failed"]) == (3, 2, 1)
    assert (summary["input_tokens"], summary["output_tokens"]) == (150, 4)
    assert summary["output_tokens_per_s"] == pytest.approx(0.4)
    assert summary["total_tokens_per_s"] == pytest.approx(15.4)
    assert summary["ttft_s"]["mean"] == pytest.approx(2.0)
    assert summary["ttft_s"]["p50"] == pytest.approx(2.0)
    assert summary["ttft_s"]["p90"] == pytest.approx(2.8)
    assert summary["tpot_s"] == pytest.approx(dict.fromkeys(summary["tpot_s"], 0.75))
    assert summary["itl_s"]["max"] == pytest.approx(1.0)
    assert summary["e2e_s"]["mean"] == pytest.approx(2.75)
    assert summary["queue_s"]["mean"] == pytest.approx(0.25)
    assert summary["errors"] == {"c": "no"}
    assert "handover" not in summary


def test_nothing_finished_has_no_distribution() -> None:
    failed = RequestOutput("c", (), "error", "no", RequestTiming(0.0), 7)
    summary = summarize(Replay((failed,), 0.0, 1.0))
    assert summary["ttft_s"] is summary["itl_s"] is None
    assert distribution([]) is None


def test_replay_keeps_arrivals_and_reports_bad_requests(nano_config: ModelConfig) -> None:
    engine = Engine.build(nano_config, EngineConfig(num_blocks=32, block_size=16, max_num_seqs=4))
    warm_up(engine)
    trace = [*poisson_trace(50.0, 8, 20, 5, seed=2), TraceRequest(0.02, 4000, 3), TraceRequest(0.03, 0, 3)]
    trace.sort(key=lambda request: request.arrival_s)
    result = replay(engine, trace, speed=2.0, seed=5)
    summary = summarize(result)
    assert (summary["num_finished"], summary["num_failed"]) == (8, 2)
    assert all("prompt" in message for message in summary["errors"].values())
    rows = request_rows(result)
    assert [row["arrival_s"] for row in rows] == pytest.approx([r.arrival_s / 2.0 for r in trace])
    for row, asked in zip(rows, trace, strict=True):
        if row["error"] is None:
            assert (row["input_tokens"], row["output_tokens"]) == (asked.input_tokens, asked.output_tokens)
            assert row["arrival_s"] < row["token_times_s"][0]
    with pytest.raises(SettingError, match="speed=0"):
        replay(engine, trace, speed=0)
