"""Start-up logs of vLLM and SGLang: what a server resolved from its launch line."""

from __future__ import annotations

import re

from calibration.launch.launch import Launch, LaunchError

VLLM = re.compile(r"Initializing a V\d LLM engine|non-default args: \{|GPU KV cache size:")
SGLANG = re.compile(r"server_args=ServerArgs\(|max_total_num_tokens=\d")
KV_TOKENS = re.compile(r"GPU KV cache size: ([\d,]+) tokens")
# SGLang prints this line for each rank, with the chunk and the requests of that rank.
OF_RANK = re.compile(
    r"max_total_num_tokens=(\d+), chunked_prefill_size=(-?\d+),.*?max_running_requests=(\d+), context_len=(\d+)"
)


def is_log(text: str) -> bool:
    return VLLM.search(text) is not None or SGLANG.search(text) is not None


def read_log(text: str) -> Launch:
    """The server that wrote a log. Raises LaunchError where the log does not say its sizes."""
    return _vllm(text) if VLLM.search(text) else _sglang(text)


def _found(text: str, key: str) -> str | None:
    """The last value of a key, as `key=value` or as `'key': value`."""
    values = re.findall(rf"\b{key}'?(?:=|: )'?([^,')}}\s]+)", text)
    return values[-1] if values else None


def _whole(text: str, key: str) -> int | None:
    value = (_found(text, key) or "").rstrip(".")  # a sentence may end with it
    return int(value) if re.fullmatch(r"\d{1,9}", value) else None


def _vllm(text: str) -> Launch:
    """Limits and KV are those of one engine, of which there are as many as data-parallel ranks."""
    tp = _whole(text, "tensor_parallel_size")
    if tp is None:
        raise LaunchError("the log does not say tensor_parallel_size; give it from its first line, or the launch line")
    pp, dp = _whole(text, "pipeline_parallel_size") or 1, _whole(text, "data_parallel_size") or 1
    kv = KV_TOKENS.search(text)
    return Launch(
        "vLLM",
        _found(text, "model"),
        gpus=tp * pp * dp,
        tp=tp,
        pp=pp,
        attention_dp=dp,
        ep=tp * dp if _found(text, "enable_expert_parallel") == "True" else 1,
        context_ranks=_whole(text, "decode_context_parallel_size") or 1,
        sequences=_whole(text, "max_num_seqs"),
        tokens_per_step=_whole(text, "max_num_batched_tokens"),
        kv_dtype=_found(text, "kv_cache_dtype"),
        quantisation=_found(text, "quantization"),
        drafts=0 if _found(text, "speculative_config") == "None" else None,
        most_context=_whole(text, "max_model_len") or _whole(text, "max_seq_len"),
        kv_tokens=int(kv[1].replace(",", "")) if kv else None,
    )


def _sglang(text: str) -> Launch:
    tp = _whole(text, "tp_size")
    if tp is None:
        raise LaunchError("the log does not say tp_size; give it from its first line, or the launch line")
    pp, data = _whole(text, "pp_size") or 1, _whole(text, "dp_size") or 1
    attention = _whole(text, "attn_dp_size") or 1
    if _found(text, "enable_dp_attention") == "True":
        attention, data = max(attention, data), 1
    rank = OF_RANK.search(text)
    drafts = _whole(text, "speculative_num_steps")
    return Launch(
        "SGLang",
        _found(text, "model_path"),
        gpus=tp * pp * data,
        tp=tp,
        pp=pp,
        attention_dp=attention,
        ep=_whole(text, "ep_size") or 1,
        replicas=data,
        sequences=int(rank[3]) if rank else None,
        prefill_chunk=int(rank[2]) if rank and int(rank[2]) > 0 else None,
        most_context=int(rank[4]) if rank else None,
        drafts=0 if _found(text, "speculative_algorithm") == "None" else drafts,
        kv_tokens=int(rank[1]) if rank else None,
    )
