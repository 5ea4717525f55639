"""Exported files read back: accelerators add up, and limits have the scope that each engine gives them."""

from __future__ import annotations

import json
import random
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from simulator import export
from simulator.deploy.export import TARGETS, Target
from simulator.deploy.launch import sglang_flags, trtllm_config, vllm_flags
from simulator.deploy.parts import roles
from simulator.deploy.planned import PlannedDesign, read_design
from simulator.deploy.text import toml_text, yaml_text
from simulator.scenario import Deployment, Pool, ScenarioError, parse_scenario

yaml = pytest.importorskip("yaml")
WORKLOAD = {"kind": "open_loop", "rate": 20.0, "requests": 2000, "prompt": {"value": 8192}, "output": {"value": 1024}}
SLO = {"ttft_s": 3.0, "tpot_s": 0.05, "e2e_s": None, "percentile": 90.0}


def plan_file(folder: Path, deployment: Deployment) -> Path:
    """As `plan --json` writes one."""
    pools = {role: pool.model_dump(mode="json") for role, pool in deployment.lone_pools.items()}
    promise = {"steady_state": {"ttft_s": {"p90": 1.0}, "tpot_s": {"p90": 0.04}, "total_tok_s_per_gpu": 5000.0}}
    data = {
        "model": "deepseek-v3",
        "traffic": "20 requests/s",
        "slo": SLO,
        "designs": [{**pools, **promise}],
        "scenario": {"workload": WORKLOAD, "seed": 3},
    }
    path = folder / "plan.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def design_of(folder: Path, deployment: Deployment) -> PlannedDesign:
    return read_design(plan_file(folder, deployment), 1)


def random_deployment(seed: int) -> Deployment:
    rng = random.Random(seed)

    def pool() -> Pool:
        size = rng.choice([1, 2, 4, 8, 16, 32])
        tp = rng.choice([t for t in (1, 2, 4, 8) if t <= size])
        dp = size // tp
        drafts = rng.choice([0, 0, 1, 3])
        return Pool(
            gpu=rng.choice(["h200", "b300", "gb300", "mi355x", "h100"]),
            stack=rng.choice(["default", "vllm", "sglang"]),
            instances=rng.randint(1, 9),
            tp=tp,
            dp=dp,
            ep=rng.choice([1, size]) if dp == 1 else size,
            max_tokens_per_step=rng.choice([512, 8192]),
            max_sequences=rng.choice([64, 250, 1024]) * dp,
            draft_tokens=drafts,
            acceptance_length=1 + 0.5 * drafts,
        )

    return Deployment(colocated=pool()) if rng.random() < 0.4 else Deployment(prefill=pool(), decode=pool())


def gpus_in(document: dict[str, Any]) -> int:
    """Accelerators that a Kubernetes object asks for, by the rules of its kind."""

    def of_pod(spec: dict[str, Any]) -> int:
        limits = spec["containers"][0].get("resources", {}).get("limits", {})
        return sum(int(count) for name, count in limits.items() if name.endswith("/gpu"))

    spec = document.get("spec", {})
    match document["kind"]:
        case "Deployment":
            return int(spec["replicas"]) * of_pod(spec["template"]["spec"])
        case "LeaderWorkerSet":
            group = spec["leaderWorkerTemplate"]
            return int(spec["replicas"]) * group["size"] * of_pod(group["workerTemplate"]["spec"])
        case "DynamoGraphDeployment":
            return sum(
                each["replicas"] * each.get("multinode", {}).get("nodeCount", 1) * of_pod(each["podTemplate"]["spec"])
                for each in spec["components"]
            )
    return 0


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_accelerators_of_random_plans_add_up(tmp_path: Path, first: int) -> None:
    for seed in range(first, first + 50):
        deployment = random_deployment(seed)
        design = design_of(tmp_path, deployment)
        for target in ("kubernetes", "dynamo"):
            made = export(design, target)  # type: ignore[arg-type]
            text = next(text for name, text in made.files.items() if name.endswith(".yaml"))
            asked = sum(gpus_in(document) for document in yaml.safe_load_all(text))
            assert asked == deployment.gpus == made.gpus, (seed, target)
        try:
            values = yaml.safe_load(export(design, "llm-d").files["values.yaml"])
        except ScenarioError:
            continue  # TP over nodes
        sizes = [(v["replicas"], v["parallelism"]) for v in (values["prefill"], values["decode"]) if v["create"]]
        assert sum(n * p["workers"] * p["tensor"] * p["dataLocal"] for n, p in sizes) == deployment.gpus, seed


