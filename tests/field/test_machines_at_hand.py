"""Machines that people have, with what they measured: memory that holds a model or does not, boxes without NVLink.

Figures from public threads, by way of the field cases; the deployments are written anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli import cli
from simulator.des.simulate import simulate
from simulator.model.memory import DoesNotFitError
from simulator.scenario import parse_scenario
from simulator.uncertainty.bands import of_run


def closed_loop(model: str, pool: dict[str, Any], prompt: int, output: int, clients: int, requests: int) -> Any:
    workload = {
        "kind": "closed_loop",
        "concurrency": clients,
        "requests": requests,
        "prompt": prompt,
        "output": output,
    }
    return parse_scenario({"model": model, "workload": workload, "deployment": {"colocated": pool}})


@pytest.mark.parametrize(
    ("model", "pool", "prompt", "output"),
    [
        ("deepseek-v3", {"gpu": "h20", "tp": 8, "batching": "prefill_first"}, 4096, 64),
        (
            "deepseek-v4-pro",
            {"gpu": "h200", "stack": "vllm", "dp": 8, "ep": 8, "max_tokens_per_step": 512},
            100_000,
            8,
        ),
    ],
    ids=["V3 on eight H20", "V4-Pro with data-parallel attention on eight H200"],
)
def test_what_runs_in_practice_is_simulated(model: str, pool: dict[str, Any], prompt: int, output: int) -> None:
    found = simulate(closed_loop(model, pool, prompt, output, 2, 4)).summary()
    assert found.to_json()["requests"]["finished"] == 4


def test_four_h20_hold_no_v3_anywhere(tmp_path: Path) -> None:
    """671 GB in FP8 on 4 x 95 GiB: refused by simulate, fits and validate alike."""
    with pytest.raises(DoesNotFitError, match="at least 8 h20 would do, as TP8"):
        simulate(closed_loop("deepseek-v3", {"gpu": "h20", "tp": 4}, 2048, 64, 1, 2))
    refused = CliRunner().invoke(cli, ["fits", "deepseek-v3", "--gpu", "h20", "--tp", "4"])
    assert refused.exit_code == 2
    points = tmp_path / "points.csv"
    points.write_text(
        "id,model,gpu,n_gpu,engine,precision,disaggregated,prefill_parallel,decode_parallel,isl,osl,concurrency,tpot_ms\n"
        "four,DeepSeek-V3.2,H20,4,vLLM,FP8,0,TP4,TP4,2048,1024,1,30\n"
        "eight,DeepSeek-V3.2,H20,8,vLLM,FP8,0,TP8,TP8,2048,1024,1,30\n"
    )
    answer = CliRunner().invoke(cli, ["validate", str(points)])
    assert "1 of 2 points predicted" in answer.stdout
    assert "of weights on each h20" in " ".join(answer.stdout.split())


@pytest.mark.parametrize(("clients", "tpot_ms"), [(1, 17.2), (4, 25.8)])
def test_two_cards_over_pcie_decode_inside_the_band(clients: int, tpot_ms: float) -> None:
    """V4-Flash on RTX PRO 6000 under SGLang."""
    pool = {"gpu": "rtx_pro_6000", "tp": 2}
    asked = closed_loop("deepseek-v4-flash", pool, 1024, 512, clients, 6 * clients)
    result = simulate(asked)
    band = of_run(result, asked)["bands"]["metrics.tpot_s.mean"]
    assert band["p10"] <= tpot_ms / 1e3 <= band["p90"]


def test_eight_cards_over_pcie_decode_within_two_fifths() -> None:
    """GLM-4.6 in FP8 on RTX PRO 6000 under SGLang: 17.2 ms a token. All-reduces are a quarter of the prediction."""
    found = simulate(closed_loop("glm-4.6", {"gpu": "rtx_pro_6000", "tp": 8}, 2048, 128, 1, 4)).summary().to_json()
    assert found["metrics"]["tpot_s"]["mean"] * 1e3 == pytest.approx(17.2, rel=0.4)
