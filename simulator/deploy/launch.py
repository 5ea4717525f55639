"""Flags of an engine for one role of a design. What a limit counts over differs: see the comments of each engine.

Flag names and scopes were read in the wheels vLLM 0.33.0 and SGLang 0.5.23, and in TensorRT-LLM's serve.py@00209af.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal, get_args

from simulator.deploy.parts import Role
from simulator.deploy.text import yaml_text
from simulator.scenario import ScenarioError

Engine = Literal["vllm", "sglang", "trtllm"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
DRAFT_METHOD = "mtp"  # drafts of a model's own heads
KV_LINK = {"kv_connector": "NixlConnector", "kv_role": "kv_both"}
PORT = 8000


def vllm_flags(role: Role) -> list[str]:
    """Limits are of one data-parallel engine; experts are spread over all ranks or over none."""
    pool = role.pool
    flags = ["--tensor-parallel-size", str(pool.tp), "--data-parallel-size", str(pool.dp)]
    flags += ["--pipeline-parallel-size", str(pool.pp)] if pool.pp > 1 else []
    flags += ["--prefill-context-parallel-size", str(pool.cp)] if pool.cp > 1 else []
    flags += ["--enable-expert-parallel"] if pool.ep > 1 else []
    flags += ["--max-num-seqs", str(role.sequences_per_rank), "--max-num-batched-tokens", str(pool.max_tokens_per_step)]
    if pool.draft_tokens:
        drafts = {"method": DRAFT_METHOD, "num_speculative_tokens": pool.draft_tokens}
        flags += ["--speculative-config", json.dumps(drafts)]
    if not _colocated(role):
        flags += ["--kv-transfer-config", json.dumps(KV_LINK)]
    return flags


def sglang_flags(role: Role) -> list[str]:
    """TP is of the whole instance, attention ranks inside; limits are of all of them together."""
    _no_context_parallel(role, "sglang")
    pool = role.pool
    flags = ["--tp-size", str(pool.tp * pool.dp)]
    flags += ["--dp-size", str(pool.dp), "--enable-dp-attention"] if pool.dp > 1 else []
    flags += ["--pp-size", str(pool.pp)] if pool.pp > 1 else []
    flags += ["--ep-size", str(pool.ep)] if pool.ep > 1 else []
    flags += ["--max-running-requests", str(role.sequences_per_rank * pool.dp)]
    flags += ["--chunked-prefill-size", str(pool.max_tokens_per_step * pool.dp)]
    if pool.draft_tokens:
        flags += ["--speculative-algorithm", "EAGLE", "--speculative-num-steps", str(pool.draft_tokens)]
        flags += ["--speculative-eagle-topk", "1", "--speculative-num-draft-tokens", str(pool.draft_tokens + 1)]
    if not _colocated(role):
        flags += ["--disaggregation-mode", role.name.partition("-")[0], "--disaggregation-transfer-backend", "nixl"]
    return flags


def trtllm_config(role: Role) -> dict[str, Any]:
    """The engine's YAML file. Limits are of one attention rank, and with attention DP every rank is one."""
    _no_context_parallel(role, "trtllm")
    pool = role.pool
    if pool.dp > 1 and pool.tp > 1:
        raise ScenarioError(
            f"{role.name} has TP{pool.tp} inside DP{pool.dp}; TensorRT-LLM spreads attention over all ranks by one or "
            "the other: choose a design with either, or another engine"
        )
    batch = role.sequences_per_rank
    tokens = max(pool.max_tokens_per_step, batch * (1 + pool.draft_tokens) if role.name != "prefill" else 0)
    config: dict[str, Any] = {
        "tensor_parallel_size": pool.tp * pool.dp,
        "pipeline_parallel_size": pool.pp,
        "moe_expert_parallel_size": pool.ep,
        "enable_attention_dp": pool.dp > 1,
        "max_batch_size": batch,
        "max_num_tokens": tokens,
        "enable_chunked_prefill": True,
    }
    if pool.draft_tokens:
        config["speculative_config"] = {"decoding_type": "MTP", "num_nextn_predict_layers": pool.draft_tokens}
    if not _colocated(role):
        config["cache_transceiver_config"] = {"backend": "DEFAULT"}
    return config


FLAGS: dict[Engine, Callable[[Role], list[str]]] = {"vllm": vllm_flags, "sglang": sglang_flags}


def command(engine: Engine, role: Role, model: str) -> list[str]:
    """The server of one instance that fits on a node, or of its first node."""
    if engine == "vllm":
        return ["vllm", "serve", model, *vllm_flags(role), "--port", str(PORT)]
    if engine == "sglang":
        return [
            "python3",
            "-m",
            "sglang.launch_server",
            "--model-path",
            model,
            *sglang_flags(role),
            "--port",
            str(PORT),
        ]
    return ["trtllm-serve", model, "--extra_llm_api_options", config_name(role), "--port", str(PORT)]


def several_nodes(engine: Engine, role: Role, leader: str, node: str) -> list[str]:
    """What each node of an instance that spans several is told besides; leader, node: how it learns them."""
    if role.nodes == 1 or engine == "trtllm":
        return []
    if engine == "sglang":
        return ["--dist-init-addr", f"{leader}:20000", "--nnodes", str(role.nodes), "--node-rank", node]
    if role.pool.dp % role.nodes == 0:
        local = role.pool.dp // role.nodes
        return [
            "--data-parallel-size-local", str(local), "--data-parallel-address", leader,
            "--data-parallel-start-rank", f"$(({node} * {local}))",
        ]  # fmt: skip
    return ["--nnodes", str(role.nodes), "--node-rank", node, "--master-addr", leader]


def config_name(role: Role) -> str:
    return f"{role.name}.yaml"


def config_text(role: Role) -> str:
    """The YAML file of a role under TensorRT-LLM."""
    return yaml_text(trtllm_config(role))


def notes(engine: Engine, role: Role) -> list[str]:
    """What the engine's flags cannot say of the role's pool."""
    pool, said = role.pool, []
    if engine == "vllm" and 1 < pool.ep != pool.tp * pool.dp * pool.cp:
        said.append(
            f"{role.name}: the plan spreads experts over {pool.ep} ranks, vLLM spreads them over all "
            f"{pool.tp * pool.dp * pool.cp}"
        )
    if pool.batching != "chunked":
        said.append(f"{role.name}: the plan batches as {pool.batching}, which is no flag: it is the engine's own way")
    if pool.redundant_experts:
        said.append(f"{role.name}: {pool.redundant_experts} redundant experts a layer are to be set by hand")
    if role.nodes > 1:
        said.append(f"{role.name}: an instance spans {role.nodes} nodes of {role.gpus_per_node} accelerators")
        if engine == "trtllm":
            said.append(f"{role.name}: TensorRT-LLM joins nodes by MPI: start it with mpirun and trtllm-llmapi-launch")
    return said


def _colocated(role: Role) -> bool:
    return role.name.startswith("colocated")


def _no_context_parallel(role: Role, engine: str) -> None:
    if role.pool.cp > 1:
        raise ScenarioError(
            f"{role.name} has context parallelism CP{role.pool.cp}, whose flags of {engine} we could not check; choose "
            "another design, or export to vllm"
        )