def test_limits_have_each_engines_scope() -> None:
    """1024 sequences and 4096 tokens a rank on 8 attention ranks."""
    pool = Pool(
        gpu="h200", dp=8, ep=8, max_sequences=1024, max_tokens_per_step=4096, draft_tokens=1, acceptance_length=1.7
    )
    (decode,) = (role for role in roles(Deployment(prefill=pool, decode=pool)) if role.name == "decode")

    def value(flags: list[str], name: str) -> str:
        return flags[flags.index(name) + 1]

    vllm, sglang = vllm_flags(decode), sglang_flags(decode)
    assert (value(vllm, "--max-num-seqs"), value(vllm, "--max-num-batched-tokens")) == ("128", "4096")
    assert (value(vllm, "--tensor-parallel-size"), value(vllm, "--data-parallel-size")) == ("1", "8")
    assert json.loads(value(vllm, "--speculative-config"))["num_speculative_tokens"] == 1
    assert (value(sglang, "--max-running-requests"), value(sglang, "--chunked-prefill-size")) == ("1024", "32768")
    assert (value(sglang, "--tp-size"), value(sglang, "--dp-size")) == ("8", "8")
    assert value(sglang, "--disaggregation-mode") == "decode"
    assert value(sglang, "--speculative-num-draft-tokens") == "2"
    config = trtllm_config(decode)
    assert (config["tensor_parallel_size"], config["max_batch_size"], config["max_num_tokens"]) == (8, 128, 4096)
    assert config["enable_attention_dp"]


def test_what_an_engine_cannot_say_is_refused(tmp_path: Path) -> None:
    mixed = Pool(gpu="h200", tp=2, dp=4, ep=8)
    with pytest.raises(ScenarioError, match="TP2 inside DP4"):
        export(design_of(tmp_path, Deployment(colocated=mixed)), "trtllm")
    with pytest.raises(ScenarioError, match="CP2"):
        export(design_of(tmp_path, Deployment(colocated=Pool(gpu="h200", cp=2, ep=2))), "sglang")
    with pytest.raises(ScenarioError, match="runs vllm, not sglang"):
        export(design_of(tmp_path, Deployment(colocated=Pool(gpu="h200"))), "llm-d", engine="sglang")


def test_a_node_of_a_rack_has_four(tmp_path: Path) -> None:
    pool = Pool(gpu="gb300", dp=16, ep=16)
    made = export(design_of(tmp_path, Deployment(colocated=pool)), "kubernetes", engine="vllm")
    group = next(d for d in yaml.safe_load_all(made.files["manifests.yaml"]) if d["kind"] == "LeaderWorkerSet")
    assert group["spec"]["leaderWorkerTemplate"]["size"] == 4
    pod = group["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-GB300"}
    words = shlex.split(pod["containers"][0]["args"][0].replace("$((", "").replace("))", ""))
    assert words[words.index("--data-parallel-size-local") + 1] == "4"


def test_a_scenario_comes_back_as_the_same_deployment(tmp_path: Path) -> None:
    deployment = random_deployment(7)
    design = design_of(tmp_path, deployment)
    back = parse_scenario(tomllib.loads(export(design, "scenario").files["scenario.toml"]))
    assert back.deployment == design.deployment
    assert back.workload is not None
    assert back.workload.rate == 20.0  # type: ignore[union-attr]
    assert back.slo.tpot_s == 0.05


@pytest.mark.parametrize("target", [target for target in TARGETS if target != "scenario"])
def test_every_target_brings_a_benchmark_and_says_what_was_assumed(tmp_path: Path, target: Target) -> None:
    pool = Pool(gpu="h200", dp=8, ep=8)
    made = export(design_of(tmp_path, Deployment(prefill=pool, decode=pool)), target)
    paths = made.write(tmp_path / "out")
    assert {path.name for path in paths} == set(made.files)
    assert "16 accelerators in all" in made.files["README.md"]
    script = shlex.split(made.files["benchmark.sh"], comments=True)
    assert script[script.index("--request-rate") + 1] == "20.0"
    assert script[script.index("--random-input-len") + 1] == "8192"
    assert script[script.index("--goodput") + 1 : script.index("--goodput") + 3] == ["ttft:3000", "tpot:50"]


def test_text_reads_back() -> None:
    data = {"a": [1, {"b": "x: y", "c": [True, None]}], "d": {}, "e/f": "line\nline\n", "g": [[1], {"h": 2.5}]}
    assert yaml.safe_load(yaml_text(data)) == data
    table = {"a": 1, "b": {"c": 'x"y', "d": {"e": [1.5, 2]}}, "f": [{"g": 1}, {"g": 2}], "h": True}
    assert tomllib.loads(toml_text(table)) == table


@pytest.mark.parametrize(
    ("text", "number", "problem"),
    [
        ("{}", 1, "has no designs"),
        ("[", 1, "is not JSON"),
        ('{"designs": []}', 1, "has 0 designs; count from 1"),
        ('{"model": "x", "designs": [{}]}', 1, "give either both"),
    ],
)
def test_what_is_no_plan_is_said(tmp_path: Path, text: str, number: int, problem: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ScenarioError, match=problem):
        read_design(path, number)
