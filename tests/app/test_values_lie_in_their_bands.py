"""p10 <= value <= p90 of every figure that a command writes with a band."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from app.cli import cli

OPEN = {"kind": "open_loop", "rate": 20.0, "requests": 300, "prompt": 1000, "output": 50}
CLOSED = {"kind": "closed_loop", "concurrency": 16, "requests": 100, "prompt": 1000, "output": 50}
COLOCATED = {"colocated": {"gpu": "b200", "stack": "sglang", "tp": 2}}
APART = {"prefill": {"gpu": "h200", "tp": 1}, "decode": {"gpu": "b200", "stack": "vllm", "tp": 2}}


def written(tmp_path: Path, *command: str) -> dict[str, Any]:
    target = tmp_path / "answer.json"
    ran = CliRunner().invoke(cli, [*command, "--json", str(target)])
    assert ran.exit_code == 0, ran.output
    found: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
    return found


def inline(value: Any) -> str:
    """As a TOML value."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {inline(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)


def inside(bands: dict[str, dict[str, float]], value_of: Any) -> int:
    for name, band in bands.items():
        value = value_of(name)
        assert band["p10"] <= band["p50"] <= band["p90"], name
        assert band["p10"] <= value * (1 + 1e-9), name
        assert value <= band["p90"] * (1 + 1e-9), name
    return len(bands)


@pytest.mark.parametrize(("workload", "deployment"), [(OPEN, COLOCATED), (CLOSED, COLOCATED), (OPEN, APART)])
@pytest.mark.parametrize("options", [(), ("--replications", "3")])
def test_of_a_simulation(
    workload: dict[str, Any], deployment: dict[str, Any], options: tuple[str, ...], tmp_path: Path
) -> None:
    asked = tmp_path / "asked.toml"
    keys = {"model": "qwen3-30b-a3b", "workload": workload, "deployment": deployment, "slo": {"ttft_s": 2.0}}
    asked.write_text("".join(f"{key} = {inline(value)}\n" for key, value in keys.items()), encoding="utf-8")
    answer = written(tmp_path, "simulate", str(asked), *options)

    def value_of(key: str) -> float:
        if options:
            return float(answer["estimates"][key]["mean"])
        found: Any = answer
        for part in key.split("."):
            found = found[part]
        return float(found)

    assert inside(answer["uncertainty"]["bands"], value_of) > 10


def test_of_a_plan(tmp_path: Path) -> None:
    answer = written(
        tmp_path, "plan", "--model", "qwen3-30b-a3b", "--gpu", "h200", "--rate", "20", "--isl", "2000", "--osl", "200"
    )
    assert answer["designs"]
    p = f"p{answer['slo']['percentile']:g}"
    for design in answer["designs"]:
        seen = design["simulated"] or design["steady_state"]

        def value_of(name: str, design: dict[str, Any] = design, seen: dict[str, Any] = seen) -> float:
            if name.startswith("usd"):
                return float(design["cost"][name])
            found = seen[name]
            if isinstance(found, dict):
                found = found["mean"] if name == "tok_s_per_user" else found.get(p, found["mean"])
            return float(found)

        assert inside(design["uncertainty"]["bands"], value_of) >= 6


def test_of_measured_points(tmp_path: Path) -> None:
    base = {"model": "DeepSeek-R1", "gpu": "H200", "n_gpu": 8, "engine": "SGLang", "precision": "FP8",
            "decode_parallel": "TP8", "isl": 1000, "osl": 500, "tpot_ms": 15.0, "ttft_ms": 300.0,
            "total_tok_s_per_gpu": 500.0}  # fmt: skip
    apart = {"disaggregated": 1, "n_gpu": 16, "n_prefill_gpu": 8, "n_decode_gpu": 8, "prefill_parallel": "TP8",
             "engine": "Dynamo+SGLang", "input_tok_s_per_gpu": 900.0, "output_tok_s_per_gpu": 500.0}  # fmt: skip
    rows = [{**base, **form, "gpu": gpu, "concurrency": c} for form in ({}, apart) for gpu in ("H200", "A100")
            for c in (1, 64, 4096)]  # fmt: skip
    points, lines = tmp_path / "points.csv", tmp_path / "lines.csv"
    pd.DataFrame(rows).to_csv(points, index=False)
    ran = CliRunner().invoke(cli, ["validate", str(points), "--predictions", str(lines)])
    assert ran.exit_code == 0, ran.output
    found = pd.read_csv(lines)
    assert len(found) >= 3 * len(rows) / 2
    assert (found["p10"] <= found["predicted"]).all()
    assert (found["predicted"] <= found["p90"]).all()
