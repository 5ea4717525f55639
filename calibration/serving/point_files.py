"""Points from files of either kind: points files, and results as benchmark tools write them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from calibration.launch.launch import LaunchError
from calibration.results.point_rows import Setup, rows_of
from calibration.results.reading import read_results
from calibration.results.result import ResultError
from calibration.serving.points import REQUIRED, PointsError, read_points

COLUMNS = (
    "id", "date", "model", "gpu", "n_gpu", "engine", "precision", "disaggregated", "n_prefill_gpu", "n_decode_gpu",
    "prefill_parallel", "decode_parallel", "prefill_attention_ranks", "decode_attention_ranks", "spec_decode", "isl",
    "osl", "workload", "concurrency", "tpot_ms", "ttft_ms", "ttft_stat", "total_tok_s_per_gpu", "output_tok_s_per_gpu",
    "input_tok_s_per_gpu", "sequences_per_rank", "tokens_per_step", "prefill_chunk", "notes",
)  # fmt: skip


@dataclass(frozen=True)
class PointFiles:
    """frame: all rows, as `read_points` gives them. left_out: a sentence for each result without a row."""

    frame: pd.DataFrame
    left_out: tuple[str, ...]


def is_points_file(path: Path) -> bool:
    """True for a table with some of the columns that points need, and for any other CSV that no tool writes."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = [name.strip() for name in next(csv.reader(file), [])]
    except (OSError, UnicodeDecodeError, csv.Error):
        return False
    known = len(set(REQUIRED) & set(header)) > 1
    return known or (path.suffix.lower() == ".csv" and header[:1] != ["Metric"])


def read_result_rows(paths: Sequence[Path], setup: Setup) -> PointFiles:
    """Rows of benchmark results. Raises PointsError where there is none."""
    rows: list[dict[str, object]] = []
    left_out: list[str] = []
    for path in paths:
        try:
            found = read_results(path)
            made, without = rows_of(found.results, setup)
        except (ResultError, LaunchError) as error:
            if isinstance(error, LaunchError) or len(paths) == 1:
                raise PointsError(str(error)) from None
            left_out.append(str(error))
            continue
        rows += made
        left_out += [*found.left_out, *without]
    if not rows:
        raise PointsError(left_out[0] if left_out else f"{paths[0]} holds no results")
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return PointFiles(frame.dropna(axis="columns", how="all"), tuple(left_out))


def read_point_files(paths: Sequence[Path], setup: Setup) -> PointFiles:
    """Points files and results, one after the other. Raises PointsError."""
    frames: list[pd.DataFrame] = []
    left_out: list[str] = []
    results = [path for path in paths if not is_points_file(path)]
    for path in paths:
        if path not in results:
            if not path.exists():
                raise PointsError(f"{path} does not exist; give a points file or a benchmark result")
            frames.append(read_points(path))
    if results:
        found = read_result_rows(results, setup)
        frames.append(found.frame)
        left_out += found.left_out
    return PointFiles(pd.concat(frames, ignore_index=True) if len(frames) > 1 else frames[0], tuple(left_out))
