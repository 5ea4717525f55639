"""Score of the fit that ships on measured points that no fit has seen.

    python -m benchmarks.out_of_sample --points MORE.csv SAMPLE.csv [--key NAME] [--json FILE]

Nothing is fitted. The file of results keeps one answer by key; a key that is there is not written over, so that the
first score of a file stays what it was when nobody had looked at its rows. Rows that a rule of
`calibration.serving.points.distrust` names are scored apart, by rule.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.study import SATURATED
from calibration.serving.effects import FILE, ServingFit, shipped
from calibration.serving.parameters import DATA
from calibration.serving.points import Point, PointsError, read_points
from calibration.serving.predict import PreparedPoints, predictions, prepare

RESULTS = Path(__file__).resolve().parent / "results" / "out_of_sample.json"
LIBRARIES = ("numpy", "scipy", "pandas", "pydantic")
FEWEST_OF_GROUP = 8  # rows
GROUP = ["gpu", "engine", "model", "form"]
UNSATURATED = "ttft_ms unsaturated"
METRICS = ("tpot_ms", "total_tok_s_per_gpu", "output_tok_s_per_gpu", "ttft_ms", UNSATURATED)
MEANING = {
    "median_error": "exp(median |ln(predicted / measured)|) - 1",
    "bias": "exp(median ln(predicted / measured)) - 1",
    "inside_band": "share of measured values between the predicted p10 and p90",
    UNSATURATED: f"TTFT of rows where it is at most {SATURATED} x output tokens x TPOT, or with one request in flight",
    "distrusted": "rows that contradict themselves or say so, by rule; none of them counts in overall and groups",
}


def form_of(point: Point) -> str:
    """How the point was served, or which pool of it was measured alone."""
    if point.phase != "e2e":
        return f"{point.phase} alone"
    return "disaggregated" if point.disaggregated else "colocated"


def unsaturated(point: Point) -> bool:
    """Whether TTFT is service and not a queue. Unknown is taken as a queue: a row with many in flight and no TPOT."""
    if point.concurrency <= 1:
        return True
    ttft_ms, tpot_ms = point.measured.get("ttft_ms", np.nan), point.measured.get("tpot_ms", np.nan)
    return bool(ttft_ms <= SATURATED * tpot_ms * point.output)


def scored_lines(prepared: PreparedPoints, fit: ServingFit) -> pd.DataFrame:
    """Predictions of the metrics that are scored, with the group and the rule of each row."""
    points = {one.point.row: one.point for one in prepared.points}
    lines = predictions(prepared, fit)
    of_row = lines["row"].map(points)
    lines["form"] = of_row.map(form_of)
    lines["rule"] = of_row.map(lambda point: point.distrusted)
    early = lines[(lines["metric"] == "ttft_ms") & of_row.map(unsaturated)].assign(metric=UNSATURATED)
    return pd.concat([lines[lines["metric"].isin(METRICS)], early], ignore_index=True)


def scores(lines: pd.DataFrame) -> dict[str, dict[str, float | int]]:
    """Errors by metric; `MEANING` says of what.

    >>> line = {"metric": "tpot_ms", "measured": 10.0, "p10": 9.0, "p90": 20.0, "ratio": 1.25}
    >>> scores(pd.DataFrame([line]))
    {'tpot_ms': {'rows': 1, 'median_error': 0.25, 'bias': 0.25, 'inside_band': 1.0}}
    """
    found: dict[str, dict[str, float | int]] = {}
    for metric in METRICS:
        part = lines[lines["metric"] == metric]
        if part.empty:
            continue
        log = np.log(part["ratio"].to_numpy())
        inside = (part["measured"] >= part["p10"]) & (part["measured"] <= part["p90"])
        found[metric] = {
            "rows": len(part),
            "median_error": round(float(np.expm1(np.median(np.abs(log)))), 4),
            "bias": round(float(np.expm1(np.median(log))), 4),
            "inside_band": round(float(inside.mean()), 4),
        }
    return found


def answer(prepared: PreparedPoints, fit: ServingFit) -> dict[str, Any]:
    """Coverage and errors of the points of one file."""
    lines = scored_lines(prepared, fit)
    trusted = lines[lines["rule"] == ""]
    groups = []
    for names, part in trusted.groupby(GROUP):
        if (rows := part["row"].nunique()) >= FEWEST_OF_GROUP:
            groups.append({**dict(zip(GROUP, names, strict=True)), "predicted": rows, "metrics": scores(part)})
    apart = lines[lines["rule"] != ""].groupby("rule")
    distrusted = {str(rule): {"predicted": part["row"].nunique(), "metrics": scores(part)} for rule, part in apart}
    return {
        "rows": len(prepared.points) + len(prepared.unpredicted),
        "predicted": len(prepared.points),
        "coverage": round(prepared.coverage_of_points, 4),
        "unpredicted": dict(Counter(why for _, _, why in prepared.unpredicted).most_common()),
        "overall": scores(trusted),
        "distrusted": distrusted,
        "groups": groups,
    }


def circumstances() -> dict[str, Any]:
    """Where, when and with what a score was made."""
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    commit = subprocess.check_output(git, text=True, cwd=RESULTS.parent).strip()
    return {
        "commit": commit,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
        "libraries": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
    }


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def score(paths: Sequence[Path]) -> dict[str, Any]:
    fit = shipped()
    files = {}
    for path in paths:
        files[path.name] = {"sha256": hash_of(path), **answer(prepare(read_points(path)), fit)}
    return {
        **circumstances(),
        "fit": {"source": fit.source, "effects": len(fit.effects), "sha256": hash_of(DATA / FILE)},
        "meaning": MEANING,
        "files": files,
    }


def table(files: dict[str, Any]) -> str:
    """Median error, bias and share inside the band of each metric, a line for each file and group."""
    lines = []
    for name, found in files.items():
        lines.append(f"{name}: {found['predicted']} of {found['rows']} rows predicted ({found['coverage']:.1%})")
        lines += [f"  {count:5d}  {why}" for why, count in found["unpredicted"].items()]
        rows = [("all", found["overall"])]
        rows += [(" ".join(str(group[key]) for key in GROUP), group["metrics"]) for group in found["groups"]]
        rows += [(f"apart: {rule}", part["metrics"]) for rule, part in found["distrusted"].items()]
        for who, metrics in rows:
            cells = [
                f"{m} {v['median_error']:.1%} {v['bias']:+.0%} {v['inside_band']:.0%} ({v['rows']})"
                for m, v in metrics.items()
            ]
            lines.append(f"  {who}: {'; '.join(cells)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--key", default="as_shipped", help="name of this score in the file of results")
    parser.add_argument("--json", type=Path, default=RESULTS)
    asked = parser.parse_args()
    kept = json.loads(asked.json.read_text(encoding="utf-8")) if asked.json.is_file() else {}
    if asked.key in kept:
        parser.error(f"{asked.json} holds {asked.key!r} already; take another --key, a score is not written over")
    try:
        kept[asked.key] = score(asked.points)
    except PointsError as error:
        sys.exit(f"out_of_sample: {error}")
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(table(kept[asked.key]["files"]))


if __name__ == "__main__":
    main()
