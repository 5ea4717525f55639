"""Measurements on disk: one JSON object a line, appended as they are made, so that a killed run loses at most one.

The first line tells the machine; each other line is one measurement. Lines that are not whole JSON objects (the last
one of a killed run) are counted and left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from calibration.machine.device import Machine
from calibration.machine.timer import Sample
from hw_profiles.efficiency import OpClass
from simulator.model.ops import Op

FORMAT = "moeplan measurements 1"
Status = Literal["ok", "out of memory", "failed"]


class MeasurementError(ValueError):
    """A file of measurements that cannot be used; the message names the file and the way out."""


class FitError(ValueError):
    """Measurements that no profile can be fitted to; the message says what is missing or wrong."""


@dataclass(frozen=True)
class StepShape:
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

    key: str
    family: str
    status: Status = "ok"
    sample: Sample | None = None
    ops: tuple[Op, ...] = ()
    dtype: str = ""
    flops: float = 0.0
    num_bytes: float = 0.0
    model: str = ""
    layers: int = 0
    step: StepShape | None = None
    ranks: int = 1
    note: str = ""

    @property
    def seconds(self) -> float:
        assert self.sample is not None
        return self.sample.median_s


@dataclass(frozen=True)
class Measurements:
    """A file as read. broken: lines that are no measurement."""

    machine: Machine
    configs: dict[str, dict[str, Any]]  # config.json of each measured model
    rows: tuple[Measurement, ...]
    broken: int = 0

    @property
    def usable(self) -> tuple[Measurement, ...]:
        return tuple(row for row in self.rows if row.status == "ok" and row.sample is not None)

    def family(self, name: str) -> tuple[Measurement, ...]:
        return tuple(row for row in self.usable if row.family == name)


@dataclass
class Journal:
    """A file that grows by one line a measurement; `done` holds the keys that it already has."""

    path: Path
    machine: Machine
    configs: dict[str, dict[str, Any]]
    done: set[str] = field(default_factory=set)

    @classmethod
    def open(cls, path: Path, machine: Machine, configs: dict[str, dict[str, Any]]) -> Journal:
        """Start a file, or go on with one that the same machine began."""
        journal = cls(path, machine, configs)
        if path.exists() and path.stat().st_size:
            before = read(path)
            if not machine.same_as(before.machine) or configs != before.configs:
                raise MeasurementError(
                    f"{path} holds measurements of {before.machine.display_name} (torch {before.machine.torch}) or of "
                    "other models; give another --output, or remove that file"
                )
            journal.done = {row.key for row in before.rows if row.status == "ok"}
            _end_last_line(path)
        else:
            header = {"format": FORMAT, "machine": machine.to_json(), "configs": configs}
            path.write_text(json.dumps(header) + "\n", encoding="utf-8")
        return journal

    def add(self, row: Measurement) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_plain(row)) + "\n")
        self.done.add(row.key)


def read(path: Path) -> Measurements:
    """All measurements of a file; the latest of a key counts."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise MeasurementError(f"{path} does not exist; make it with `moeplan calibrate measure`") from None
    except UnicodeDecodeError:
        raise MeasurementError(f"{path} is not a text file; give a file of `moeplan calibrate measure`") from None
    parsed = list(_objects(lines))
    header = parsed[0] if parsed and parsed[0] is not None else {}
    try:
        machine, configs = Machine(**header["machine"]), dict(header["configs"])
    except (KeyError, TypeError):
        raise MeasurementError(
            f"{path}: its first line does not tell the machine; give a file of `moeplan calibrate measure`"
        ) from None
    rows: dict[str, Measurement] = {}
    broken = 0
    for data in parsed[1:]:
        row = None if data is None else _row(data)
        if row is None:
            broken += 1
        else:
            rows[row.key] = row
    return Measurements(machine, configs, tuple(rows.values()), broken)


def _objects(lines: list[str]) -> Iterator[dict[str, Any] | None]:
    for line in lines:
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except ValueError:
            data = None
        yield data if isinstance(data, dict) else None


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


def _row(data: dict[str, Any]) -> Measurement | None:
    try:
        step = data.get("step")
        return Measurement(
            **{
                **data,
                "sample": Sample(**data["sample"]) if data.get("sample") else None,
                "ops": tuple(Op(**{**op, "op_class": OpClass(op["op_class"])}) for op in data.get("ops", ())),
                "step": step and StepShape(tuple((n, p) for n, p in step["prefills"]), tuple(step["contexts"])),
            }
        )
    except (KeyError, TypeError, ValueError):
        return None
