"""The files that a simulation leaves behind besides its JSON: requests, timeline, series."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulator.des.cluster.recorder import Recorder
    from simulator.des.results.result import SimulationResult


@dataclass(frozen=True)
class SimulationFiles:
    """Where each file goes, None where it is not wanted; several models go into one file, below each other."""

    requests: Path | None
    timeline: Path | None
    series: Path | None
    grid_s: float

    @property
    def wanted(self) -> bool:
        return any(path is not None for path in (self.requests, self.timeline, self.series))

    def recorder(self) -> Recorder | None:
        from simulator.des.cluster.recorder import Recorder

        if self.series is not None:
            return Recorder(self.grid_s)
        return Recorder() if self.timeline is not None else None

    def write(self, runs: dict[str, tuple[SimulationResult, Recorder | None]]) -> None:
        """runs: by model, "" where there is but one."""
        from simulator.des.results.request_table import joined, write_table
        from simulator.des.results.series import series
        from simulator.des.results.timeline import write_timeline

        recorded = {model: (result, own) for model, (result, own) in runs.items() if own is not None}
        if self.requests is not None:
            write_table(joined({model: result.requests for model, (result, _) in runs.items()}), self.requests)
        if self.timeline is not None:
            write_timeline(self.timeline, {model: (own, result.run) for model, (result, own) in recorded.items()})
        if self.series is not None:
            grids = {model: series(own, result) for model, (result, own) in recorded.items()}
            write_table(joined(grids), self.series)
