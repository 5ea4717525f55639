from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from runtime.trace import TraceError, TraceRequest, load_trace, poisson_trace, prompt_tokens

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
2023-11-16 18:18:04,110,27
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_azure_times_count_from_the_first_request(tmp_path: Path) -> None:
    trace = load_trace(write(tmp_path / "a.csv", AZURE))
    assert [(r.input_tokens, r.output_tokens) for r in trace] == [(4808, 10), (3180, 8), (110, 27)]
    assert [r.arrival_s for r in trace] == pytest.approx([0.0, 0.052, 60.02004], abs=1e-6)


def test_mooncake_milliseconds_and_shared_prefixes(tmp_path: Path) -> None:
    lines = [
        {"timestamp": 2000, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]},
        {"timestamp": 500, "input_length": 1030, "output_length": 7, "hash_ids": [0, 1, 9]},
    ]
    path = write(tmp_path / "m.jsonl", "\n".join(json.dumps(line) for line in lines))
    first, second = load_trace(path)
    assert (first.arrival_s, second.arrival_s) == (0.0, 1.5), "sorted by time"
    one, two = prompt_tokens(first, 0, 1000, seed=3), prompt_tokens(second, 1, 1000, seed=3)
    assert (len(one), len(two)) == (1030, 1100)
    assert one[:1024] == two[:1024]
    assert one[1024:] != two[1024:1030]


def test_length_scale_keeps_shared_prefixes_shared(tmp_path: Path) -> None:
    line = {"timestamp": 0, "input_length": 1024, "output_length": 100, "hash_ids": [0, 1]}
    other = {**line, "hash_ids": [0, 2]}
    path = write(tmp_path / "m.jsonl", f"{json.dumps(line)}\n\n{json.dumps(other)}\n")
    one, two = load_trace(path, length_scale=1 / 16)
    assert (one.input_tokens, one.output_tokens) == (64, 6)
    a, b = prompt_tokens(one, 0, 500, seed=0), prompt_tokens(two, 1, 500, seed=0)
    assert a[:32] == b[:32]
    assert a[32:] != b[32:]


def test_poisson_gaps_are_exponential() -> None:
    arrivals = np.array([r.arrival_s for r in poisson_trace(4.0, 20_000, 10, 5, seed=1)])
    gaps = np.diff(arrivals)
    assert arrivals[0] == 0.0
    # Mean and standard deviation of an exponential are both 1 / rate; four standard errors of the mean.
    assert gaps.mean() == pytest.approx(0.25, abs=4 * 0.25 / np.sqrt(gaps.size))
    assert gaps.std() == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "a,b\n1,2\n", "lacks the column TIMESTAMP"),
        ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,1,2\n", "line 2: TIMESTAMP 'noon'"),
        ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00,x,2\n", "ContextTokens 'x'"),
        ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00,-4,2\n", "-4 is negative"),
        ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n", "holds no request"),
        ("t.jsonl", "{", "line 1 is not JSON"),
        ("t.jsonl", "[1]", "line 1 lacks 'timestamp'"),
        ("t.jsonl", '{"timestamp": 1, "input_length": 3}', "lacks 'output_length'"),
        ("t.jsonl", '{"timestamp": "x", "input_length": 3, "output_length": 1}', "timestamp 'x'"),
        (
            "t.jsonl",
            '{"timestamp": 1, "input_length": 3, "output_length": 1, "hash_ids": [-1]}',
            r"hash_ids '\[-1\]' is no list",
        ),
        ("t.txt", "", "suffix '.txt'"),
    ],
)
def test_bad_traces_are_refused_in_one_sentence(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        load_trace(write(tmp_path / name, text))


def test_binary_file_is_no_trace(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(TraceError, match="not a text file"):
        load_trace(tmp_path / "t.csv")


def test_poisson_settings_are_checked() -> None:
    with pytest.raises(TraceError, match="rate=0"):
        poisson_trace(0, 1, 1, 1, 0)
    with pytest.raises(TraceError, match="osl=0"):
        poisson_trace(1, 1, 1, 0, 0)


def test_prompts_are_reproducible_and_within_the_vocabulary() -> None:
    request = TraceRequest(0.0, 50, 1)
    assert prompt_tokens(request, 4, 17, seed=1) == prompt_tokens(request, 4, 17, seed=1)
    assert prompt_tokens(request, 4, 17, seed=1) != prompt_tokens(request, 5, 17, seed=1)
    assert set(prompt_tokens(request, 4, 17, seed=1)) <= set(range(17))
