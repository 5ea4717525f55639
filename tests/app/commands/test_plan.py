"""`moeplan plan`: the answer on the screen and in JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from app.cli import cli
from app.render.plan import plan_report
from app.render.tables import band_text
from hw_profiles.catalog import load
from simulator.scenario import load_scenario

POOL_KEYS = {"gpu", "instances", "tp", "dp", "ep", "gpus_per_instance"}
DESIGN_KEYS = {
    "gpus_total",
    "steady_state",
    "simulated",
    "usd_per_hour",
    "usd_per_mtok_input",
    "usd_per_mtok_output",
    "usd_per_mtok_blended",
    "meets_slo",
    "assumptions",
}
BOTH_FORMS = {"forms = [": 'forms = ["disaggregated", '}


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, ["plan", *map(str, args)])


@pytest.fixture
def both_forms(scenario_file: Callable[..., Path]) -> Path:
    path = scenario_file()
    text = path.read_text()
    for old, new in BOTH_FORMS.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


@pytest.fixture
def answer(both_forms: Path, tmp_path: Path) -> dict[str, Any]:
    out = tmp_path / "out.json"
    result = run(both_forms, "--json", out)
    assert (result.exit_code, result.stderr) == (0, "")
    loaded: dict[str, Any] = json.loads(out.read_text())
    return loaded


def test_json_has_the_keys_that_scripts_read(answer: dict[str, Any]) -> None:
    forms = set()
    for design in answer["designs"]:
        assert set(design) >= DESIGN_KEYS
        pools = [design[role] for role in ("prefill", "decode", "colocated") if role in design]
        forms.add(len(pools))
        assert all(set(pool) >= POOL_KEYS for pool in pools)
        assert design["gpus_total"] == sum(pool["instances"] * pool["gpus_per_instance"] for pool in pools)
    assert forms == {1, 2}
    assert all(isinstance(count, int) and count > 0 for count in answer["rejected"].values())


def test_dollars_are_prices_times_accelerators(answer: dict[str, Any]) -> None:
    """2 requests/s of 512 + 32 tokens by hand where estimated; where simulated, the tokens that were served."""
    price = load("h200").usd_per_hour("neocloud_ownership").usd_per_hour.value
    for design in answer["designs"]:
        assert design["usd_per_hour"] == pytest.approx(design["gpus_total"] * price)
        tokens_s = 2.0 * (512 + 32)
        if design["simulated"]:
            served_s = design["simulated"]["total_tok_s_per_gpu"] * design["gpus_total"]
            assert served_s == pytest.approx(tokens_s, rel=0.1)
            tokens_s = served_s
        per_mtok = design["usd_per_hour"] / 3600 / tokens_s * 1e6
        assert design["usd_per_mtok_blended"] == pytest.approx(per_mtok, rel=1e-6)


def test_the_recommended_design_was_simulated_inside_the_limits(answer: dict[str, Any]) -> None:
    best = answer["designs"][0]
    assert best["meets_slo"]
    assert best["simulated"]["ttft_s"]["p90"] <= 3.0
    assert best["simulated"]["tpot_s"]["p90"] <= 0.1
    assert best["simulated"]["total_tok_s_per_gpu"] > 0


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_the_table_fits_the_screen(width: int, answer: dict[str, Any], both_forms: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=width)
    console.print(plan_report(load_scenario(both_forms), answer, width))
    text = screen.getvalue()
    assert "\x1b" not in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for rank in range(1, len(answer["designs"]) + 1):
        assert f"\n {rank} " in text


def test_json_to_stdout_is_all_that_stdout_has(scenario_file: Callable[..., Path]) -> None:
    result = run(scenario_file(), "--json", "-")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout)["designs"]


@pytest.mark.parametrize(("changes", "limit"), [({"ttft_s": 0.001}, "ttft_s"), ({"tpot_s": 0.0001}, "tpot_s")])
def test_limits_that_nothing_meets_say_which_binds_and_end_with_1(
    changes: dict[str, float], limit: str, scenario_file: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    result = run(scenario_file(**changes), "--json", out)
    assert (result.exit_code, result.stderr) == (1, "")
    assert "No design meets the limits" in result.stdout
    data = json.loads(out.read_text())
    assert limit in data["binding"]
    assert f"{changes[limit]:g} s" in data["binding"]
    assert not any(design["meets_slo"] for design in data["designs"])


def test_a_model_that_fits_nowhere_says_so(scenario_file: Callable[..., Path]) -> None:
    result = run(scenario_file(model="glm-5", gpu="l40s"))
    assert result.exit_code == 1
    assert "at least 64 l40s would do" in " ".join(result.stdout.split())


def test_a_percentile_of_ones_own(scenario_file: Callable[..., Path]) -> None:
    path = scenario_file()
    path.write_text(path.read_text().replace("[slo]", "[slo]\npercentile = 92"))
    result = run(path, "--json", "-")
    assert result.exit_code == 0, result.stderr
    assert 0 < json.loads(result.stdout)["designs"][0]["simulated"]["ttft_s"]["p92"] <= 3.0


def test_one_output_token_has_no_tpot_and_keeps_every_limit(scenario_file: Callable[..., Path]) -> None:
    result = run(scenario_file(), "--osl", "1", "--json", "-")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["designs"][0]["simulated"]["tpot_s"]["p90"] is None


def test_options_change_the_question(scenario_file: Callable[..., Path]) -> None:
    result = run(scenario_file(), "--model", "gpt-oss-20b", "--gpu", "h100", "--rate", "1", "--json", "-")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["model"] == "gpt-oss-20b"
    assert {design["colocated"]["gpu"] for design in data["designs"]} == {"h100_sxm"}


def test_bands_and_chances_are_on_the_screen_and_in_json(
    answer: dict[str, Any], both_forms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = answer["designs"][0]
    found = best["uncertainty"]
    for key in ("ttft_s", "tpot_s", "total_tok_s_per_gpu", "usd_per_mtok_blended"):
        band = found["bands"][key]
        assert 0 < band["p10"] <= band["p50"] <= band["p90"]
    assert set(found["limits"]) == {"ttft_s", "tpot_s"}
    Console(width=120).print(plan_report(load_scenario(both_forms), answer, 120))
    text = capsys.readouterr().out
    assert f"{min(limit['chance'] for limit in found['limits'].values()):.0%}" in text
    assert band_text(found["bands"]["tpot_s"], 1e3) in text
    assert "draws of the fit's parameters" in " ".join(text.split())


def test_a_confidence_is_demanded_of_every_limit(scenario_file: Callable[..., Path]) -> None:
    result = run(scenario_file(), "--confidence", "0.6", "--json", "-")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["confidence"] == 0.6
    best = data["designs"][0]
    assert best["meets_slo"]
    assert all(limit["chance"] >= 0.6 for limit in best["uncertainty"]["limits"].values())


@pytest.mark.parametrize("chance", ["1", "0.2", "nan"])
def test_a_confidence_that_is_no_chance_is_refused(chance: str, scenario_file: Callable[..., Path]) -> None:
    result = run(scenario_file(), "--confidence", chance)
    assert result.exit_code == 2
    assert "confidence" in result.stderr


def test_a_confidence_that_no_design_reaches_says_what_the_best_has(scenario_file: Callable[..., Path]) -> None:
    result = run(scenario_file(), "--confidence", "0.9999999", "--max-gpus", "64")
    assert result.exit_code == 1
    assert "No design meets the limits" in result.stdout
