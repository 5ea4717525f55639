"""A stack of one's own, fitted to points that a known engine made."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from app.cli import cli
from calibration.serving.effects import chosen, shipped
from calibration.serving.own_stack import FEWEST_IN_HALVES, OwnServing, TooFewPointsError, fit_own
from calibration.serving.parameters import NAMES, Given
from calibration.serving.predict import PreparedPoints, equilibria, predictions, prepare, some
from calibration.serving.scores import scores_by_metric
from calibration.serving.served_model import variant
from hw_profiles import catalog
from hw_profiles.catalog import CatalogError
from simulator.model.engine import in_service
from simulator.model.parallelism import Parallelism
from simulator.uncertainty.spreads import uncertainty_of

FEW = FEWEST_IN_HALVES - 2  # rows of which no half is held out, for speed
METRICS = ("tpot_ms", "total_tok_s_per_gpu", "ttft_ms")
# How the engine differs from what the shipped fit says: logs of its parameters.
SLOWER = {"kernel_overhead_s": 1.5, "memory": -0.5, "request_overhead_s": 0.8, "matrix": -0.6, "network": -0.6}


def rows(**changes: object) -> list[dict[str, object]]:
    base = {"model": "DeepSeek-R1", "gpu": "H100", "engine": "LMDeploy", "precision": "FP8", "n_gpu": 16,
            "decode_parallel": "TP16"}  # fmt: skip
    return [
        {**base, "isl": isl, "osl": 1000, "concurrency": concurrency, **changes}
        for isl in (1000, 8000)
        for concurrency in (1, 2, 4, 8, 16, 32)
    ]


def measured(given: list[dict[str, object]]) -> pd.DataFrame:
    """The rows with what that engine would measure."""
    prepared = prepare(pd.DataFrame([{**row, "tpot_ms": 1.0} for row in given]))
    theta = shipped().theta(prepared.levels)
    for name, move in SLOWER.items():
        theta[:, NAMES.index(name)] += move
    points = equilibria(prepared)
    found = points.seen(Given(theta[:, None])).metrics(points)
    return pd.DataFrame([{**row, **{m: found[m][i, 0] for m in METRICS}} for i, row in enumerate(given)])


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return measured(rows())


@pytest.fixture(scope="module")
def own(frame: pd.DataFrame) -> OwnServing:
    return fit_own(prepare(frame), "mine.csv")


def test_points_that_the_fit_did_not_see_are_predicted_far_better(own: OwnServing) -> None:
    before = scores_by_metric(own.before)
    assert own.held_out is not None
    held_out = scores_by_metric(own.held_out)
    for metric in METRICS:
        assert before[metric].median_ape > 0.15
        assert held_out[metric].median_ape < 0.25 * before[metric].median_ape
        assert held_out[metric].n == 12


def test_other_stacks_stay_as_they_were(own: OwnServing) -> None:
    """On other accelerators and on the same one."""
    others = [
        *rows(gpu="B200", engine="SGLang", n_gpu=8, decode_parallel="TP8"),
        *rows(engine="Dynamo+SGLang", spec_decode="MTP"),
    ]
    elsewhere = prepare(pd.DataFrame([{**row, "tpot_ms": 1.0} for row in others]))
    kept, now = predictions(elsewhere, shipped()), predictions(elsewhere, own.fit)
    np.testing.assert_allclose(now["predicted"], kept["predicted"])


def test_stacks_are_fitted_one_after_the_other_in_any_order_and_again(frame: pd.DataFrame) -> None:
    second = prepare(measured(rows(engine="Dynamo+SGLang", date="2026-05-01")[:FEW]))
    first = prepare(frame.head(FEW))
    one = fit_own(first, "mine.csv", fit_own(second, "more.csv").fit)
    other = fit_own(second, "more.csv", fit_own(first, "mine.csv").fit)
    again = fit_own(first, "mine.csv", one.fit)
    for prepared in (first, second):
        expected = predictions(prepared, one.fit)["predicted"]
        for fit in (other.fit, again.fit):
            np.testing.assert_allclose(predictions(prepared, fit)["predicted"], expected, rtol=1e-9)
    assert again.fit.source == one.fit.source


def test_a_profile_is_what_the_fit_says_of_dated_points_too() -> None:
    """A profile tells no month from another."""
    given = rows(gpu="B200", engine="SGLang", n_gpu=8, decode_parallel="TP8", date="2026-05-01")
    prepared = prepare(measured(given[:FEW]))
    found = fit_own(prepared, "mine.csv")
    theta = found.fit.theta(prepared.levels)
    hardware = replace(prepared.points[0].hardware, efficiency=found.profiles["b200_sxm@sglang"])
    model = variant("DeepSeek-R1", "FP8", "SGLang", hardware, 1)
    driven = in_service(hardware, model, "colocated").efficiency
    for name, value in (
        ("kernel_overhead_s", driven.kernel_overhead_s),
        ("request_overhead_s", driven.request_overhead_s),
    ):
        assert value == pytest.approx(np.exp(theta[0, NAMES.index(name)]), rel=3e-3)
    np.testing.assert_allclose(theta[:, NAMES.index("renewal")], 0.0, atol=1e-9)


def test_any_engine_name_makes_a_file_name(frame: pd.DataFrame, tmp_path: Path) -> None:
    found = fit_own(prepare(frame.head(FEW).assign(engine="../My/Engine v2")), "mine.csv")
    assert list(found.profiles) == ["h100_sxm@my-engine-v2"]
    assert [path.parent for path in found.write(tmp_path)] == [tmp_path] * 2
    (tmp_path / "h100_sxm@my-engine-v2.json").rename(tmp_path / "other.json")
    with pytest.raises(CatalogError, match=r"other.json already describes h100_sxm@my-engine-v2; remove it"):
        found.write(tmp_path)


def test_the_profile_serves_plans_as_a_known_stack(
    own: OwnServing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {path.name for path in own.write(tmp_path / "new")} == {"serving.json", "h100_sxm@lmdeploy.json"}
    with pytest.raises(CatalogError, match="lmdeploy"):
        catalog.load("h100_sxm", "lmdeploy")
    monkeypatch.setenv("MOEPLAN_PROFILES", str(tmp_path / "new"))
    hardware = catalog.load("h100_sxm", "lmdeploy")
    prepared = prepare(pd.DataFrame([{**row, "tpot_ms": 1.0} for row in rows()]))
    theta = own.fit.theta(prepared.levels)
    model = variant("DeepSeek-R1", "FP8", "LMDeploy", hardware, 1)
    driven = in_service(hardware, model, "colocated").efficiency
    assert driven.kernel_overhead_s == pytest.approx(np.exp(theta[0, NAMES.index("kernel_overhead_s")]), rel=2e-3)
    assert "12 serving points of LMDeploy in mine.csv" in hardware.efficiency.provenance
    assert uncertainty_of(hardware, model, Parallelism(tp=16), 0, "colocated").kind == "known"
    assert uncertainty_of(hardware, model, Parallelism(tp=16), 0, "decode").kind == "new combination"


def test_a_folder_of_ones_own_profiles_decides_which_fit_predicts(
    own: OwnServing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOEPLAN_PROFILES", str(tmp_path))
    assert chosen().source == shipped().source
    own.write(tmp_path)
    assert "mine.csv" in chosen().source
    (tmp_path / "serving.json").write_text(json.dumps({"parameters": {"speed": {}}}))
    with pytest.raises(
        CatalogError, match=r"serving.json: its parameters are those of another version.*calibrate serving"
    ):
        chosen()
    good = own.fit.to_json()
    for damage, said in (
        ("{}", "it holds no fit of serving stacks"),
        ("[1]", "it holds no fit of serving stacks"),
        ("{", "it holds no fit of serving stacks"),
        (json.dumps({**good, "effects": {"all=": [1.0]}}), f"effect 'all=' is not {len(NAMES)} numbers"),
        (json.dumps({**good, "effects": {"all=": ["fast"] * len(NAMES)}}), "calibrate serving"),
        (json.dumps({**good, "draws": 3}), "it holds no fit of serving stacks"),
        (json.dumps({**good, "draws": {}}), "draws of .* are not 64 of"),
    ):
        (tmp_path / "serving.json").write_text(damage)
        with pytest.raises(CatalogError, match=said):
            chosen()


def test_rows_that_say_nothing_are_left_out_by_reason(frame: pd.DataFrame) -> None:
    other = pd.DataFrame(
        [{**rows()[0], "output_tok_s_per_gpu": 5.0}, {**rows()[0], "model": "Unheard-of", "tpot_ms": 3.0}]
    )
    found = fit_own(prepare(pd.concat([frame.head(FEWEST_IN_HALVES - 1), other], ignore_index=True)), "mine.csv")
    assert found.held_out is None
    reasons = sorted(found.left_out)
    assert found.left_out[reasons[-1]] == 1
    assert reasons[-1].startswith("none of tpot_ms, total_tok_s_per_gpu, ttft_ms")
    with pytest.raises(TooFewPointsError, match="0 of the rows can be fitted, 3 are needed; left out: 1 with none of"):
        fit_own(prepare(other.head(1)), "mine.csv")
    with pytest.raises(TooFewPointsError, match="0 of the rows can be fitted"):
        fit_own(PreparedPoints((), (), {}, ()), "mine.csv")


def test_some_of_the_points_are_predicted_as_among_all(frame: pd.DataFrame) -> None:
    prepared = prepare(frame)
    part = predictions(some(prepared, [7, 2]), shipped())
    whole = predictions(prepared, shipped()).set_index(["row", "metric"])["predicted"]
    for line in part.itertuples():
        assert line.predicted == pytest.approx(whole[line.row, line.metric], rel=1e-12)


def test_commands_fit_ones_own_points_and_then_predict_with_them(frame: pd.DataFrame, tmp_path: Path) -> None:
    points, folder = tmp_path / "mine.csv", tmp_path / "own"
    frame.head(FEW).to_csv(points, index=False)

    def run(*args: str | Path) -> dict[str, Any]:
        command = [sys.executable, "-m", "app.cli", *map(str, args), "--json", "-"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    fitted = run("calibrate", "serving", points, "--output", folder)
    assert (fitted["fitted"], fitted["held_out"]) == (FEW, None)
    after = run("--profiles", folder, "validate", points)["overall"]
    assert after["tpot_ms"]["median_ape"] < 0.25 * fitted["before"]["tpot_ms"]["median_ape"]


def test_a_file_is_no_folder_to_write_to(frame: pd.DataFrame, tmp_path: Path) -> None:
    points = tmp_path / "mine.csv"
    frame.to_csv(points, index=False)
    refused = CliRunner().invoke(cli, ["calibrate", "serving", str(points), "--output", str(points)])
    assert refused.exit_code == 2
    assert "is a file; name a folder" in refused.stderr
