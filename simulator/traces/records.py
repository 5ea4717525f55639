"""Rows of a trace file, whatever it is written in: CSV, JSON lines, one JSON document or Parquet, gzipped or not."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from simulator.traces.columns import TraceError

GZIP, PARQUET = b"\x1f\x8b", b"PAR1"
HEAD = 200  # rows whose keys tell the format [assumed]
DELIMITERS = ",;\t|"
PARQUET_ROWS = 65_536  # of a batch


class Record(NamedTuple):
    """One row. where: file and line, for messages. values: by column; none where the row is no record, by `problem`."""

    where: str
    values: Mapping[str, Any]
    problem: str = ""


class Table(NamedTuple):
    """columns: all that the header, or the first rows, name."""

    columns: tuple[str, ...]
    records: Iterator[Record]


@contextmanager
def open_table(path: Path) -> Iterator[Table]:
    """The rows of a file, read as they are asked for. Raises TraceError where the file itself cannot be read."""
    try:
        with path.open("rb") as raw:
            start = raw.read(4)
            raw.seek(0)
            if start == PARQUET:
                yield _headed(_parquet_rows(path))
                return
            stream: Any = gzip.GzipFile(fileobj=raw) if start.startswith(GZIP) else raw
            text = io.TextIOWrapper(io.BufferedReader(stream), encoding="utf-8-sig", newline="")
            yield _text_table(path, text)
    except FileNotFoundError:
        raise TraceError(f"trace file {path} does not exist; give the path of a trace") from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise TraceError(
            f"trace file {path} cannot be read ({error}); give a readable CSV, JSON or Parquet file"
        ) from None


def _text_table(path: Path, text: IO[str]) -> Table:
    first = text.readline()
    while first and not first.strip():
        first = text.readline()
    lines = chain([first], text)
    opening = first.lstrip()[:1]
    if opening == "[" or (opening == "{" and not _is_json(first)):
        document = _document(path, lines)
        if document is not None:
            return _headed(document)
        lines = chain([first], text)
    if opening in ("{", "["):
        return _headed(_json_rows(path, lines))
    return _csv_table(path, lines, first)


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _document(path: Path, lines: Iterator[str]) -> Iterator[Record] | None:
    """The entries of a list that is one JSON document; None where it is JSON lines after all."""
    held = list(lines)
    try:
        found = json.loads("".join(held))
    except (ValueError, RecursionError):
        return _json_rows(path, iter(held))
    entries = found if isinstance(found, list) else [found]
    if not all(isinstance(entry, dict) for entry in entries[:1]):
        return _json_rows(path, iter(held))
    return (
        Record(f"{path}, entry {number}", entry if isinstance(entry, dict) else {}, _not_an_object(entry))
        for number, entry in enumerate(entries, start=1)
    )


def _not_an_object(entry: Any) -> str:
    return "" if isinstance(entry, dict) else f"{str(entry)[:40]} is not an object; correct or remove it"


def _json_rows(path: Path, lines: Iterator[str]) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            column = getattr(error, "colno", 1)
            why = getattr(error, "msg", str(error))
            yield Record(where, {}, f"column {column}: not JSON ({why}); correct or remove the line")
            continue
        yield Record(where, entry if isinstance(entry, dict) else {}, _not_an_object(entry))


def _csv_table(path: Path, lines: Iterator[str], first: str) -> Table:
    delimiter = max(DELIMITERS, key=first.count)
    rows = csv.reader(lines, delimiter=delimiter)
    header = tuple(name.strip() for name in next(rows, []))

    def records() -> Iterator[Record]:
        while True:
            try:
                cells = next(rows, None)
            except csv.Error as error:
                yield Record(f"{path}, line {rows.line_num}", {}, f"not CSV ({error}); correct or remove the line")
                continue
            if cells is None:
                return
            if not cells:
                continue
            where = f"{path}, line {rows.line_num}"
            if len(cells) != len(header):
                problem = f"{len(cells)} columns instead of {len(header)}; correct or remove the line"
                yield Record(where, {}, problem)
                continue
            yield Record(where, dict(zip(header, cells, strict=True)))

    return Table(header, records())


def _parquet_rows(path: Path) -> Iterator[Record]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise TraceError(f"trace file {path} is Parquet, which needs pyarrow; install it, or give a CSV") from None
    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(PARQUET_ROWS):
            for values in batch.to_pylist():
                number += 1
                yield Record(f"{path}, row {number}", values)
    except pyarrow.ArrowException as error:
        raise TraceError(f"trace file {path} is not Parquet that can be read ({error}); write it anew") from None


def _headed(records: Iterator[Record]) -> Table:
    """With the columns that the first rows name between them."""
    head = list(islice(records, HEAD))
    columns = dict.fromkeys(key for record in head for key in record.values)
    return Table(tuple(columns), chain(head, records))
