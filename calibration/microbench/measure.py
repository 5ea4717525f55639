"""Runs a sweep into a file: skips what is on file, records what does not fit in memory, goes on after a kill."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from calibration.microbench import models, sweep
from calibration.microbench.bench import Bench, Item, Workspace
from calibration.microbench.collectives import CollectiveError
from calibration.microbench.device import Machine
from calibration.microbench.measurement import BrokenLine, Measurement, MeasurementFile, Status
from calibration.microbench.preset import Preset
from simulator.progress import Progress

LONGEST_NOTE = 200  # characters kept of an error (assumed)


@dataclass(frozen=True)
class Outcome:
    """Items of a sweep: measured now, on file before, and without a figure. broken: lines that the file had."""

    measured: int
    resumed: int
    without: tuple[Measurement, ...]
    broken: tuple[BrokenLine, ...] = ()


def measure(machine: Machine, preset: Preset, output: Path, progress: Progress | None = None) -> Outcome:
    """Measure `preset` on this machine, appending to `output`."""
    workspace = Workspace()
    benches = [Bench(machine, one, models.config_of(one), workspace=workspace) for one in (preset, *preset.companions)]
    file = MeasurementFile.open(output, machine, {bench.preset.model: bench.config for bench in benches})
    items = sweep.items(*benches)
    todo = [item for item in items if item.key not in file.done]
    without: list[Measurement] = []
    done, all_of_it = 0, sum(item.weight for item in todo)
    begin_s = time.monotonic()
    for item in todo:
        if progress is not None:
            progress(item.key, done, all_of_it)
        done += item.weight
        if time.monotonic() - begin_s > item.within_s:
            without.append(Measurement(item.key, "skipped", "out of time", note=f"after {item.within_s:g} s"))
            file.add(without[-1])
            continue
        skipped = _run(item, file)
        if skipped is not None:
            without.append(skipped)
            file.add(skipped)
            _free_memory(machine)  # here, where the error holds no tensor of the item any more
    if progress is not None:
        progress("done", done, all_of_it)
    return Outcome(len(todo) - len(without), len(items) - len(todo), tuple(without), file.broken)


def _run(item: Item, file: MeasurementFile) -> Measurement | None:
    """Measure into the file; what does not fit, or ranks that fail, give a line that says so."""
    try:
        for row in item.run():
            if row.key not in file.done:  # else from before a kill in the middle of the item
                file.add(row)
    except (RuntimeError, MemoryError) as error:
        status = _status(error)
        if status is None:
            raise
        return Measurement(item.key, "skipped", status, note=str(error).splitlines()[0][:LONGEST_NOTE])
    return None


def _status(error: BaseException) -> Status | None:
    """Too little memory (torch says so by type on a GPU and in words on a CPU), or ranks that cannot talk."""
    import torch

    words = ("not enough memory", "can't allocate memory", "out of memory")
    by_type = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    if by_type or any(word in str(error) for word in words):
        return "out of memory"
    return "failed" if isinstance(error, CollectiveError) else None


def _free_memory(machine: Machine) -> None:
    if machine.device == "cuda":
        import torch

        torch.cuda.empty_cache()
