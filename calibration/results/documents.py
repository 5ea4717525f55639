"""What a result file holds: one JSON document, several in a row, or the tables of a CSV file."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibration.results.result import ResultError

GZIP = b"\x1f\x8b"
MOST_BYTES = 2 * 10**9  # of a file that is read at once: detailed results have some 100 MB (assumed)


@dataclass
class Documents:
    """objects: by file and line. tables: of a CSV file, each a list of rows with its header first.
    left_out: one sentence for each part that cannot be read."""

    path: Path
    objects: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    tables: list[list[list[str]]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def read_documents(path: Path) -> Documents:
    """Raises ResultError for a file that cannot be read."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ResultError(f"{path} has more than {MOST_BYTES / 1e9:g} GB; leave per-request details out of it")
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw.startswith(GZIP) else raw).decode("utf-8-sig")
    except FileNotFoundError:
        raise ResultError(f"{path} does not exist; give the path of a result file") from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ResultError(f"{path} cannot be read ({error}); give a JSON, JSONL or CSV file") from None
    found = Documents(path)
    if text.lstrip()[:1] in ("{", "["):
        _objects(text, found)
    else:
        _tables(text, found)
    if not (found.objects or found.tables):
        raise ResultError(found.left_out[0] if found.left_out else f"{path} is empty; give a result file")
    return found


def _objects(text: str, found: Documents) -> None:
    """One document after the other. Infinity and NaN are numbers here, as Python writes them."""
    decoder = json.JSONDecoder()
    place = 0
    while True:
        while place < len(text) and text[place] in " \t\r\n,":
            place += 1
        if place >= len(text):
            return
        line = text.count("\n", 0, place) + 1
        where = f"{found.path}, line {line}"
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            why = getattr(error, "msg", str(error))
            at = getattr(error, "lineno", line), getattr(error, "colno", 1)
            found.left_out.append(
                f"{where}: what begins here is not JSON ({why} at line {at[0]}, column {at[1]}); correct or remove it"
            )
            after = text.find("\n{", place)
            if after < 0:
                return
            place = after + 1
            continue
        entries = value if isinstance(value, list) else [value]
        for number, entry in enumerate(entries, start=1):
            at_entry = f"{where}, entry {number}" if isinstance(value, list) else where
            if isinstance(entry, dict):
                found.objects.append((at_entry, entry))
            else:
                found.left_out.append(f"{at_entry}: {str(entry)[:40]} is no object with results; remove it")


def _tables(text: str, found: Documents) -> None:
    """Tables of a CSV file, parted by empty lines."""
    table: list[list[str]] = []
    try:
        for row in csv.reader(io.StringIO(text)):
            if any(cell.strip() for cell in row):
                table.append(row)
            elif table:
                found.tables.append(table)
                table = []
    except csv.Error as error:
        found.left_out.append(f"{found.path}: not CSV ({error}); correct it")
    if table:
        found.tables.append(table)


@dataclass(frozen=True)
class Fields:
    """Reads numbers and words of one object, so that a bad one is named by its place."""

    where: str
    values: Mapping[str, Any]

    def number(self, *names: str, scale: float = 1.0) -> float | None:
        """The first of the keys that is there, `scale` times; None where it is null, NaN or infinite.

        A key with dots goes into the objects inside. Raises ResultError for what is no number.
        """
        for name in names:
            value = self._inside(name)
            if value is None:
                continue
            try:
                number = float(str(value).replace(",", "")) if isinstance(value, str) else float(value)
            except (TypeError, ValueError):
                raise ResultError(f"{self.where}, key {name}: {str(value)[:40]!r} is no number; correct it") from None
            if isinstance(value, bool):
                raise ResultError(f"{self.where}, key {name}: {value} is no number; correct it")
            if not math.isfinite(number):
                continue
            if number < 0:
                raise ResultError(f"{self.where}, key {name}: {number:g} is negative; correct it")
            return number * scale
        return None

    def whole(self, *names: str) -> int | None:
        number = self.number(*names)
        return None if number is None else round(number)

    def text(self, *names: str) -> str | None:
        for name in names:
            value = self._inside(name)
            if value not in (None, "", "None", "null"):
                return str(value)
        return None

    def _inside(self, name: str) -> Any:
        if name in self.values:
            return self.values[name]
        value: Any = self.values
        for part in name.split("."):
            if not isinstance(value, Mapping):
                return None
            value = value.get(part)
        return value
