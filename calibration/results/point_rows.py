"""Rows of a points file from benchmark results and from what is known of the servers that were measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calibration.launch.commands import read_launch
from calibration.launch.launch import Launch, LaunchError
from calibration.results.gpu_names import gpu_name
from calibration.results.result import BenchmarkResult, ResultError

IN_FLIGHT = 0.85  # of the clients' limit: where fewer are in flight, arrivals bound them and not the limit (assumed)
PRECISIONS = ("NVFP4", "MXFP4", "INT4", "FP8", "FP4", "BF16", "AWQ", "GPTQ")  # as model names end
AS_POINTS = {
    "AWQ": "INT4",
    "GPTQ": "INT4",
    "MXFP4": "FP4",
    "FP16": "BF16",
    "BFLOAT16": "BF16",
    "COMPRESSED-TENSORS": "",
}


@dataclass(frozen=True)
class Setup:
    """What was measured, as far as the user says it. Overrides what files say; None: not said.

    tp, ep, pp: of an instance; dp: its attention ranks. commands: launch lines of the servers, one of a colocated
    server, or one for prefill and one for decode. folder: where files that the lines name lie.
    """

    gpu: str | None = None
    n_gpu: int | None = None
    n_prefill_gpu: int | None = None
    n_decode_gpu: int | None = None
    tp: int | None = None
    dp: int | None = None
    ep: int | None = None
    pp: int | None = None
    engine: str | None = None
    model: str | None = None
    precision: str | None = None
    spec_decode: str | None = None
    date: str | None = None
    commands: tuple[str, ...] = ()
    folder: Path = Path()

    @property
    def says_layout(self) -> bool:
        return any(size is not None for size in (self.tp, self.dp, self.ep, self.pp))

    def launches(self) -> tuple[Launch, ...]:
        """Raises LaunchError."""
        found = tuple(read_launch(command, self.folder) for command in self.commands)
        if any(launch.gpus is None for launch in found):
            raise LaunchError("a router starts no engine; give the launch lines of its prefill and decode servers")
        return found


def rows_of(results: Sequence[BenchmarkResult], setup: Setup) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows, and a sentence for each result of which no row can be made. Raises LaunchError."""
    launches = setup.launches()
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    for result in results:
        try:
            rows.append(_row(result, setup, launches))
        except ResultError as error:
            left_out.append(str(error))
    return rows, left_out


def _row(result: BenchmarkResult, setup: Setup, launches: Sequence[Launch]) -> dict[str, Any]:
    prefill, decode = _servers(result, setup, launches)
    disaggregated = prefill is not None
    pools = _pools(result, setup, prefill, decode)
    gpus = sum(pools) if disaggregated else pools[1]
    lengths = {"prompt": result.mean_input_tokens, "output": result.mean_output_tokens}
    for name, mean in lengths.items():
        if not mean:
            raise ResultError(f"{result.where}: mean {name} tokens are not known; give a result that counts tokens")
    model = setup.model or result.model or decode.model
    if not model:
        raise ResultError(f"{result.where}: the model is not said; give it as --model, or the launch line as --command")
    gpu = setup.gpu or result.gpu
    if not gpu:
        raise ResultError(f"{result.where}: the accelerator is not said; give it as --gpu")
    median = result.median_ttft_s is not None
    ttft_s = result.median_ttft_s if median else result.mean_ttft_s
    tpot_s = result.median_tpot_s if result.median_tpot_s is not None else result.mean_tpot_s
    rates = {
        "total_tok_s_per_gpu": _per(result.total_tokens_per_s, gpus),
        "output_tok_s_per_gpu": _per(result.output_tokens_per_s, pools[1]),
    }
    if disaggregated and result.total_tokens_per_s is not None and result.output_tokens_per_s is not None:
        rates["input_tok_s_per_gpu"] = _per(result.total_tokens_per_s - result.output_tokens_per_s, pools[0])
    if tpot_s is None and all(rate is None for rate in rates.values()):
        raise ResultError(f"{result.where}: neither TPOT nor a throughput is there; measure with streaming")
    return {
        "id": result.where,
        "date": setup.date or result.date,
        "model": model,
        "gpu": gpu_name(gpu),
        "n_gpu": gpus,
        "engine": setup.engine or result.engine or decode.engine or None,
        "precision": _precision(setup.precision or result.precision or decode.quantisation, model),
        "disaggregated": int(disaggregated),
        "n_prefill_gpu": pools[0] if disaggregated else None,
        "n_decode_gpu": pools[1] if disaggregated else None,
        "prefill_parallel": _label(prefill, result.prefill_workers) if prefill is not None else None,
        "decode_parallel": _label(decode, result.decode_workers),
        "prefill_attention_ranks": prefill.attention_dp if prefill is not None else None,
        "decode_attention_ranks": decode.attention_dp,
        "spec_decode": _drafts(result, setup, decode),
        "isl": _short(result.mean_input_tokens),
        "osl": _short(result.mean_output_tokens),
        "workload": "random" if result.nominal else None,
        "concurrency": _in_flight(result),
        "tpot_ms": _short(tpot_s, 1e3),
        "ttft_ms": _short(ttft_s, 1e3),
        "ttft_stat": None if ttft_s is None else "median" if median else "mean",
        **{name: _short(rate) for name, rate in rates.items()},
        "sequences_per_rank": decode.sequences,
        "tokens_per_step": (prefill or decode).tokens_per_step,
        "prefill_chunk": (prefill or decode).prefill_chunk,
        "notes": f"{result.tool}{_failed(result)}",
    }


