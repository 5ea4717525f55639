"""`moeplan simulate`: one run on the screen, in JSON and per request."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from app.cli import cli
from app.render.tables import band_text


def run(*args: str | Path) -> str:
    result = CliRunner().invoke(cli, ["simulate", *map(str, args)])
    assert (result.exit_code, result.stderr) == (0, ""), result.stderr
    return result.stdout


def summary(*args: str | Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(run(*args, "--json", "-"))
    return loaded


def test_json_has_the_keys_that_scripts_read(scenario_file: Callable[..., Path]) -> None:
    data = summary(scenario_file())
    assert data["requests"] == {"total": 60, "finished": 60, "failed": 0, "rejected": 0}
    assert (data["tokens_in"], data["tokens_out"]) == (60 * 512, 60 * 32)
    for metric in ("ttft_s", "tpot_s", "e2e_s", "tok_s_per_user"):
        assert list(data["metrics"][metric]) == ["mean", "p50", "p90", "p95", "p99"]
    assert {"total_tok_s_per_gpu", "output_tok_s_per_gpu"} <= set(data["throughput"])
    assert set(data["utilization"]) == {"colocated"}
    assert data["cost"]["usd_per_hour"] > 0


def test_rows_of_requests_add_up_to_the_summary(scenario_file: Callable[..., Path], tmp_path: Path) -> None:
    """Percentiles again from the CSV, without the warm-up tenth."""
    out, rows = tmp_path / "out.json", tmp_path / "rows.csv"
    run(scenario_file(), "--json", out, "--requests", rows)
    data = json.loads(out.read_text())
    frame = pd.read_csv(rows)
    assert len(frame) == data["requests"]["total"]
    measured = frame.iloc[6:]
    for metric in ("ttft_s", "tpot_s", "e2e_s"):
        assert data["metrics"][metric]["p90"] == pytest.approx(np.percentile(measured[metric], 90))
    tpot = (frame["e2e_s"] - frame["ttft_s"]) / (frame["output_tokens"] - 1)
    assert np.allclose(tpot, frame["tpot_s"])


def test_seeds_decide(scenario_file: Callable[..., Path]) -> None:
    path = scenario_file()
    first, again, other = (summary(path, "--seed", seed) for seed in ("1", "1", "2"))
    assert first == again
    assert first["metrics"] != other["metrics"]


def test_a_trace_replaces_the_traffic(scenario_file: Callable[..., Path], tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_text(
        "".join(
            json.dumps({"timestamp": 500 * i, "input_length": 100 + i, "output_length": 5, "hash_ids": [i]}) + "\n"
            for i in range(20)
        )
    )
    data = summary(scenario_file(), "--trace", trace)
    assert data["requests"]["total"] == 20
    assert data["tokens_in"] == sum(range(100, 120))
    assert data["tokens_out"] == 100


def test_a_trace_is_traffic_enough(scenario_file: Callable[..., Path], tmp_path: Path) -> None:
    path = scenario_file()
    text = path.read_text()
    path.write_text(text[: text.index("[workload]")] + text[text.index("[slo]") :])
    trace = tmp_path / "t.jsonl"
    trace.write_text(json.dumps({"timestamp": 0, "input_length": 100, "output_length": 5}) + "\n")
    assert summary(path, "--trace", trace)["requests"]["finished"] == 1
    refused = CliRunner().invoke(cli, ["simulate", str(path)])
    assert refused.exit_code == 2
    assert "has no traffic" in " ".join(refused.stderr.split())


TENANTS = """
[[tenants]]
name = "chat"
priority = 1
workload = { kind = "open_loop", rate = 2.0, duration_s = 20.0, prompt = 512, output = 32 }
slo = { ttft_s = 3.0 }
[[tenants]]
name = "night"
workload = { kind = "offline", requests = 30, prompt = 400, output = 40 }
"""


def test_tenants_have_rows_of_their_own(scenario_file: Callable[..., Path], tmp_path: Path) -> None:
    path, rows = scenario_file(), tmp_path / "rows.csv"
    text = path.read_text()
    path.write_text(text[: text.index("[workload]")] + text[text.index("[slo]") :] + TENANTS)
    report = run(path, "--requests", rows)
    assert "Tenant" in report
    assert "night" in report
    assert pd.read_csv(rows).groupby("tenant").size()["night"] == 30
    seen = summary(path)["tenants"]
    assert seen["chat"]["slo"]["limits"]["ttft_s"]["limit"] == 3.0
    assert seen["night"]["slo"]["limits"] == {}


@pytest.mark.parametrize("columns", ["60", "80", "120"])
def test_the_report_reads_well_when_piped(
    columns: str, scenario_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    text = run(scenario_file())
    assert "60 total, 60 finished, 0 failed, 0 rejected" in text
    assert "Limit ttft_s 3: kept" in text
    assert "TTFT [s]" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= int(columns)


def test_bands_stand_beside_the_figures(scenario_file: Callable[..., Path]) -> None:
    data = summary(scenario_file())["uncertainty"]
    for key in ("metrics.tpot_s.p50", "metrics.ttft_s.p90", "throughput.total_tok_s_per_gpu"):
        assert data["bands"][key]["p10"] < data["bands"][key]["p90"]
    text = run(scenario_file())
    band = data["bands"]["metrics.tpot_s.p50"]
    assert band_text(band, 1e3) in text
    assert f"holds with a chance of {data['limits']['tpot_s']['chance']:.0%}" in text


def test_bands_of_replications_join_the_noise_between_runs(scenario_file: Callable[..., Path]) -> None:
    data = summary(scenario_file(), "--replications", "3")
    band = data["uncertainty"]["bands"]["metrics.ttft_s.p90"]
    assert band["p10"] < data["estimates"]["metrics.ttft_s.p90"]["mean"] < band["p90"]
    assert "p10-p90" in run(scenario_file(), "--replications", "3")
