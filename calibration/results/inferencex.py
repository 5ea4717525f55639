"""Aggregates of InferenceX: seconds, rates per GPU, the whole layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calibration.launch.launch import Launch
from calibration.results.documents import Fields
from calibration.results.result import BenchmarkResult

# Of true lengths over those asked for: drawn in 0.8 to 1.0, templates on top (assumed with room)
LEAST_OF_NOMINAL, MOST_OF_NOMINAL = 0.7, 1.1
ENGINES = {"vllm": "vLLM", "sglang": "SGLang", "trt": "TensorRT-LLM", "trtllm": "TensorRT-LLM", "atom": "ATOM"}


def fits(values: Mapping[str, Any]) -> bool:
    return {"hw", "conc", "tput_per_gpu"} <= set(values)


def read(where: str, values: Mapping[str, Any]) -> list[BenchmarkResult]:
    """Of disaggregated runs output counts decode GPUs and input prefill GPUs."""
    given = Fields(where, values)
    disaggregated = values.get("disagg") is True
    engine = _engine(given.text("framework") or "")
    prefill = _server(given, engine, "prefill_") if disaggregated else None
    decode = _server(given, engine, "decode_" if disaggregated or "decode_tp" in values else "")
    n_prefill, n_decode = given.whole("num_prefill_gpu"), given.whole("num_decode_gpu")
    gpus = (n_prefill or 0) + (n_decode or 0) if disaggregated else decode.gpus
    total, output = given.number("tput_per_gpu"), given.number("output_tput_per_gpu")
    of_output = n_decode if disaggregated else gpus
    output_rate = output * of_output if output is not None and of_output else None
    lengths = _true_lengths(given, output_rate, total * gpus if total is not None and gpus else None)
    return [
        BenchmarkResult(
            where=where,
            tool="inferencex",
            engine=engine or None,
            model=given.text("model", "infmax_model_prefix"),
            gpu=given.text("hw"),
            n_gpu=gpus,
            precision=given.text("precision"),
            spec_decode=given.text("spec_decoding"),
            disaggregated=disaggregated,
            prefill=prefill,
            decode=decode,
            prefill_workers=given.whole("prefill_num_workers") or 1,
            decode_workers=given.whole("decode_num_workers") or 1,
            n_prefill_gpu=n_prefill if disaggregated else None,
            n_decode_gpu=n_decode if disaggregated else None,
            nominal=lengths is None,
            concurrency_limit=given.number("conc"),
            mean_input_tokens=lengths[0] if lengths else given.number("isl"),
            mean_output_tokens=lengths[1] if lengths else given.number("osl"),
            output_tokens_per_s=output_rate,
            total_tokens_per_s=total * gpus if total is not None and gpus else None,
            mean_ttft_s=given.number("mean_ttft"),
            median_ttft_s=given.number("median_ttft"),
            p99_ttft_s=given.number("p99_ttft"),
            mean_tpot_s=given.number("mean_tpot"),
            median_tpot_s=given.number("median_tpot"),
            mean_itl_s=given.number("mean_itl"),
            mean_e2e_s=given.number("mean_e2el"),
        )
    ]


def _true_lengths(given: Fields, output_rate: float | None, total_rate: float | None) -> tuple[float, float] | None:
    """Mean prompt and output tokens, which the file does not say: a request takes TTFT + (output - 1) TPOT, and the
    prompt is to the output as the input rate to the output rate. None where that is far from what was asked for."""
    names = ("mean_ttft", "mean_tpot", "mean_e2el", "isl", "osl")
    found = [value for name in names if (value := given.number(name))]
    if len(found) < len(names) or not output_rate or not total_rate:
        return None
    ttft, tpot, latency, isl, osl = found
    output = (latency - ttft) / tpot + 1
    prompt = output * (total_rate / output_rate - 1)
    near = all(LEAST_OF_NOMINAL <= x / y <= MOST_OF_NOMINAL for x, y in ((output, osl), (prompt, isl)))
    return (prompt, output) if near else None


def _engine(framework: str) -> str:
    """'dynamo-sglang' as 'Dynamo+SGLang'."""
    parts = framework.lower().split("-")
    names = [ENGINES[part] for part in parts if part in ENGINES]
    name = names[0] if names else framework
    return f"Dynamo+{name}" if "dynamo" in parts and names else name


def _server(given: Fields, engine: str, prefix: str) -> Launch:
    """One worker. `dp_attention` is a word."""
    tp = given.whole(f"{prefix}tp") or 1
    pp, pcp = given.whole(f"{prefix}pp") or 1, given.whole(f"{prefix}pcp_size") or 1
    data = (given.text(f"{prefix}dp_attention") or "false").lower() == "true"
    return Launch(
        engine,
        gpus=tp * pp * pcp,
        tp=tp,
        pp=pp,
        attention_dp=tp if data else 1,
        ep=given.whole(f"{prefix}ep") or 1,
        context_ranks=given.whole(f"{prefix}dcp_size") or 1,
    )
