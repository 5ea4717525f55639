"""Launch lines of vLLM, SGLang and TensorRT-LLM, plain or under Dynamo, and of their routers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from calibration.launch.flags import Flags, engine_file, read_flags, split_commands, whole
from calibration.launch.launch import Launch, LaunchError
from calibration.launch.logs import is_log, read_log

ENGINES = "vllm serve, sglang.launch_server, trtllm-serve, or python -m dynamo.vllm, .sglang, .trtllm"
# Words that name a program -> how its flags are read. The first that is found in the command counts.
PROGRAMS = (
    (re.compile(r"sglang[._]router|sgl-router|sglang-router"), "router"),
    (re.compile(r"trtllm-serve disaggregated"), "trtllm pair"),
    (re.compile(r"dynamo\.vllm|vllm serve|vllm\.entrypoints|vllm-openai\S*"), "vllm"),
    (re.compile(r"dynamo\.sglang|sglang\.launch_server|sglang serve"), "sglang"),
    (re.compile(r"dynamo\.trtllm|trtllm-serve|trtllm-bench|tensorrt_llm"), "trtllm"),
)
ROLES: dict[str, Literal["prefill", "decode"]] = {
    "prefill": "prefill", "context": "prefill", "kv_producer": "prefill",
    "decode": "decode", "generation": "decode", "kv_consumer": "decode",
}  # fmt: skip


def read_launches(text: str, folder: Path | None = None) -> list[Launch]:
    """Every launch line of a script, in order; other commands are passed over. A start-up log stands for its line.

    folder: where files that a command names lie. Raises LaunchError where no line starts a known server.
    """
    if is_log(text):
        return [read_log(text)]
    found = [read for words in split_commands(text) if (read := _launch(words, folder or Path())) is not None]
    if not found:
        raise LaunchError(f"{' '.join(text.split())[:60]!r} starts no server that is known; give a line of {ENGINES}")
    return found


def read_launch(text: str, folder: Path | None = None) -> Launch:
    """As `read_launches`, of one line."""
    found = read_launches(text, folder)
    if len(found) > 1:
        raise LaunchError(f"{len(found)} servers are started where one is asked for; give each its own --command")
    return found[0]


def _launch(words: Sequence[str], folder: Path) -> Launch | None:
    line = " ".join(words)
    program = next(((found, name) for known, name in PROGRAMS if (found := known.search(line))), None)
    if program is None:
        return None
    match, name = program
    # Flags of the shell, of `python -m` and of launchers before the program are none of its own.
    count = next(i for i in range(1, len(words) + 1) if len(" ".join(words[:i])) >= match.end())
    flags = read_flags(line, words[count:])
    if name == "router":
        return _router(flags)
    if name == "trtllm pair":
        return _trtllm_pair(flags, folder)
    return {"vllm": _vllm, "sglang": _sglang, "trtllm": _trtllm}[name](flags, folder)


def _role(flags: Flags) -> Literal["prefill", "decode"] | None:
    if flags.switch("is-prefill-worker"):
        return "prefill"
    if flags.switch("is-decode-worker"):
        return "decode"
    said = flags.text("disaggregation-mode", "server-role")
    return None if said is None else ROLES.get(said.lower())


VLLM_SHORT = {
    "tp": "tensor-parallel-size", "pp": "pipeline-parallel-size", "dp": "data-parallel-size",
    "dpl": "data-parallel-size-local", "pcp": "prefill-context-parallel-size", "dcp": "decode-context-parallel-size",
    "ep": "enable-expert-parallel", "sc": "speculative-config", "q": "quantization",
}  # fmt: skip


def _vllm(flags: Flags, folder: Path) -> Launch:
    flags = replace(flags, values={VLLM_SHORT.get(name, name): found for name, found in flags.values.items()})
    config = flags.text("config")
    if config is not None:
        # Flags of the line override those of the file.
        keys = engine_file(folder / config)
        values = {str(k).replace("_", "-"): (_flag_text(v),) for k, v in keys.items() if v is not False}
        flags = replace(flags, values={**values, **flags.values})
    tp = flags.whole("tensor-parallel-size") or 1
    pp = flags.whole("pipeline-parallel-size") or 1
    pcp = flags.whole("prefill-context-parallel-size") or 1
    dp = flags.whole("data-parallel-size") or 1
    local = flags.whole("data-parallel-size-local")
    expert = flags.switch("enable-expert-parallel")
    transfer = flags.table("kv-transfer-config")
    speculation = flags.table("speculative-config")
    drafts = speculation.get("num_speculative_tokens")
    return Launch(
        "vLLM",
        flags.text("model") or (flags.words[0] if flags.words else None),
        ROLES.get(str(transfer.get("kv_role"))) or _role(flags),
        gpus=tp * pp * pcp * dp,
        gpus_here=tp * pp * pcp * (local if local is not None else dp),
        tp=tp,
        pp=pp,
        attention_dp=dp,
        ep=tp * pcp * dp if expert else 1,
        context_ranks=flags.whole("decode-context-parallel-size") or 1,
        sequences=flags.whole("max-num-seqs"),
        tokens_per_step=flags.whole("max-num-batched-tokens"),
        memory_share=flags.share("gpu-memory-utilization"),
        kv_dtype=flags.text("kv-cache-dtype"),
        quantisation=flags.text("quantization"),
        drafts=None if drafts is None else whole(drafts, "num_speculative_tokens"),
        most_context=flags.whole("max-model-len"),
    )


def _flag_text(value: Any) -> str:
    return "" if value is True else str(value)


def _sglang(flags: Flags, folder: Path) -> Launch:
    tp = flags.whole("tp-size", "tp", "tensor-parallel-size") or 1
    pp = flags.whole("pp-size", "pp", "pipeline-parallel-size") or 1
    data = flags.whole("dp-size", "dp", "data-parallel-size") or 1
    attention = flags.whole("attn-dp-size", "attention-data-parallel-size") or 1
    if flags.switch("enable-dp-attention"):
        attention, data = max(attention, data), 1
    if tp % attention:
        raise LaunchError(
            f"{attention} attention ranks do not divide --tp-size={tp}; correct --dp-size or --attn-dp-size"
        )
    gpus = tp * pp * data
    nodes = flags.whole("nnodes") or 1
    chunk = flags.whole("chunked-prefill-size")
    running = flags.whole("max-running-requests")
    steps = flags.whole("speculative-num-steps")
    draft_tokens = flags.whole("speculative-num-draft-tokens")
    drafts = steps if steps is not None else None if draft_tokens is None else draft_tokens - 1
    return Launch(
        "SGLang",
        flags.text("model-path", "model"),
        _role(flags),
        gpus=gpus,
        gpus_here=gpus // nodes,
        tp=tp,
        pp=pp,
        attention_dp=attention,
        ep=flags.whole("ep-size", "ep", "expert-parallel-size") or 1,
        context_ranks=flags.whole("dcp-size") or 1,
        replicas=data,
        # Both count all attention ranks.
        sequences=None if running is None else max(1, running // attention),
        prefill_chunk=None if chunk is None or chunk < 0 else max(1, chunk // attention),
        memory_share=flags.share("mem-fraction-static"),
        kv_dtype=flags.text("kv-cache-dtype"),
        quantisation=flags.text("quantization"),
        drafts=drafts if flags.has("speculative-algorithm", "speculative-algo") or drafts else None,
        most_context=flags.whole("context-length"),
    )


def _trtllm(flags: Flags, folder: Path) -> Launch:
    keys: dict[str, Any] = {}
    for name in ("extra-llm-api-options", "config", "extra-engine-args"):
        path = flags.text(name)
        if path:
            keys |= engine_file(folder / path)

    def size(key: str, *names: str) -> int | None:
        """The file overrides the flags."""
        if keys.get(key) is not None:
            return whole(keys[key], key)
        return flags.whole(key.replace("_", "-"), *names)

    tp = size("tensor_parallel_size", "tp-size") or 1
    pp = size("pipeline_parallel_size", "pp-size") or 1
    cp = size("context_parallel_size", "cp-size") or 1
    gpus = tp * pp * cp
    cache = keys.get("kv_cache_config") or {}
    speculation = keys.get("speculative_config") or {}
    drafts = speculation.get("num_nextn_predict_layers", speculation.get("max_draft_len"))
    budget = size("max_num_tokens")
    share = cache.get("free_gpu_memory_fraction", flags.share("kv-cache-free-gpu-memory-fraction"))
    return Launch(
        "TensorRT-LLM",
        flags.text("model", "model-path") or (flags.words[0] if flags.words else None),
        _role(flags),
        gpus=gpus,
        gpus_here=gpus,
        tp=tp,
        pp=pp,
        attention_dp=tp if keys.get("enable_attention_dp") or flags.switch("enable-attention-dp") else 1,
        ep=size("moe_expert_parallel_size", "ep-size") or 1,
        sequences=size("max_batch_size"),
        tokens_per_step=budget,
        memory_share=share,
        kv_dtype=cache.get("dtype"),
        quantisation=None,
        drafts=None if drafts is None else whole(drafts, "speculative_config"),
        most_context=size("max_seq_len"),
    )


def _router(flags: Flags) -> Launch:
    return Launch(
        "SGLang",
        prefill_servers=len(flags.values.get("prefill", ())) or None,
        decode_servers=len(flags.values.get("decode", ())) or None,
    )


def _trtllm_pair(flags: Flags, folder: Path) -> Launch:
    path = flags.text("c", "config-file", "config")
    if not path:
        raise LaunchError(f"{flags.command[:60]!r} names no file with its servers; give -c FILE.yaml")
    keys = engine_file(folder / path)

    def count(name: str) -> int:
        servers = keys.get(name) or {}
        return whole(servers.get("num_instances", len(servers.get("urls", ())) or 1), f"{name}.num_instances")

    return Launch("TensorRT-LLM", prefill_servers=count("context_servers"), decode_servers=count("generation_servers"))
