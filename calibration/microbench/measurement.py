"""Measurements on disk: one JSON object a line, appended as they are made, so that a killed run loses at most one.

The first line tells the machine; each other line is one measurement. Lines that are none (the last one of a killed run,
fields of the wrong kind) are left out, and told with their number and what is wrong with them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError

from calibration.microbench.device import Machine, slug
from calibration.microbench.timer import TimeSample
from hw_profiles.schema import Dtype
from simulator.model.ops import Op

FORMAT = "moeplan measurements 1"
LONGEST_VALUE = 40  # characters told of a value that is wrong (assumed)
Status = Literal["ok", "out of memory", "out of time", "failed"]


class MeasurementError(ValueError):
    """A file of measurements that cannot be used; the message names the file and the way out."""


class FitError(ValueError):
    """Measurements that no profile can be fitted to; the message says what is missing or wrong."""


@dataclass(frozen=True)
class EngineStep:
    """What one step of an engine computed. prefills: (new, past) of each chunk; contexts: of each decode row."""

    prefills: tuple[tuple[int, int], ...]
    contexts: tuple[int, ...]


@dataclass(frozen=True)
class Measurement:
    """Seconds of one piece of work.

    key: unique in a file; family: kind of work. ops: what the simulator would price for it. flops, num_bytes: of raw
    products and copies, which set the peaks of a machine that has no data sheet. model, layers, step: of whole steps.
    ranks: processes that took part.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    key: str
    family: str
    status: Status = "ok"
    sample: TimeSample | None = None
    ops: tuple[Op, ...] = ()
    dtype: str = ""
    flops: float = 0.0
    num_bytes: float = 0.0
    model: str = ""
    layers: int = 0
    step: EngineStep | None = None
    ranks: int = 1
    note: str = ""

    @property
    def seconds(self) -> float:
        assert self.sample is not None
        return self.sample.median_s


@dataclass(frozen=True)
class BrokenLine:
    """A line that is no measurement. number: from 1."""

    number: int
    why: str

    def __str__(self) -> str:
        return f"line {self.number} left out: {self.why}"


@dataclass(frozen=True)
class Measurements:
    """A file as read. broken: lines that are no measurement."""

    machine: Machine
    configs: dict[str, dict[str, Any]]  # config.json of each measured model
    rows: tuple[Measurement, ...]
    broken: tuple[BrokenLine, ...] = ()

    @property
    def usable(self) -> tuple[Measurement, ...]:
        return tuple(row for row in self.rows if row.status == "ok" and row.sample is not None)

    def family(self, name: str) -> tuple[Measurement, ...]:
        return tuple(row for row in self.usable if row.family == name)


@dataclass
class MeasurementFile:
    """A file that grows by one line a measurement; `done` holds the keys that it already has, `broken` the lines that
    are no measurement: what they held is measured again."""

    path: Path
    machine: Machine
    configs: dict[str, dict[str, Any]]
    done: set[str] = field(default_factory=set)
    broken: tuple[BrokenLine, ...] = ()

    @classmethod
    def open(cls, path: Path, machine: Machine, configs: dict[str, dict[str, Any]]) -> MeasurementFile:
        """Start a file, or go on with one that the same machine began."""
        file = cls(path, machine, configs)
        if path.exists() and path.stat().st_size and not _only_begun(path):
            before = read(path)
            known = before.configs | configs
            if not machine.same_as(before.machine) or any(known[name] != had for name, had in before.configs.items()):
                raise MeasurementError(
                    f"{path} holds measurements of {before.machine.display_name} (torch {before.machine.torch}) or of "
                    "other models; give another --output, or remove that file"
                )
            file.done = {row.key for row in before.rows if row.status == "ok"}
            file.broken = before.broken
            _end_last_line(path)
            if known != before.configs:  # a larger preset goes on with the file of a smaller one
                _replace_first_line(path, _first_line(before.machine, known))
        else:
            path.write_bytes(_first_line(machine, configs))
        return file

    def add(self, row: Measurement) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_plain(row)) + "\n")
        self.done.add(row.key)


