"""Traces as their tools write them; the rows are invented, the layouts are those of the formats' own pages."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from simulator.scenario import Trace, TraceColumnNames
from simulator.traces.columns import TraceColumns, TraceError
from simulator.traces.prefixes import ideal_hit_tokens
from simulator.traces.reading import read_trace

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def lines(folder: Path, rows: list[dict[str, Any]], name: str = "t.jsonl") -> Path:
    return written(folder, name, "\n".join(map(json.dumps, rows)) + "\n")


def read(path: Path, **keys: Any) -> TraceColumns:
    return read_trace(Trace.model_validate({"path": path} | keys))


def mooncake(count: int, unit: float, size: int, digits: int | None = None) -> list[dict[str, Any]]:
    """Two requests a second, with times in `unit` and ids of blocks of `size` tokens."""
    prompts = [521 + 97 * i for i in range(count)]
    return [
        {
            "timestamp": round(i * 0.5017 / unit, digits) if digits is not None else round(i * 0.5017 / unit),
            "input_length": n,
            "output_length": 20,
            "hash_ids": list(range(-(-n // size))),
        }
        for i, n in enumerate(prompts)
    ]


def test_azure_of_2023_is_read_to_the_microsecond_and_starts_at_zero(tmp_path: Path) -> None:
    path = written(
        tmp_path, "a.csv", AZURE + "2023-11-16 23:59:59.5000000,374,44\n2023-11-17 00:00:01.2500001,396,109\n"
    )
    trace = read(path)
    np.testing.assert_allclose(trace.arrival_s, [0.0, 1.75], atol=1e-6)
    assert trace.prompt_tokens.tolist() == [374, 396]
    assert trace.output_tokens.tolist() == [44, 109]
    assert trace.format == "azure"


def test_azure_of_2024_has_a_zone_windows_line_ends_and_whole_seconds(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", AZURE + "2024-05-10 00:00:00.009930+00:00,10,2\r\n2024-05-10 00:00:01+00:00,3,4")
    np.testing.assert_allclose(read(path).arrival_s, [0.0, 0.99007], atol=1e-6)


def test_images_of_azures_multimodal_trace_are_said(tmp_path: Path) -> None:
    header = "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n"
    path = written(tmp_path, "m.csv", header + "2024-10-01 00:00:00,0,10,2\n2024-10-01 00:00:01,3,900,4\n")
    trace = read(path)
    assert trace.prompt_tokens.tolist() == [10, 900]
    assert any(note.startswith("1 requests carry images") for note in trace.notes)


def test_mooncake_counts_milliseconds_and_is_put_in_order(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 3000, "input_length": 7, "output_length": 2, "hash_ids": [0]},
        {"timestamp": 1500, "input_length": 9, "output_length": 1, "hash_ids": [3]},
    ]
    trace = read(lines(tmp_path, rows))
    assert trace.arrival_s.tolist() == [0.0, 1.5]
    assert trace.prompt_tokens.tolist() == [9, 7]
    assert (trace.format, trace.time_unit, trace.block_tokens) == ("mooncake", "ms", 512)


@pytest.mark.parametrize("size", [16, 64, 128, 256, 512])
def test_the_tokens_of_a_block_are_told_from_the_number_of_ids(tmp_path: Path, size: int) -> None:
    path = lines(tmp_path, mooncake(20, 1e-3, size))
    assert read(path).block_tokens == size
    wrong = 512 if size < 512 else 16
    with pytest.raises(TraceError, match=rf"block_tokens={wrong} contradicts .*line \d+: .* or give {size}"):
        read(path, block_tokens=wrong)


def test_ids_of_full_blocks_alone_tell_their_size_too(tmp_path: Path) -> None:
    rows = [row | {"hash_ids": row["hash_ids"][: row["input_length"] // 128]} for row in mooncake(20, 1e-3, 128)]
    assert read(lines(tmp_path, rows)).block_tokens == 128


def test_ids_that_fit_no_block_are_refused(tmp_path: Path) -> None:
    rows = [row | {"hash_ids": [0, 1, 2, 3, 4, 5, 6]} for row in mooncake(20, 1e-3, 512)]
    with pytest.raises(TraceError, match=r"line 1, column hash_ids: a prompt of 521 tokens has 7 hash ids"):
        read(lines(tmp_path, rows))


@pytest.mark.parametrize(("unit", "digits", "name"), [(1.0, 3, "s"), (1e-3, None, "ms"), (1e-6, None, "us")])
def test_the_unit_is_told_from_the_file(tmp_path: Path, unit: float, digits: int | None, name: str) -> None:
    path = lines(tmp_path, mooncake(40, unit, 512, digits))
    trace = read(path)
    assert trace.time_unit == name
    assert trace.arrival_s[-1] == pytest.approx(39 * 0.5017, rel=1e-3)
    assert read(path, time_unit="ms").arrival_s[-1] == pytest.approx(39 * 0.5017 / unit * 1e-3, rel=1e-3)


@pytest.mark.parametrize(("unit", "name"), [(1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")])
def test_times_since_1970_name_their_own_unit(tmp_path: Path, unit: float, name: str) -> None:
    begin = 1_796_033_700
    rows = [{"ts": int((begin + i) / unit), "in": 100, "out": 10} for i in range(10)]
    path = lines(tmp_path, rows)
    columns = {"arrived": "ts", "prompt": "in", "output": "out"}
    trace = read(path, columns=columns)
    assert trace.time_unit == name
    assert trace.arrival_s[-1] == pytest.approx(9.0, abs=1e-3)
    wrong = "ms" if name != "ms" else "s"
    with pytest.raises(TraceError, match=f"time_unit='{wrong}' contradicts .* since 1970"):
        read(path, columns=columns, time_unit=wrong)


def bailian(count: int, unit: float) -> list[dict[str, Any]]:
    """Conversations of two turns, each question 20 s after the one before it."""
    rows = []
    for i in range(count):
        own = list(range(100 * i, 100 * i + 40))
        for turn, (at, tokens) in enumerate([(7.25 * i, 300), (7.25 * i + 20, 600)], start=1):
            rows.append(
                {"chat_id": 2 * i + turn, "parent_chat_id": -1 if turn == 1 else 2 * i + 1,
                 "timestamp": round(at / unit, 3), "input_length": tokens, "output_length": 100, "type": "text",
                 "turn": turn, "hash_ids": own[: -(-tokens // 16)]}
            )  # fmt: skip
    return sorted(rows, key=lambda row: row["timestamp"])


def test_chats_in_seconds_with_blocks_of_16(tmp_path: Path) -> None:
    """By hand: of each second turn the 18 full blocks and the cut one of the first are found: 19 x 16 tokens."""
    trace = read(lines(tmp_path, bailian(5, 1.0)))
    assert (trace.format, trace.time_unit, trace.block_tokens) == ("bailian", "s", 16)
    assert trace.arrival_s[-1] == pytest.approx(4 * 7.25 + 20)
    assert trace.session is not None
    assert len(set(trace.session.tolist())) == 5
    assert trace.blocks is not None
    assert ideal_hit_tokens(trace.blocks, trace.prompt_tokens.tolist(), 16) == 5 * 19 * 16


def test_chats_that_could_not_be_answered_in_time_are_in_another_unit(tmp_path: Path) -> None:
    path = lines(tmp_path, bailian(5, 1e-6))
    assert read(path).time_unit == "us"
    with pytest.raises(TraceError, match=r"time_unit='ns' contradicts .* or give 'us'"):
        read(path, time_unit="ns")


def test_failed_requests_of_burstgpt_are_counted_and_left_out(tmp_path: Path) -> None:
    header = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    body = "43,5,14.8,GPT-4,1764,481,2245,Conversation log\n45,,1.4,ChatGPT,821,0,821,API log\n"
    path = written(tmp_path, "b.csv", header + body + "106,5,19.6,GPT-4,332,643,975,Conversation log\n")
    trace = read(path)
    assert trace.arrival_s.tolist() == [0.0, 63.0]
    assert trace.failed == 1
    assert trace.left_out == ("1 rows without a prompt or an answer are left out as failed requests",)
    assert trace.session is not None
    assert trace.session.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ("arrived_at,num_prefill_tokens,num_decode_tokens", "vidur"),
        ("arrival_timestamp,prompt_size,token_size", "splitwise"),
    ],
)
def test_simulators_traces_count_seconds(tmp_path: Path, header: str, kind: str) -> None:
    trace = read(written(tmp_path, "v.csv", header + "\n0.0,492,439\n0.334782,1928,250\n"))
    assert trace.format == kind
    assert trace.arrival_s.tolist() == [0.0, 0.334782]


@pytest.mark.parametrize("name", ["t.csv.gz", "t.parquet", "t.csv", "t.tsv"])
def test_the_content_tells_how_a_file_is_packed(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    frame = pd.DataFrame({"arrived_at": [0.0, 2.5], "num_prefill_tokens": [10, 20], "num_decode_tokens": [3, 4]})
    if name == "t.parquet":
        frame.to_parquet(path)
    else:
        text = frame.to_csv(index=False, sep="\t" if name == "t.tsv" else ",")
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    trace = read(path)
    assert trace.arrival_s.tolist() == [0.0, 2.5]
    assert trace.output_tokens.tolist() == [3, 4]


def test_dates_of_parquet_are_arrivals(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    when = pd.to_datetime(["2024-05-10 00:00:00.5", "2024-05-10 00:00:02.0"], utc=True)
    pd.DataFrame({"TIMESTAMP": when, "ContextTokens": [10, 20], "GeneratedTokens": [3, 4]}).to_parquet(path)
    assert read(path).arrival_s.tolist() == [0.0, 1.5]


def test_columns_of_ones_own_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, "own.csv", "when_ms;n_in;n_out\n1000;12;3\n3500;20;5\n")
    names = TraceColumnNames(arrived="when_ms", prompt="n_in", output="n_out")
    trace = read_trace(Trace(path=path, columns=names))
    assert trace.arrival_s.tolist() == [0.0, 2.5]
    with pytest.raises(TraceError, match=r"columns\.prompt='tokens' is no column of it; it has when_ms, n_in, n_out"):
        read(path, columns={"prompt": "tokens", "output": "n_out"})
    with pytest.raises(TraceError, match=r"columns when_ms, n_in, n_out are those of no known trace; .*--columns"):
        read(path)


def test_one_bad_record_ends_itself_and_is_listed(tmp_path: Path) -> None:
    text = (
        AZURE + "2023-11-16 00:00:00,12,3\n2023-11-16 00:00:01,12,x\n2023-11-16 00:00:02,5\n2023-11-16 00:00:03,7,8\n"
    )
    rest = "".join(f"2023-11-16 00:00:0{i},7,8\n" for i in range(4, 10))
    trace = read(written(tmp_path, "a.csv", text + rest))
    assert len(trace) == 8
    assert [problem.partition("a.csv")[2] for problem in trace.unreadable] == [
        ", line 3, column GeneratedTokens: 'x' is not a whole number of tokens from 0 to 1000000000",
        ", line 4: 2 columns instead of 3; correct or remove the line",
    ]


def test_a_file_of_which_most_cannot_be_read_is_refused(tmp_path: Path) -> None:
    text = AZURE + "2023-11-16 00:00:00,12,3\n" + "2023-11-16 00:00:01,1,x\n" * 3
    with pytest.raises(TraceError, match=r"line 3, column GeneratedTokens: 'x'.*\(3 rows .* half of them"):
        read(written(tmp_path, "a.csv", text))


def test_limit_takes_the_first_rows_and_reads_no_further(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", AZURE + "2023-11-16 00:00:00,1,1\n2023-11-16 00:00:01,2,2\nnonsense\n")
    trace = read(path, limit=2)
    assert trace.prompt_tokens.tolist() == [1, 2]
    assert not trace.unreadable


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.csv", AZURE + "2023-11-16 00:00:00,12,x\n", "line 2, column GeneratedTokens: 'x'"),
        ("a.csv", AZURE + "2023-11-16 00:00:00,1.5,5\n", "column ContextTokens: '1.5'"),
        ("a.csv", AZURE + "yesterday,12,3\n", "line 2, column TIMESTAMP: 'yesterday'"),
        ("a.csv", AZURE + "2023-11-16 00:00:00,12\n", "line 2: 2 columns instead of 3"),
        ("a.csv", "TIMESTAMP,ContextTokens\n2023-11-16 00:00:00,12\n", "line 1: column 'GeneratedTokens' is missing"),
        ("a.csv", AZURE + "2023-11-16 00:00:00,0,3\n", "holds no requests (1 of failed requests)"),
        ("a.csv", AZURE, "holds no requests"),
        ("a.csv", "", "holds no requests"),
        ("m.jsonl", "", "holds no requests"),
        ("m.jsonl", '{"timestamp": 0, "input_length": 7}\n', "line 1: column 'output_length' is missing"),
        ("m.jsonl", '{"timestamp": 0, "input_length": -7, "output_length": 1}\n', "line 1, column input_length: -7"),
        ("m.jsonl", '{"timestamp": 0, "input_length": true, "output_length": 1}\n', "column input_length: True"),
        ("m.jsonl", '{"timestamp": -1, "input_length": 7, "output_length": 1}\n', "column timestamp: -1"),
        ("m.jsonl", '{"timestamp": NaN, "input_length": 7, "output_length": 1}\n', "column timestamp: nan"),
        ("m.jsonl", '{"timestamp": 0, \n', "line 1, column"),
        ("m.jsonl", "[1, 2]\n", "line 1: [1, 2] is not an object"),
        ("m.jsonl", '{"session_id": {"x": 1}, "input_length": 5, "output_length": 6}\n', "is no name of a session"),
        ("m.jsonl", '{"metadata": 5, "metrics": 6}\n', "column request_start_ns: None"),
        ("m.jsonl", "[" * 100_000, "line 1, column 1: not JSON"),
        ("m.json", "{}", "those of no known trace"),
        ("m.parquet", "PAR1 and nothing", "not Parquet that can be read"),
        ("m.gz", "", "holds no requests"),
    ],
)
def test_a_bad_trace_is_refused_in_one_sentence(tmp_path: Path, name: str, text: str, told: str) -> None:
    path = written(tmp_path, name, text)
    with pytest.raises(TraceError) as error:
        read(path)
    message = str(error.value)
    assert told in message
    assert str(path) in message
    assert "\n" not in message


def test_missing_files_folders_and_binary_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x81")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"a,b\n" * 999)[:-9])
    for path, told in [
        (tmp_path / "none.csv", "does not exist"),
        (tmp_path, "cannot be read"),
        (tmp_path / "binary.csv", "cannot be read"),
        (tmp_path / "cut.csv.gz", "cannot be read"),
    ]:
        with pytest.raises(TraceError, match=told):
            read(path)


def test_turns_whose_ids_go_on_are_whole_prompts(tmp_path: Path) -> None:
    rows = [
        {"session_id": "s", "input_length": 300, "output_length": 40, "hash_ids": [1]},
        {"session_id": "s", "delay": 500, "input_length": 700, "output_length": 40, "hash_ids": [1, 2]},
    ]
    trace = read(lines(tmp_path, rows))
    assert trace.prompt_tokens.tolist() == [300, 700]
    assert trace.turns is not None
    assert trace.turns.delay_s == [0.0, 0.5]
    assert not trace.timed


def test_texts_are_counted_by_characters_and_say_so(tmp_path: Path) -> None:
    talks = [
        {"id": "a", "conversations": [{"from": "human", "value": "x" * 40}, {"from": "gpt", "value": "y" * 9}]},
        {"id": "b", "conversations": [{"from": "gpt", "value": "first"}, {"from": "human", "value": "then"}]},
        {"id": "c", "conversations": []},
    ]
    trace = read(written(tmp_path, "sharegpt.json", json.dumps(talks, indent=1)))
    assert (trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), trace.failed) == ([10], [3], 2)
    assert any("estimated at 4 characters each (assumed" in note for note in trace.notes)
    own = lines(tmp_path, [{"prompt": "z" * 30, "output_tokens": 64}])
    assert read(own, characters_per_token=3.0).prompt_tokens.tolist() == [10]


def test_aiperf_turns_add_to_what_was_said_and_single_entries_do_not(tmp_path: Path) -> None:
    turns = [
        {"text": "a" * 40, "timestamp": 0, "output_length": 80},
        {"text": "b" * 8, "delay": 1500, "output_length": 6},
    ]
    trace = read(lines(tmp_path, [{"session_id": "s", "turns": turns}]))
    assert trace.prompt_tokens.tolist() == [10, 10 + 80 + 2]
    single = [{"session_id": "s", **turns[0]}, {"session_id": "s", **turns[1]}]
    assert read(lines(tmp_path, single)).prompt_tokens.tolist() == [10, 2]


def test_results_of_aiperf_are_a_trace_of_what_was_sent(tmp_path: Path) -> None:
    def record(start_s: float, tokens: int, error: object = None) -> dict[str, Any]:
        metrics = {"input_sequence_length": {"value": tokens, "unit": "tokens"},
                   "output_sequence_length": {"value": 20, "unit": "tokens"}}  # fmt: skip
        begin_ns = 1_796_033_700_000_000_000 + int(start_s * 1e9)
        return {"metadata": {"request_start_ns": begin_ns}, "metrics": {} if error else metrics, "error": error}

    trace = read(lines(tmp_path, [record(0.0, 100), record(0.5, 7, {"code": 502}), record(1.25, 300)]))
    assert trace.arrival_s == pytest.approx([0.0, 1.25], abs=1e-6)
    assert (trace.prompt_tokens.tolist(), trace.failed) == ([100, 300], 1)
