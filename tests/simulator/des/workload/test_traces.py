import json
from pathlib import Path

import numpy as np
import pytest

from simulator.des.workload.requests import make_requests
from simulator.des.workload.traces import TraceError, read_trace
from simulator.scenario import Trace

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_azure_csv_is_read_to_the_microsecond_and_starts_at_zero(tmp_path: Path) -> None:
    path = written(
        tmp_path, "a.csv", HEADER + "2023-11-16 23:59:59.5000000,374,44\n2023-11-17 00:00:01.2500001,396,109\n"
    )
    trace = read_trace(path)
    np.testing.assert_allclose(trace.arrival_s, [0.0, 1.75], atol=1e-6)
    assert trace.prompt_tokens.tolist() == [374, 396]
    assert trace.output_tokens.tolist() == [44, 109]


def test_azure_csv_of_2024_has_a_zone_and_windows_line_ends(tmp_path: Path) -> None:
    path = written(
        tmp_path, "a.csv", HEADER + "2024-05-10 00:00:00.009930+00:00,10,2\r\n2024-05-10 00:00:01+00:00,3,4\r\n"
    )
    np.testing.assert_allclose(read_trace(path).arrival_s, [0.0, 0.99007], atol=1e-6)


def test_mooncake_jsonl_counts_milliseconds_and_is_put_in_order(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "m.jsonl",
        '{"timestamp": 3000, "input_length": 7, "output_length": 2, "hash_ids": [0]}\n\n'
        '{"timestamp": 1500, "input_length": 9, "output_length": 1, "hash_ids": []}\n',
    )
    trace = read_trace(path)
    assert trace.arrival_s.tolist() == [0.0, 1.5]
    assert trace.prompt_tokens.tolist() == [9, 7]


def test_limit_takes_the_first_rows_and_reads_no_further(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", HEADER + "2023-11-16 00:00:00,1,1\n2023-11-16 00:00:01,2,2\nnonsense\n")
    assert read_trace(path, limit=2).prompt_tokens.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.csv", HEADER + "2023-11-16 00:00:00,12,x\n", "line 2, column GeneratedTokens: 'x'"),
        ("a.csv", HEADER + "2023-11-16 00:00:00,1,1\n2023-11-16 00:00:01,0,5\n", "line 3, column ContextTokens: '0'"),
        ("a.csv", HEADER + "2023-11-16 00:00:00,1.5,5\n", "column ContextTokens: '1.5'"),
        ("a.csv", HEADER + "yesterday,12,3\n", "line 2, column TIMESTAMP: 'yesterday'"),
        ("a.csv", HEADER + "2023-11-16 00:00:00,12\n", "line 2: 2 columns instead of 3"),
        ("a.csv", "TIMESTAMP,ContextTokens\n2023-11-16 00:00:00,12\n", "line 1: column 'GeneratedTokens' is missing"),
        ("a.csv", HEADER, "holds no requests"),
        ("a.csv", "", "holds no requests"),
        ("m.jsonl", "", "holds no requests"),
        ("m.jsonl", '{"timestamp": 0, "input_length": 7}\n', "line 1: key 'output_length' is missing"),
        ("m.jsonl", '{"timestamp": 0, "input_length": -7, "output_length": 1}\n', "line 1, column input_length: -7"),
        ("m.jsonl", '{"timestamp": 0, "input_length": true, "output_length": 1}\n', "column input_length: True"),
        ("m.jsonl", '{"timestamp": -1, "input_length": 7, "output_length": 1}\n', "column timestamp: -1"),
        ("m.jsonl", '{"timestamp": NaN, "input_length": 7, "output_length": 1}\n', "column timestamp: nan"),
        ("m.jsonl", '{"timestamp": 0, \n', "line 1, column"),
        ("m.jsonl", "[1, 2]\n", "line 1: [1, 2] is not an object"),
        ("m.parquet", "", "suffix '.parquet'"),
    ],
)
def test_a_bad_trace_is_refused_in_one_sentence(tmp_path: Path, name: str, text: str, told: str) -> None:
    path = written(tmp_path, name, text)
    with pytest.raises(TraceError) as error:
        read_trace(path)
    message = str(error.value)
    assert told in message
    assert str(path) in message
    assert "\n" not in message


def test_missing_folder_and_binary_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x81")
    for path, told in [
        (tmp_path / "none.csv", "does not exist"),
        (tmp_path, "suffix"),
        (tmp_path / "binary.csv", "cannot be read"),
    ]:
        with pytest.raises(TraceError, match=told):
            read_trace(path)
    with pytest.raises(TraceError, match="cannot be read"):
        read_trace(tmp_path, "azure_csv")


@pytest.mark.parametrize("scale", [{"speed": 1.37}, {"rate": 3.7}])
def test_scaling_a_trace_moves_arrivals_and_nothing_else(tmp_path: Path, scale: dict[str, float]) -> None:
    path = tmp_path / "t.jsonl"
    rows = [{"timestamp": 130 * i * i, "input_length": 100 + i, "output_length": 9 + i % 4} for i in range(50)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
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
