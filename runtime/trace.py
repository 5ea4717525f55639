"""Requests to replay: public trace formats, or synthetic Poisson arrivals. Free of torch."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

MOONCAKE_HASH_TOKENS = 512  # tokens one hash id stands for; source: github.com/kvcache-ai/Mooncake, README
_AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_MOONCAKE_KEYS = ("timestamp", "input_length", "output_length")


class TraceError(ValueError):
    """A trace that cannot be read; the message names file, line and field."""


@dataclass(frozen=True)
class TraceRequest:
    """arrival_s counts from the first request. Equal leading hash_ids mean equal leading prompt tokens."""

    arrival_s: float
    input_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...] = ()
    hash_tokens: int = MOONCAKE_HASH_TOKENS


def load_trace(path: Path, *, max_requests: int | None = None, length_scale: float = 1.0) -> list[TraceRequest]:
    """Azure CSV (TIMESTAMP, ContextTokens, GeneratedTokens) or Mooncake JSONL (milliseconds), told by suffix.

    length_scale: multiplies all token counts, so that a small machine can replay the shape of a trace.
    """
    if not 0 < length_scale < math.inf:
        raise TraceError(f"length_scale={length_scale} is out of range; use a factor above 0")
    if max_requests is not None and max_requests < 1:
        raise TraceError(f"max_requests={max_requests} leaves nothing to replay; use 1 or more")
    readers = {".csv": _read_azure, ".jsonl": _read_mooncake}
    if path.suffix not in readers:
        raise TraceError(f"trace {path} has suffix {path.suffix!r}; use .csv (Azure) or .jsonl (Mooncake)")
    requests = []
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            for request in readers[path.suffix](path, lines):
                requests.append(request)
                if len(requests) == max_requests:
                    break
    except (UnicodeDecodeError, csv.Error):
        raise TraceError(f"trace {path} is not a text file; give a CSV or JSONL trace") from None
    if not requests:
        raise TraceError(f"trace {path} holds no request")
    start_s = min(request.arrival_s for request in requests)
    scaled = (_scaled(replace(r, arrival_s=r.arrival_s - start_s), length_scale) for r in requests)
    return sorted(scaled, key=lambda request: request.arrival_s)


def _scaled(request: TraceRequest, factor: float) -> TraceRequest:
    return replace(
        request,
        input_tokens=max(1, round(request.input_tokens * factor)),
        output_tokens=max(1, round(request.output_tokens * factor)),
        hash_tokens=max(1, round(request.hash_tokens * factor)),
    )


def _read_azure(path: Path, lines: Any) -> Iterator[TraceRequest]:
    rows = csv.DictReader(lines)
    missing = [name for name in _AZURE_COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise TraceError(f"trace {path} lacks the column {missing[0]}; it needs {', '.join(_AZURE_COLUMNS)}")
    for row in rows:
        when = f"{path}, line {rows.line_num}"
        try:
            # Seven fractional digits in the published files; Python takes six.
            whole, _, fraction = (row["TIMESTAMP"] or "").partition(".")
            arrival_s = datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp() + float(f"0.{fraction[:9] or 0}")
        except ValueError:
            raise TraceError(f"{when}: TIMESTAMP {row['TIMESTAMP']!r} is no date and time") from None
        yield TraceRequest(
            arrival_s,
            _count(row["ContextTokens"], "ContextTokens", when),
            _count(row["GeneratedTokens"], "GeneratedTokens", when),
        )


def _read_mooncake(path: Path, lines: Any) -> Iterator[TraceRequest]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        when = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            raise TraceError(f"{when} is not JSON; each line must be one object") from None
        missing = [key for key in _MOONCAKE_KEYS if not isinstance(record, dict) or key not in record]
        if missing:
            raise TraceError(f"{when} lacks {missing[0]!r}; it needs {', '.join(_MOONCAKE_KEYS)}")
        timestamp = record["timestamp"]
        if not isinstance(timestamp, int | float) or not math.isfinite(timestamp):
            raise TraceError(f"{when}: timestamp {timestamp!r} is no number of milliseconds")
        yield TraceRequest(
            timestamp / 1000.0,
            _count(record["input_length"], "input_length", when),
            _count(record["output_length"], "output_length", when),
            _hash_ids(record.get("hash_ids"), when),
        )


def _hash_ids(value: Any, when: str) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(i, int) and i >= 0 for i in value):
        raise TraceError(f"{when}: hash_ids {str(value)[:40]!r} is no list of whole numbers from 0 up")
    return tuple(value)


def _count(value: Any, name: str, when: str) -> int:
    try:
        count = int(value)
    except (TypeError, ValueError):
        raise TraceError(f"{when}: {name} {value!r} is no number of tokens") from None
    if count < 0:
        raise TraceError(f"{when}: {name} {count} is negative; use 0 or more tokens")
    return count


def poisson_trace(
    rate: float, num_requests: int, input_tokens: int, output_tokens: int, seed: int
) -> list[TraceRequest]:
    """Poisson arrivals of equal requests.

    rate: mean arrivals. [1/s]
    """
    if not 0 < rate < math.inf:
        raise TraceError(f"rate={rate} is out of range; use requests per second above 0")
    for name, value in (("num_requests", num_requests), ("isl", input_tokens), ("osl", output_tokens)):
        if value < 1:
            raise TraceError(f"{name}={value} is too small; use 1 or more")
    gaps = np.random.default_rng(seed).exponential(1.0 / rate, num_requests)
    arrivals = np.cumsum(gaps) - gaps[0]
    return [TraceRequest(float(arrival), input_tokens, output_tokens) for arrival in arrivals]


def prompt_tokens(request: TraceRequest, index: int, vocab_size: int, seed: int) -> tuple[int, ...]:
    """Random prompt of the given length; what hash ids call equal is equal."""
    tokens: list[int] = []
    for hash_id in request.hash_ids:
        if len(tokens) >= request.input_tokens:
            break
        piece = np.random.default_rng((seed, 1, hash_id)).integers(vocab_size, size=request.hash_tokens)
        tokens.extend(piece.tolist())
    missing = max(0, request.input_tokens - len(tokens))
    tokens.extend(np.random.default_rng((seed, 2, index)).integers(vocab_size, size=missing).tolist())
    return tuple(tokens[: request.input_tokens])
