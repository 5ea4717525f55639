"""A design of a plan as files to deploy."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from simulator.deploy.launch import (
    ENGINES,
    PORT,
    Engine,
    command,
    config_name,
    config_text,
    notes,
    several_nodes,
)
from simulator.deploy.manifests import dynamo, kubernetes, llm_d
from simulator.deploy.parts import OWN_LABEL, Role, model_id, roles
from simulator.deploy.planned import PlannedDesign
from simulator.deploy.text import toml_text, yaml_text
from simulator.scenario import ScenarioError

Target = Literal["scenario", "vllm", "sglang", "trtllm", "dynamo", "llm-d", "kubernetes"]
TARGETS: tuple[Target, ...] = get_args(Target)
MS_PER_S = 1e3


@dataclass(frozen=True)
class ExportedDesign:
    """files: text by name. gpus: that they ask for, which is what the design has."""

    target: Target
    engine: Engine | None
    files: Mapping[str, str]
    gpus: int

    def write(self, folder: Path) -> list[Path]:
        """Make the folder and write the files into it."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for name, text in self.files.items():
            path = folder / name
            path.write_text(text, encoding="utf-8")
            paths.append(path)
        return paths


def export(
    design: PlannedDesign, target: Target, *, engine: Engine | None = None, model: str | None = None
) -> ExportedDesign:
    """Files for a target.

    engine: that manifests run; None: that of the design's stack, else vLLM. model: name of the checkpoint, where it
    is not what we take it to be. Raises ScenarioError for what the target cannot say.
    """
    if target == "scenario":
        return ExportedDesign(target, None, {"scenario.toml": scenario_text(design)}, design.deployment.gpus)
    parts = roles(design.deployment)
    known, sure = model_id(design.model)
    name = model or known
    chosen = _engine(target, parts, engine)
    title = re.sub(r"[^a-z0-9]+", "-", name.rpartition("/")[2].lower()).strip("-")
    files = _files(target, chosen, title, name, parts)
    said = [note for role in parts for note in notes(chosen, role)]
    if model is None and not sure:
        said.append(f"the checkpoint's name is not known: {name} stands for it; see --model")
    if any(OWN_LABEL in role.node_selector for role in parts):
        said.append(f"nodes are picked by a label of one's own, {OWN_LABEL}: put it on them")
    files["benchmark.sh"] = benchmark_script(design, name)
    files["README.md"] = _readme(design, target, chosen, name, parts, said, list(files))
    return ExportedDesign(target, chosen, files, sum(role.pool.gpus for role in parts))


def _engine(target: Target, parts: tuple[Role, ...], asked: Engine | None) -> Engine:
    named: Engine | None = next((engine for engine in ENGINES if engine == target), None)
    if target == "llm-d":
        named = "vllm"
    if named is not None and asked not in (None, named):
        raise ScenarioError(f"--to {target} runs {named}, not {asked}; leave --engine out")
    of_stack = next((engine for engine in ENGINES if engine == parts[-1].pool.stack), None)
    return named or asked or of_stack or "vllm"


def _files(target: Target, engine: Engine, title: str, model: str, parts: tuple[Role, ...]) -> dict[str, str]:
    if target == "kubernetes":
        return {"manifests.yaml": _documents(kubernetes(title, model, engine, parts))}
    if target == "dynamo":
        return {"dynamo.yaml": _documents(dynamo(title, model, engine, parts))}
    if target == "llm-d":
        return {"values.yaml": yaml_text(llm_d(title, model, parts))}
    files = {f"launch-{role.name}.sh": _script(engine, role, model) for role in parts}
    if engine == "trtllm":
        files |= {config_name(role): config_text(role) for role in parts}
    return files


def _documents(objects: list[dict[str, Any]]) -> str:
    return "---\n".join(map(yaml_text, objects))


def _script(engine: Engine, role: Role, model: str) -> str:
    """Of one instance; the same on each of its nodes."""
    words = [shlex.quote(word) for word in command(engine, role, model)]
    words += several_nodes(engine, role, "$LEADER", "$NODE")
    where = (
        "# on each node of the instance, with LEADER (address of the first) and NODE (0, 1, ...) set\n"
        if role.nodes > 1
        else ""
    )
    lines = " \\\n  ".join(_lines(words))
    return (
        f"#!/bin/sh\n# {role.pool.instances} x this: {role.name}, {role.pool.gpus_per_instance} x "
        f"{role.hardware.display_name} each\n{where}exec {lines}\n"
    )


def _lines(words: list[str]) -> list[str]:
    """A flag with its values on a line."""
    found: list[str] = []
    for word in words:
        if word.startswith("--") or not found:
            found.append(word)
        else:
            found[-1] += f" {word}"
    return found


