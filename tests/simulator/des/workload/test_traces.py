import json
from pathlib import Path

import numpy as np
import pytest

from simulator.des.workload.requests import make_requests
from simulator.scenario import Trace

ROWS = [{"timestamp": 130 * i * i, "input_length": 100 + i, "output_length": 9 + i % 4} for i in range(50)]


@pytest.mark.parametrize("scale", [{"speed": 1.37}, {"rate": 3.7}])
def test_scaling_a_trace_moves_arrivals_and_nothing_else(tmp_path: Path, scale: dict[str, float]) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    plain = make_requests(Trace(path=path), np.random.SeedSequence(0))
    scaled = make_requests(Trace.model_validate({"path": path} | scale), np.random.SeedSequence(0))
    assert scaled.prompt_tokens.tolist() == plain.prompt_tokens.tolist()
    assert scaled.output_tokens.tolist() == plain.output_tokens.tolist()
    assert plain.arrival_s is not None
    assert scaled.arrival_s is not None
    factor = scale.get("speed") or scale["rate"] / (50 / plain.arrival_s[-1])
    np.testing.assert_allclose(scaled.arrival_s, plain.arrival_s / factor)
    if "rate" in scale:
        assert 50 / scaled.arrival_s[-1] == pytest.approx(3.7)


def test_a_trace_is_scaled_one_way_and_needs_a_span_for_a_rate(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"timestamp": 0, "input_length": 1, "output_length": 1}))
    with pytest.raises(ValueError, match="both scale the trace"):
        Trace(path=path, speed=2.0, rate=1.0)
    with pytest.raises(ValueError, match="all arrive at one instant"):
        make_requests(Trace(path=path, rate=1.0), np.random.SeedSequence(0))


def test_lengths_without_arrivals_come_as_a_poisson_stream_of_the_given_rate(tmp_path: Path) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text("num_prefill_tokens,num_decode_tokens\n" + "100,10\n" * 4000)
    with pytest.raises(ValueError, match=r"has no arrivals; give workload\.rate"):
        make_requests(Trace(path=path), np.random.SeedSequence(0))
    arrival_s = make_requests(Trace(path=path, rate=5.0), np.random.SeedSequence(0)).arrival_s
    assert arrival_s is not None
    gaps = np.diff(arrival_s)
    assert gaps.mean() == pytest.approx(0.2, rel=0.05)
    assert gaps.std() == pytest.approx(0.2, rel=0.1)


def test_turns_with_delays_wait_for_the_answer_before(tmp_path: Path) -> None:
    path = tmp_path / "turns.jsonl"
    lines = [
        {"session_id": "b", "timestamp": 700, "input_length": 800, "output_length": 40},
        {"session_id": "a", "timestamp": 0, "input_length": 1200, "output_length": 90},
        {"session_id": "a", "delay": 2000, "input_length": 150, "output_length": 120},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    requests = make_requests(Trace(path=path), np.random.SeedSequence(0))
    plan = requests.sessions
    assert plan is not None
    assert plan.begin_s == pytest.approx([0.0, 0.7])
    assert plan.first == [0, 2, 3]
    assert plan.think_s == [0.0, 2.0, 0.0]
    assert requests.prompt_tokens.tolist() == [1200, 1200 + 90 + 150, 800]
    assert requests.blocks is not None
    # 1,289 tokens have KV after the first answer: two whole blocks of 512, with which the next prompt begins.
    assert plan.kept_blocks[0] == requests.blocks[1][:2]
    assert not set(requests.blocks[2]) & set(plan.kept_blocks[1])
