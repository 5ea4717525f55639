"""Recorded traffic: Azure CSV and Mooncake JSONL files as columns of arrivals and token counts."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulator.scenario import ScenarioError

BLOCK_TOKENS = 512  # prompt tokens of a block that prefixes are compared by, as in the Mooncake traces
MOST_TOKENS = 10**9  # of one side of a request: far above any real one, far below int64
AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MOONCAKE_KEYS = ("timestamp", "input_length", "output_length")


class TraceError(ScenarioError):
    """A trace file that cannot be replayed; the message names file, line and column."""


@dataclass(frozen=True)
class TraceColumns:
    """Requests in order of arrival; the first arrives at 0 s. A column has one entry a request."""

    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    blocks: list[tuple[int, ...]] | None = None  # prefix block ids of each prompt; None where the trace has none


class Row(NamedTuple):
    """One request; seconds from any origin."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] | None = None


def read_trace(path: Path, file_format: str = "auto", limit: int | None = None) -> TraceColumns:
    """Read the first `limit` requests of a trace. `auto` goes by the suffix: .csv, or .jsonl and .json."""
    kind = _guess(path) if file_format == "auto" else file_format
    reader = _azure_rows if kind == "azure_csv" else _mooncake_rows
    rows: list[Row] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in reader(path, file):
                rows.append(row)
                if limit is not None and len(rows) >= limit:
                    break
    except FileNotFoundError:
        raise TraceError(f"trace file {path} does not exist; give the path of a trace") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"trace file {path} cannot be read ({error}); give a readable text file") from None
    if not rows:
        raise TraceError(f"trace file {path} holds no requests; give a trace with at least one")
    arrival, prompt, output = (np.array([row[i] for row in rows]) for i in range(3))
    order = np.argsort(arrival, kind="stable")
    blocks = [b for b in (rows[i].blocks for i in order) if b is not None]
    return TraceColumns(
        (arrival[order] - arrival.min()).astype(np.float64),
        prompt[order].astype(np.int64),
        output[order].astype(np.int64),
        blocks=blocks if len(blocks) == len(rows) else None,
    )


def _guess(path: Path) -> str:
    known = {".csv": "azure_csv", ".jsonl": "mooncake_jsonl", ".json": "mooncake_jsonl"}
    try:
        return known[path.suffix.lower()]
    except KeyError:
        raise TraceError(
            f"trace file {path}: the suffix '{path.suffix}' says neither CSV nor JSONL; "
            "set workload.format to 'azure_csv' or 'mooncake_jsonl'"
        ) from None


def _azure_rows(path: Path, file: Any) -> Iterator[Row]:
    """TIMESTAMP,ContextTokens,GeneratedTokens with times such as 2023-11-16 18:15:46.6805900."""
    lines = csv.reader(file)
    header = [name.strip() for name in next(lines, [])]
    if not header:
        return
    for name in AZURE_COLUMNS:
        if name not in header:
            raise TraceError(f"{path}, line 1: column '{name}' is missing; the header needs {', '.join(AZURE_COLUMNS)}")
    when, prompt, output = (header.index(name) for name in AZURE_COLUMNS)
    try:
        for cells in lines:
            if not cells:
                continue
            where = f"{path}, line {lines.line_num}"
            if len(cells) != len(header):
                raise TraceError(f"{where}: {len(cells)} columns instead of {len(header)}; correct or remove the line")
            yield Row(
                _azure_seconds(cells[when], where),
                _count(cells[prompt], f"{where}, column ContextTokens"),
                _count(cells[output], f"{where}, column GeneratedTokens"),
            )
    except csv.Error as error:
        raise TraceError(f"{path}, line {lines.line_num}: not CSV ({error}); correct or remove the line") from None


def _azure_seconds(text: str, where: str) -> float:
    """Seconds since 2000; digits beyond a microsecond are cut, and a time without a zone is UTC."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise TraceError(
            f"{where}, column TIMESTAMP: '{text}' is not a time like 2023-11-16 18:15:46.6805900"
        ) from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (moment - datetime(2000, 1, 1, tzinfo=UTC)).total_seconds()


def _count(value: Any, where: str) -> int:
    """A whole number of at least 1, and of a size that a token count can have."""
    try:
        number = int(value.strip()) if isinstance(value, str) else value
    except ValueError:
        number = None
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= MOST_TOKENS:
        raise TraceError(f"{where}: {value!r} is not a whole number between 1 and {MOST_TOKENS}")
    return number


def _block_ids(value: Any, where: str) -> tuple[int, ...] | None:
    """Ids of the prompt's prefix blocks."""
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(block, int) for block in value):
        raise TraceError(f"{where}: {str(value)[:40]} is not a list of whole numbers; correct or remove it")
    return tuple(value)


def _mooncake_rows(path: Path, file: Any) -> Iterator[Row]:
    """One JSON object a line: timestamp in milliseconds, input_length, output_length, and hash_ids if given."""
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise TraceError(
                f"{where}, column {error.colno}: not JSON ({error.msg}); correct or remove the line"
            ) from None
        if not isinstance(record, dict):
            raise TraceError(f"{where}: {line.strip()[:40]} is not an object with {', '.join(MOONCAKE_KEYS)}")
        for key in MOONCAKE_KEYS:
            if key not in record:
                raise TraceError(f"{where}: key '{key}' is missing; each line needs {', '.join(MOONCAKE_KEYS)}")
        stamp = record["timestamp"]
        if isinstance(stamp, bool) or not isinstance(stamp, (int, float)) or not 0 <= stamp < float("inf"):
            raise TraceError(f"{where}, column timestamp: {stamp!r} is not a number of milliseconds from 0 on")
        yield Row(
            stamp / 1e3,
            _count(record["input_length"], f"{where}, column input_length"),
            _count(record["output_length"], f"{where}, column output_length"),
            _block_ids(record.get("hash_ids"), f"{where}, column hash_ids"),
        )