def read(path: Path) -> Measurements:
    """All measurements of a file; the latest of a key counts."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise MeasurementError(f"{path} does not exist; make it with `moeplan calibrate measure`") from None
    machine, configs = _header(path, lines[0])
    rows: dict[str, Measurement] = {}
    broken = []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        row, why = _row(line, configs)
        if row is None:
            broken.append(BrokenLine(number, why))
        else:
            rows[row.key] = row
    return Measurements(machine, configs, tuple(rows.values()), tuple(broken))


def _header(path: Path, line: bytes) -> tuple[Machine, dict[str, dict[str, Any]]]:
    way_out = "give a file of `moeplan calibrate measure`"
    try:
        data = json.loads(line)
    except ValueError:
        data = None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise MeasurementError(f"{path}: its first line does not tell the machine ({FORMAT!r}); {way_out}")
    try:
        machine = _adapter(Machine).validate_json(json.dumps(data.get("machine")), strict=True)
        configs = TypeAdapter(dict[str, dict[str, Any]]).validate_python(data.get("configs"), strict=True)
        datetime.fromisoformat(machine.time)
    except ValidationError as error:
        raise MeasurementError(f"{path}, line 1: {_problem(error)}; {way_out}") from None
    except ValueError:
        raise MeasurementError(f"{path}, line 1: time {machine.time!r} is no date and time; {way_out}") from None
    if not machine.name or slug(machine.name) != machine.name:
        raise MeasurementError(
            f"{path}, line 1: name {machine.name!r} is not lower-case letters, digits and _; {way_out}"
        )
    return machine, configs


def _only_begun(path: Path) -> bool:
    """Whether a run was killed while it wrote the first line: there is nothing to lose."""
    with path.open("rb") as file:
        line = file.readline()
    return not line.endswith(b"\n") and _first_words().startswith(line[: len(_first_words())])


def _first_words() -> bytes:
    return json.dumps({"format": FORMAT})[:-1].encode()


def _first_line(machine: Machine, configs: dict[str, dict[str, Any]]) -> bytes:
    return json.dumps({"format": FORMAT, "machine": machine.to_json(), "configs": configs}).encode() + b"\n"


def _replace_first_line(path: Path, line: bytes) -> None:
    """Beside the file and then in its place: a kill in between loses nothing."""
    beside = path.with_name(path.name + ".part")
    beside.write_bytes(line + path.read_bytes().partition(b"\n")[2])
    beside.replace(path)


def _end_last_line(path: Path) -> None:
    """A killed run may have left half a line; what follows must start on its own."""
    with path.open("rb+") as file:
        file.seek(-1, 2)
        if file.read(1) != b"\n":
            file.write(b"\n")


def _plain(row: Measurement) -> dict[str, Any]:
    """Without the fields that say nothing."""
    data = {key: value for key, value in asdict(row).items() if value not in (None, "", (), 0, 0.0)}
    if "ops" in data:
        data["ops"] = [{k: v for k, v in op.items() if v not in (None, {}, 0.0)} for op in data["ops"]]
    return data


def _row(line: bytes, models: Collection[str]) -> tuple[Measurement | None, str]:
    """A measurement, or what is wrong with the line."""
    try:
        row = _adapter(Measurement).validate_json(line, strict=True)
    except ValidationError as error:
        return None, _problem(error)
    return (None, why) if (why := _unusable(row, models)) else (row, "")


@lru_cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _problem(error: ValidationError) -> str:
    """The first problem, in a few words."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return "not a whole JSON object"
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"lacks {where}"
    if first["type"] == "unexpected_keyword_argument":
        return f"unknown key {where}"
    value = repr(first["input"])[:LONGEST_VALUE]
    return f"{where or 'the line'} = {value}: {first['msg'].removeprefix('Input ')}"


def _unusable(row: Measurement, models: Collection[str]) -> str:
    """What a fit needs of a measurement and this one lacks, beyond the kinds of its fields."""
    sample = row.sample
    if sample is not None and not (
        0 < sample.p20_s <= sample.median_s <= sample.p80_s < math.inf and sample.repeats >= 1
    ):
        return f"sample of {sample.p20_s:g}, {sample.median_s:g}, {sample.p80_s:g} s is no ascending row of times"
    amounts = (row.flops, row.num_bytes, *(amount for op in row.ops for amount in _amounts(op)))
    if not all(0 <= amount < math.inf for amount in amounts):
        return "an amount of work is negative or not finite"
    if sample is None or row.status != "ok":
        return ""
    unknown = {row.dtype, *(dtype for op in row.ops for dtype in op.flops)} - {"", *get_args(Dtype)}
    if unknown:
        return f"dtype {min(unknown)!r} is not known"
    if row.family == "step" and (row.step is None or row.layers < 1 or row.model not in models):
        return "a whole step without its shape, its layers or a model of the first line"
    if row.family in ("copy", "handover") and not row.num_bytes:
        return f"{row.family} without num_bytes"
    if row.family == "gemm" and not (row.flops and row.dtype):
        return "gemm without flops or dtype"
    return ""


def _amounts(op: Op) -> tuple[float, ...]:
    return (*op.flops.values(), op.hbm_bytes, op.network_bytes, op.count, op.hops, op.row_flops)