def _servers(result: BenchmarkResult, setup: Setup, launches: Sequence[Launch]) -> tuple[Launch | None, Launch]:
    """Prefill (None: colocated) and decode servers: by options, else by the file, else by launch lines. Raises
    ResultError where the file contradicts a line, or nothing says how the model is cut."""
    by_role = {launch.role: launch for launch in launches}
    alone = next((launch for launch in launches if launch.role is None), None)
    prefill = by_role.get("prefill") or result.prefill
    told = by_role.get("decode") or alone
    if told is None and len(launches) == 1:
        told = launches[0]
    if prefill is not None and told is prefill and result.decode is None:
        raise ResultError(
            f"{result.where}: only the launch line of prefill is given; give that of decode as a second --command"
        )
    if prefill is None and "decode" in by_role and result.prefill is None and not result.disaggregated:
        raise ResultError(
            f"{result.where}: only the launch line of decode is given; give that of prefill as a second --command"
        )
    if told is not None and result.decode is not None:
        _check_alike(result, result.decode, told)
    decode = _joined(result.decode, told)
    if setup.says_layout:
        decode = _by_options(decode, setup)
        prefill = None if prefill is None else _by_options(prefill, setup)
    if decode is None:
        if setup.n_gpu == 1 or result.n_gpu == 1:
            return prefill, Launch(setup.engine or result.engine or "", gpus=1)
        raise ResultError(
            f"{result.where}: how the model is cut is not said; give --tp (--dp, --ep, --pp), or the launch line as "
            '--command "..."'
        )
    return prefill, decode


def _joined(found: Launch | None, told: Launch | None) -> Launch | None:
    """What the file knows, filled up from the launch line."""
    if found is None or told is None:
        return found or told
    names = ("sequences", "tokens_per_step", "prefill_chunk", "quantisation", "drafts", "model", "kv_dtype")
    missing = {name: getattr(told, name) for name in names if getattr(found, name) is None}
    return replace(found, attention_dp=max(found.attention_dp, told.attention_dp), **missing)


def _check_alike(result: BenchmarkResult, found: Launch, told: Launch) -> None:
    for name, what in (("gpus_of_instance", "accelerators"), ("tp", "TP"), ("pp", "PP")):
        a, b = getattr(found, name), getattr(told, name)
        if a is not None and b is not None and a != b:
            raise ResultError(
                f"{result.where}: the file says {what} {a} and the launch line {b}; give that of the server that "
                "was measured"
            )


def _by_options(server: Launch | None, setup: Setup) -> Launch:
    """Sizes that were given; --dp alone, without --tp, is as vLLM has it: ranks of one accelerator."""
    base = server or Launch(setup.engine or "")
    pp = setup.pp or base.pp
    dp = setup.dp or 1
    per_rank = setup.tp or 1
    instance = per_rank * dp * pp if (setup.engine or base.engine).lower().endswith("vllm") else max(per_rank, dp) * pp
    return replace(base, tp=per_rank, pp=pp, attention_dp=dp, ep=setup.ep or 1, gpus=instance, replicas=1)


def _pools(result: BenchmarkResult, setup: Setup, prefill: Launch | None, decode: Launch) -> tuple[int, int]:
    """Accelerators of prefill and of decode; of colocated serving all are in the second. Raises ResultError."""
    if prefill is not None:
        sizes = (
            setup.n_prefill_gpu or result.n_prefill_gpu or (prefill.gpus or 0) * result.prefill_workers,
            setup.n_decode_gpu or result.n_decode_gpu or (decode.gpus or 0) * result.decode_workers,
        )
        if 0 in sizes:
            raise ResultError(
                f"{result.where}: the accelerators of prefill and decode are not said; give "
                "--n-prefill-gpu and --n-decode-gpu"
            )
        return sizes
    gpus = setup.n_gpu or result.n_gpu or decode.gpus
    if not gpus:
        raise ResultError(f"{result.where}: how many accelerators served is not said; give --n-gpu")
    size = decode.gpus_of_instance
    if size and gpus % size:
        raise ResultError(
            f"{result.where}: instances of {size} accelerators do not fill {gpus}; correct --n-gpu or --tp"
        )
    return 0, gpus


def _label(server: Launch, workers: int) -> str:
    if workers > 1 and server.replicas == 1:
        return replace(server, replicas=workers, gpus=(server.gpus or server.tp) * workers).label
    return server.label


def _precision(said: str | None, model: str) -> str | None:
    """What is said, else what the model's name ends with."""
    word = (said or "").upper()
    if not word or word in ("NONE", "AUTO", "NULL"):
        name = model.upper()
        word = next((known for known in PRECISIONS if re.search(rf"[-_]{known}\b", name)), "")
    return AS_POINTS.get(word, word) or None


def _drafts(result: BenchmarkResult, setup: Setup, decode: Launch) -> str:
    said = setup.spec_decode or result.spec_decode
    if said is not None:
        return said
    if decode.drafts is not None:
        return f"MTP{decode.drafts}" if decode.drafts else "none"
    # A launch line without speculation says that there is none.
    return "none" if decode.model is not None else "not recorded"


def _in_flight(result: BenchmarkResult) -> float | None:
    """Requests in flight: the clients' limit, or fewer where arrivals keep fewer there."""
    limit, mean = result.concurrency_limit, result.mean_concurrency
    if limit is None or (mean is not None and mean < IN_FLIGHT * limit):
        return _short(mean)
    return _short(limit)


def _failed(result: BenchmarkResult) -> str:
    if result.completed is None:
        return ""
    failed = f", {result.failed} failed" if result.failed else ""
    return f", {result.completed} requests{failed}"


def _per(rate: float | None, gpus: int) -> float | None:
    return None if rate is None or not gpus else rate / gpus


def _short(value: float | None, scale: float = 1.0) -> float | None:
    """To seven digits."""
    return None if value is None else float(f"{value * scale:.7g}")