def scenario_text(design: PlannedDesign) -> str:
    """The design as a scenario that `simulate` and `capacity` take."""
    data: dict[str, Any] = {"name": f"design {design.number} of a plan", "model": design.model}
    asked = design.scenario or {}
    data |= {key: asked[key] for key in ("price_convention", "seed", "workload", "tenants") if asked.get(key)}
    data["slo"] = design.slo
    data["deployment"] = design.deployment.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    return toml_text(data)


def benchmark_script(design: PlannedDesign, model: str) -> str:
    """`vllm bench serve` at the plan's rate and lengths; any OpenAI endpoint answers it."""
    workload = (design.scenario or {}).get("workload") or {}
    rate, prompt, output = workload.get("rate"), workload.get("prompt"), workload.get("output")
    lengths = [_mean(one) for one in (prompt, output)]
    limits = " ".join(
        f"{name}:{design.slo[key] * MS_PER_S:g}"
        for name, key in (("ttft", "ttft_s"), ("tpot", "tpot_s"), ("e2el", "e2e_s"))
        if design.slo.get(key)
    )
    flags = [
        f"--model {shlex.quote(model)}",
        f'--base-url "${{ENDPOINT:-http://localhost:{PORT}}}"',
        "--dataset-name random",
        f"--random-input-len {lengths[0] or '${INPUT:?mean prompt tokens}'}",
        f"--random-output-len {lengths[1] or '${OUTPUT:?output tokens}'}",
        f"--request-rate {rate or '${RATE:?requests per second}'}",
        f"--num-prompts {workload.get('requests') or 2000}",
        "--ignore-eos",
        "--percentile-metrics ttft,tpot,itl,e2el",
        f"--metric-percentiles 50,{design.slo.get('percentile', 90.0):g},99",
        *([f"--goodput {limits}"] if limits else []),
        "--save-result",
    ]
    return (
        f"#!/bin/sh\n# Measures what the plan promises: {design.traffic}\n# {promise(design)}\n"
        + "exec vllm bench serve \\\n  " + " \\\n  ".join(flags) + "\n"
    )  # fmt: skip


def _mean(lengths: Any) -> int | None:
    """Of lengths as JSON has them, where they are all alike or have a mean."""
    if isinstance(lengths, Mapping):
        value = lengths.get("value") or lengths.get("mean") or lengths.get("median")
        if value is None and lengths.get("low") and lengths.get("high"):
            value = (lengths["low"] + lengths["high"]) / 2
        return None if value is None else round(value)
    return None


def promise(design: PlannedDesign) -> str:
    """Latencies and rate that the plan says."""
    seen = design.promise.get("simulated") or design.promise.get("steady_state") or {}
    at = f"p{design.slo.get('percentile', 90.0):g}"
    said = []
    for key, name in (("ttft_s", "TTFT"), ("tpot_s", "TPOT")):
        value = (seen.get(key) or {}).get(at)
        if value is not None:
            said.append(f"{at} {name} {value * MS_PER_S:.4g} ms")
    if seen.get("total_tok_s_per_gpu"):
        said.append(f"{seen['total_tok_s_per_gpu']:,.0f} tok/s/GPU")
    return f"expected: {', '.join(said)}" if said else "the plan says nothing of its latencies"


def _readme(
    design: PlannedDesign,
    target: Target,
    engine: Engine,
    model: str,
    parts: tuple[Role, ...],
    said: list[str],
    files: list[str],
) -> str:
    rows = "\n".join(
        f"| {role.name} | {role.pool.instances} | {role.pool.parallelism} | {role.hardware.display_name} | "
        f"{role.nodes} x {role.gpus_per_node} | {role.pool.gpus} | {role.pool.max_tokens_per_step} | "
        f"{role.sequences_per_rank} |"
        for role in parts
    )
    total = sum(role.pool.gpus for role in parts)
    assumed = "\n".join(f"* {line}" for line in (*said, *design.assumptions))
    return (
        f"# {model}: design {design.number} of a plan, for {target} ({engine})\n\n"
        f"Traffic: {design.traffic}. {promise(design)[0].upper()}{promise(design)[1:]}.\n\n"
        "| role | instances | cut | accelerator | nodes x GPUs | GPUs | tokens a step and rank | sequences a rank |\n"
        f"|---|---|---|---|---|---|---|---|\n{rows}\n\n{total} accelerators in all.\n\n"
        f"Files: {', '.join(f'`{name}`' for name in files)}. Images are tagged `latest`: pin them to the release "
        "that the plan's stack was measured with. `benchmark.sh` measures what the plan promises; run it against the "
        "front of all roles.\n\n"
        + ("A prefill and a decode role need a router in front that knows both: the engine's own (vLLM's proxy, "
           "sglang-router, `trtllm-serve disaggregated`).\n\n"
           if len(parts) > 1 and target in ("vllm", "sglang", "trtllm", "kubernetes") else "")
        + f"Assumed:\n{assumed or '* nothing beyond the plan'}\n"
    )  # fmt: skip
