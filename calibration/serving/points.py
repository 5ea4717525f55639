"""Measured serving points: rows of a CSV file read into records, or into a sentence why a row cannot be predicted."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from calibration.serving.layouts import LayoutError, WorkerLayout, parse_worker, read_label

METRICS = (
    "total_tok_s_per_gpu",
    "output_tok_s_per_gpu",
    "input_tok_s_per_gpu",
    "tok_s_per_user",
    "tpot_ms",
    "ttft_ms",
)
BLANK = ("", "-")
PHASES = ("e2e", "prefill", "decode")
REQUIRED = ("model", "gpu", "isl", "osl", "concurrency")
# Mean of prompt and output lengths over their nominal values, by what the workload says of them.
UNIFORM_80_100 = 0.9  # uniform in [0.8, 1.0] of nominal, as InferenceX draws them
UNIFORM_0_100 = 0.5  # uniform in [0, 1] of nominal: bench_serving's default range ratio
SPREAD_80_100 = 1 / 9  # half of the width of these over their mean
SPREAD_0_100 = 1.0
NO_DRAFTS = ("", "none", "off", "false", "no", "0")
NOT_RECORDED = "not recorded"
MTP_DRAFTS = 3  # tokens; assumed where deployments with multi-token prediction do not say the count
LITTLE = (0.85, 1.10)  # requests in flight over the stated concurrency: assumed reach of ramp-up and rounding
NEWEST = "2026-08"  # month of the software that fits and profiles stand for
LATEST = -1.0  # half-years; age of software after that, as far as later rows were predicted (docs/validation.md)
UNKNOWN = "unknown"


class PointsError(ValueError):
    """A points file that cannot be read; one sentence."""


class Unpredictable(ValueError):
    """Why one row cannot be predicted."""


@dataclass(frozen=True)
class Point:
    """One measured row. Lengths are means in tokens; metrics as in the file."""

    row: int
    id: str
    model: str
    gpu: str
    engine: str
    precision: str
    drafts: int
    disaggregated: bool
    phase: str  # "e2e", "prefill" or "decode"
    prefill: WorkerLayout  # of a pool measured alone (`phase`), both are that pool
    decode: WorkerLayout
    prompt: float
    output: float
    concurrency: float  # infinite where more requests wait than an instance can hold
    measured: Mapping[str, float]
    released: str = UNKNOWN  # year and month of the measurement: which software it ran
    mean_ttft: bool = False  # TTFT is a mean over all requests, not a median
    median_ttft_ms: float | None = None  # beside a mean, where the row says
    token_budget: float | None = None  # tokens that a step of one attention rank may hold, where the row says
    prefill_chunk: float | None = None  # prompt tokens that a step of one attention rank takes, where the row says
    most_running: float | None = None  # requests that a decode instance runs at once, where the row says
    most_running_of_rank: float | None = None  # those of one attention rank, likewise
    spread: float = SPREAD_80_100  # half of the width of uniform lengths over their mean
    drafts_recorded: bool = True  # else the row says that nobody wrote down whether it drafted: predicted as without
    distrusted: str = ""  # the rule by which the row is scored apart (`distrust`)

    @property
    def age(self) -> float:
        """Of its software: half-years before `NEWEST`, 0 where the row does not say. Later ones count for half a year
        at most, which is about as far as earlier rows were seen to tell."""
        if self.released == UNKNOWN:
            return 0.0
        return max(LATEST, (months_of(NEWEST) - months_of(self.released)) / 6)

    @property
    def gpus(self) -> int:
        pools = [self.decode] if not self.disaggregated else [self.prefill, self.decode]
        return sum(pool.count * pool.gpus for pool in pools)

    @property
    def group(self) -> tuple[str, str, str, bool]:
        return (self.model, self.gpu, self.engine, self.disaggregated)


def read_points(path: Path) -> pd.DataFrame:
    """The file as a frame. Raises PointsError."""
    try:
        frame = pd.read_csv(path, low_memory=False)
    except pd.errors.EmptyDataError:
        raise PointsError(f"{path} is empty; give a CSV file with a header line") from None
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise PointsError(f"{path} is not a CSV file: {error}") from None
    missing = [c for c in REQUIRED if c not in frame]
    if missing:
        raise PointsError(f"{path} lacks the columns {', '.join(missing)}; docs/validation.md lists them all")
    if not any(metric in frame for metric in METRICS):
        raise PointsError(f"{path} has no metric column; give at least one of {', '.join(METRICS)}")
    if frame.empty:
        raise PointsError(f"{path} has no rows")
    return frame


def _number(row: Mapping[str, Any], name: str) -> float | None:
    """A positive number; None where the cell is blank or zero. Raises Unpredictable for anything else."""
    cell = _text(row, name)
    if cell in BLANK:
        return None
    try:
        value = float(cell)
    except ValueError:
        raise Unpredictable(f"{name} is {cell!r}, which is no number; correct it or leave it blank") from None
    if math.isnan(value):
        return None
    if value < 0 or math.isinf(value):
        raise Unpredictable(f"{name} is {value:g}; give a positive number or leave it blank")
    return value or None


def _flag(row: Mapping[str, Any], name: str) -> bool:
    word = _text(row, name).lower()
    if word in ("true", "yes"):
        return True
    return word not in ("false", "no") and _number(row, name) is not None


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value).strip()


def _said(row: Mapping[str, Any], pattern: str) -> float | None:
    """A number that the notes, or the flags of a layout, state."""
    found = re.search(pattern, " ".join(_text(row, name) for name in ("notes", "prefill_parallel", "decode_parallel")))
    return float(next(group for group in found.groups() if group)) if found else None


def _median_ttft_ms(row: Mapping[str, Any]) -> float | None:
    seconds = _said(row, r"median TTFT ([\d.]+) ?s\b")
    return None if seconds is None else seconds * 1e3


def _need(row: Mapping[str, Any], name: str) -> float:
    value = _number(row, name)
    if value is None:
        raise Unpredictable(f"no {name}")
    return value


def parse_point(index: int, row: Mapping[str, Any]) -> Point:
    """One row. Raises Unpredictable."""
    measured = {m: v for m in METRICS if (v := _number(row, m)) is not None}
    if not measured:
        raise Unpredictable("no measured metric")
    for name in ("model", "gpu"):
        if not _text(row, name):
            raise Unpredictable(f"no {name}")
    phase = _text(row, "phase").lower() or "e2e"
    if phase not in PHASES:
        raise Unpredictable(f"phase {phase!r} is none of {', '.join(PHASES)}")
    concurrency = in_flight(row)
    prompt, output = lengths(row, phase)
    disaggregated = _flag(row, "disaggregated")
    try:
        pools = _pools(row, disaggregated, phase)
        names = ("prefill", "decode") if disaggregated else ("decode", "decode")
        prefill, decode = (_ranked(row, name, pool) for name, pool in zip(names, pools, strict=True))
    except LayoutError as error:
        raise Unpredictable(str(error)) from None
    spec_decode = _text(row, "spec_decode")
    point = Point(
        index,
        _text(row, "id") or str(index),
        _text(row, "model"),
        _text(row, "gpu"),
        _text(row, "engine") or "unknown",
        _text(row, "precision"),
        drafts_of(spec_decode),
        disaggregated,
        phase,
        prefill,
        decode,
        prompt,
        output,
        concurrency,
        measured,
        month[0] if (month := re.search(r"20\d\d-\d\d", _text(row, "date"))) else UNKNOWN,
        mean_ttft := "mean" in _text(row, "ttft_stat").lower(),
        _median_ttft_ms(row) if mean_ttft else None,
        _number(row, "tokens_per_step") or _said(row, r"max-num-batched-tokens[ =](\d+)"),
        _number(row, "prefill_chunk") or _said(row, r"chunked prefill (\d+)|chunked-prefill-size[ =](\d+)"),
        _said(row, r"max-running-requests[ =](\d+)|(\d+) running requests"),
        _number(row, "sequences_per_rank") or _said(row, r"max-num-seqs[ =](\d+)"),
        spread=spread_of(row),
        drafts_recorded=spec_decode.lower() != NOT_RECORDED,
    )
    return replace(point, distrusted=distrust(point, row))


def _ranked(row: Mapping[str, Any], name: str, pool: WorkerLayout) -> WorkerLayout:
    """With the attention ranks that the row says. Raises LayoutError."""
    ranks = _number(row, f"{name}_attention_ranks")
    if ranks is None:
        return pool
    within = pool.gpus // (pool.stages * pool.context_ranks)
    if within % ranks:
        raise LayoutError(f"{name}_attention_ranks={ranks:g} do not divide the {within} accelerators of a worker")
    return replace(pool, attention_ranks=int(ranks), data_parallel=ranks > 1)


def months_of(released: str) -> int:
    """Of a year and a month, counted from year 0.

    >>> months_of("2026-02") - months_of("2025-11")
    3
    """
    year, month = released.split("-")
    return 12 * int(year) + int(month)


def distrust(point: Point, row: Mapping[str, Any]) -> str:
    """Why a row is scored apart, "" for none: rules on what the row says of itself, never on its error."""
    notes = _text(row, "notes")
    if "older run" in notes:
        return "older run of a configuration"
    wanted = re.search(r"use only (20\d\d-\d\d-\d\d)", notes)
    if wanted and wanted[1] != _text(row, "date")[:10]:
        return "older run of a configuration"
    if "concurrency far above running batch" in notes:
        return "concurrency is not the number of requests in flight"
    if re.search(r"prefix cache|KV reuse", _text(row, "workload")):
        return "prompts found in a prefix cache, and how much of them is not a column"
    needed = ("total_tok_s_per_gpu", "ttft_ms", "tpot_ms")
    if point.phase == "e2e" and all(name in point.measured for name in needed):
        total, ttft_ms, tpot_ms = (point.measured[name] for name in needed)
        rate = total * point.gpus / (point.prompt + point.output)
        in_flight = rate * (ttft_ms + (point.output - 1) * tpot_ms) / 1e3
        if not LITTLE[0] <= in_flight / point.concurrency <= LITTLE[1]:
            return "rate x latency is not the concurrency (Little's law)"
    return ""


def in_flight(row: Mapping[str, Any]) -> float:
    """Requests in flight; without end where a benchmark of the highest throughput offered all of them at once."""
    if _number(row, "concurrency") is None and "max throughput" in _text(row, "workload"):
        return math.inf
    return _need(row, "concurrency")


def lengths(row: Mapping[str, Any], phase: str = "e2e") -> tuple[float, float]:
    """Mean prompt and output tokens: what the notes measured, else nominal lengths times what the workload draws. A
    pool measured alone needs no output length: prefill makes one token, and decode is at the context `isl`."""
    said = re.search(r"actual mean lengths (\d+)/(\d+)", _text(row, "notes"))
    if said:
        return float(said[1]), float(said[2])
    alone = phase != "e2e" and _number(row, "osl") is None
    prompt, output = _need(row, "isl"), 1.0 if alone else _need(row, "osl")
    workload = _text(row, "workload").lower()
    scale = 1.0
    if "nominal" in workload:
        scale = UNIFORM_0_100
    elif "random" in workload:
        scale = UNIFORM_80_100
    return max(1.0, prompt * scale), max(1.0, output * scale)


def spread_of(row: Mapping[str, Any]) -> float:
    """Of lengths; where the row does not say, that of most benchmarks."""
    return SPREAD_0_100 if "nominal" in _text(row, "workload").lower() else SPREAD_80_100


def drafts_of(label: str) -> int:
    """Draft tokens per step: 0 for none or where nobody wrote it down, the first of EAGLE's steps-topk-drafts, a digit.

    >>> [drafts_of(x) for x in ("none", "", "MTP", "MTP1", "EAGLE 3-1-4 (MTP)", "EAGLE 1-1-2 (MTP)", "not recorded")]
    [0, 0, 3, 1, 3, 1, 0]
    """
    word = label.lower()
    if word in NO_DRAFTS or word == NOT_RECORDED:
        return 0
    eagle = re.search(r"(\d+)-(\d+)-(\d+)", word)
    if eagle:
        return int(eagle[1])
    digit = re.search(r"(\d+)", word)
    return int(digit[1]) if digit else MTP_DRAFTS


def _pools(row: Mapping[str, Any], disaggregated: bool, phase: str) -> tuple[WorkerLayout, WorkerLayout]:
    """Prefill and decode; the same twice where prompts share the accelerators of decode, or one pool is measured."""
    prefill, decode = (read_label(_text(row, f"{pool}_parallel")) for pool in ("prefill", "decode"))
    total, n_prefill, n_decode = (_number(row, name) for name in ("n_gpu", "n_prefill_gpu", "n_decode_gpu"))
    if not disaggregated or phase != "e2e":
        first, second = (prefill, decode) if phase == "prefill" else (decode, prefill)
        label = first if first.text else second
        gpus = total or (n_prefill if phase == "prefill" else n_decode) or label.gpus
        if not gpus:
            raise Unpredictable("neither n_gpu nor a parallel label says how many accelerators there are")
        worker = parse_worker(label, int(gpus))
        return worker, worker
    if (prefill.per_worker and not n_prefill) or (decode.per_worker and not n_decode):
        raise Unpredictable("the layout is that of one worker, and how many there are is not said")
    n_prefill = n_prefill or (prefill.count or 1) * prefill.gpus or None
    n_decode = n_decode or (decode.count or 1) * decode.gpus or None
    if total and n_prefill and not n_decode:
        n_decode = total - n_prefill
    if total and n_decode and not n_prefill:
        n_prefill = total - n_decode
    if not n_prefill or not n_decode or n_prefill < 0 or n_decode < 0:
        raise Unpredictable("disaggregated, and the split into prefill and decode accelerators is not said")
    return parse_worker(prefill, int(n_prefill)), parse_worker(decode, int(n_decode))
