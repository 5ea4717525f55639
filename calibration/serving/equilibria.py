"""Measured points as clusters in equilibrium: priced once, then asked under any engine parameters.

A point becomes the pools of `simulator.steady_state`: its workers are instances with the step times, KV room and limits
that the row says or that are assumed, and its benchmark is a closed loop whose clients all start at once and send ten
requests each. A pool measured alone is a colocated one whose requests are all prompt, or all decode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from calibration.arrays import Index
from calibration.serving.layouts import WorkerLayout
from calibration.serving.parameters import Given, family_of, kernel_profile
from calibration.serving.point_engines import engine_of, hardware_of
from calibration.serving.points import Point, Unpredictable
from calibration.serving.served_model import UnknownModel
from hw_profiles.loading import CatalogError
from hw_profiles.profile import HardwareProfile
from simulator.model.acceptance import tokens_per_step
from simulator.model.arrays import Floats
from simulator.model.kv import transfer_bytes
from simulator.model.latency import StepLatency
from simulator.model.limits import TOKENS_PER_STEP
from simulator.model.memory import DoesNotFitError, plan_memory
from simulator.model.parallelism import ParallelismError
from simulator.model.step import StepOps
from simulator.scenario import Transfer
from simulator.steady_state.arrays import Place
from simulator.steady_state.closed_loop import closed_loop
from simulator.steady_state.cluster import ClusterArrays, PoolArrays
from simulator.steady_state.parameters import EngineParameters
from simulator.steady_state.policies import batching_of
from simulator.steady_state.stations import DemandArrays, HandoverArrays, KvArrays
from simulator.steady_state.step_table import Batching, EngineSteps, StepSeconds, StepTable, price
from simulator.steady_state.traffic import TrafficSample

# Share of the stated concurrency that is under way, X (TTFT + (O-1) TPOT) / C: ramp-up and drain take the rest (medians
# of published rows by form). Pools alone are measured while they are full.
IN_FLIGHT = {"colocated": 0.975, "apart": 0.955}
GENERATIONS = 5.5  # requests that a client has sent, in the mean over a benchmark of ten each
FIRST_WAVE = 0.1  # share of the requests that start together, of ten each
# Uniform lengths, in the middles of five equal parts; prompts and outputs apart.
PARTS = np.linspace(-0.8, 0.8, 5)
# Published configurations fit their stated concurrency with little to spare, so room is counted at its most.
MOST_FILLED = 0.95  # share of device memory; assumed: the most that engines are set to
SMALL_STEP = 2048  # tokens; assumed: rows of the step whose working memory is kept free
TO_SPARE = 1.02  # of the concurrency; assumed: decode batches are priced a little beyond what can be in flight
MOST_HELD = 1.5  # times what KV holds of whole requests: those that run have not got all of their output (assumed)
ENDLESS = 1e18  # bytes or prompts, in place of an infinite room
MOST_GENERATED = 2**20  # sequences; beyond what any instance holds


@dataclass(frozen=True)
class PricedPoint:
    """One point with the steps of its pools. kind: points of one kind are asked together."""

    point: Point
    hardware: HardwareProfile
    kind: tuple[str, str]  # form or phase, policy
    traffic: TrafficSample
    entry: EngineSteps
    decode: EngineSteps | None
    entry_kv: tuple[float, float, float]
    decode_kv: tuple[float, float, float]
    sequences: tuple[float, float]  # at once, of an entry and of a decode instance
    handover: tuple[float, ...]


def priced_point(point: Point) -> PricedPoint:
    """Raises Unpredictable."""
    try:
        hardware = hardware_of(point.gpu)
        kernels = kernel_profile(point.gpu, point.engine)
        prefill = engine_of(point, point.prefill, hardware, 0)
        decode = engine_of(point, point.decode, hardware, point.drafts)
    except (CatalogError, UnknownModel, ParallelismError) as error:
        raise Unpredictable(str(error)) from None
    apart = point.disaggregated and point.phase == "e2e"
    policy = batching_of(family_of(point.engine))
    lengths = (point.prompt, point.output, point.spread)
    clients = point.concurrency if math.isfinite(point.concurrency) else MOST_GENERATED
    entry_kv, decode_kv = _kv(prefill), _kv(decode)
    entry_engine = prefill if apart or point.phase == "prefill" else decode
    most = (
        _most(point, point.prefill, entry_engine, clients, entry_kv if apart else decode_kv),
        _most(point, point.decode, decode, clients, decode_kv),
    )
    budget = round(point.prefill_chunk or point.token_budget or TOKENS_PER_STEP)
    form = "apart" if apart else "colocated" if point.phase == "e2e" else point.phase
    if apart:
        entry = _steps(prefill, kernels, lengths, budget, "chunked", 1.0, False, True)
        second = _steps(decode, kernels, lengths, budget, "chunked", most[1], True, False)
    else:
        entry = _steps(
            entry_engine, kernels, lengths, budget, policy, most[0],
            point.phase != "prefill", point.phase != "decode",
        )  # fmt: skip
        second = None
    mixes = "apart" if apart else "mixes" if policy != "prefill_first" else "turns"
    return PricedPoint(
        point, hardware, (form, mixes), _traffic(*lengths), entry, second, entry_kv if apart else decode_kv, decode_kv,
        most, _handover(point, prefill, decode, entry_kv) if apart else (),
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _traffic(prompt: float, output: float, spread: float) -> TrafficSample:
    lengths = 1 + spread * PARTS
    prompts, outputs = np.meshgrid(np.maximum(1.0, prompt * lengths), np.maximum(1.0, output * lengths))
    return TrafficSample.of(prompts.ravel(), outputs.ravel())


@lru_cache(maxsize=16384)
def _steps(
    engine: StepLatency,
    kernels: HardwareProfile,
    lengths: tuple[float, float, float],
    budget: int,
    policy: Batching,
    most: float,
    decodes: bool,
    prefills: bool,
) -> EngineSteps:
    ops = StepOps(engine.model, kernels, engine.parallelism, engine.draft_tokens)
    return price(ops, _traffic(*lengths), budget, policy, most, decodes=decodes, prefills=prefills)


def _kv(engine: StepLatency) -> tuple[float, float, float]:
    """Room of a rank, and what a token and a sequence take of it; endless where the plan says that the measured set-up
    does not fit at all (a stack may fill more memory than assumed). [B]"""
    part = engine.hardware
    filled = replace(part, efficiency=part.efficiency.model_copy(update={"memory_utilisation": MOST_FILLED}))
    try:
        plan = plan_memory(engine.model, filled, engine.parallelism, SMALL_STEP, engine.draft_tokens)
    except DoesNotFitError:
        return math.inf, 1.0, 0.0
    return plan.kv_capacity_bytes, plan.kv_bytes_per_token, plan.kv_bytes_per_sequence


def _most(
    point: Point, worker: WorkerLayout, engine: StepLatency, clients: float, kv: tuple[float, float, float]
) -> float:
    """Sequences that an instance may run at once, in powers of 2 where it is only what can be: few tables do then."""
    ranks = engine.parallelism.dp
    stated = min(point.most_running or math.inf, (point.most_running_of_rank or math.inf) * ranks)
    if math.isfinite(stated):
        return stated
    room, token, sequence = kv
    held = room / (sequence + token * (point.prompt + point.output)) * ranks if math.isfinite(room) else math.inf
    return float(2 ** math.ceil(math.log2(max(2.0, min(clients / worker.count * TO_SPARE, held * MOST_HELD)))))


def _handover(
    point: Point, prefill: StepLatency, decode: StepLatency, prefill_kv: tuple[float, float, float]
) -> tuple[float, ...]:
    keys = Transfer()
    size = transfer_bytes(prefill.model, round(point.prompt)) + keys.half_rate_bytes
    rates = [
        keys.achieved * keys.bandwidth(engine.hardware) * engine.parallelism.gpus / engine.parallelism.dp
        for engine in (prefill, decode)
    ]
    room, token, sequence = prefill_kv
    held = room / (sequence + token * point.prompt) * prefill.parallelism.dp
    return keys.handshake_s, size / rates[0], size / rates[1], 0.0, float(len(prefill.model.layers)), min(held, ENDLESS)


@dataclass(frozen=True)
class _Kind:
    """Points that are asked together: their places, and their clusters but for step times."""

    rows: Index
    form: str
    entry: StepTable
    decode: StepTable | None
    points: tuple[PricedPoint, ...]

    @classmethod
    def of(cls, rows: Sequence[int], points: Sequence[PricedPoint]) -> _Kind:
        second = [p.decode for p in points if p.decode is not None]
        return cls(
            np.array(rows, dtype=np.intp),
            points[0].kind[0],
            StepTable.of([p.entry for p in points]),
            StepTable.of(second) if second else None,
            tuple(points),
        )


@dataclass(frozen=True)
class Measurable:
    """What a benchmark of each point would show, [points, draws]. rate: requests/s of the cluster."""

    rate: Floats
    tpot_s: Floats
    ttft_s: Floats
    median_ttft_s: Floats

    def metrics(self, of: Equilibria) -> dict[str, Floats]:
        """Every metric of a points file; output and input rates over all accelerators, which are those of a pool where
        it is measured alone (see `per_pool`). The median TTFT stands beside a mean."""
        prompt, output = of.column("prompt"), of.column("output")
        gpus = _column([_gpus(p.point) for p in of.points])
        return {
            "total_tok_s_per_gpu": self.rate * (prompt + output) / gpus,
            "output_tok_s_per_gpu": self.rate * output / gpus,
            "input_tok_s_per_gpu": self.rate * prompt / gpus,
            "tok_s_per_user": 1 / self.tpot_s,
            "tpot_ms": self.tpot_s * 1e3,
            "ttft_ms": self.ttft_s * 1e3,
            "median_ttft_ms": self.median_ttft_s * 1e3,
        }

    def per_pool(self, of: Equilibria) -> dict[str, Floats]:
        """Output tokens per decode accelerator and input tokens per prefill accelerator."""
        decode, prefill = (
            _column([worker.count * worker.gpus for worker in workers])
            for workers in ([p.point.decode for p in of.points], [p.point.prefill for p in of.points])
        )
        return {
            "output_tok_s_per_gpu": self.rate * of.column("output") / decode,
            "input_tok_s_per_gpu": self.rate * of.column("prompt") / prefill,
        }


def _column(values: Sequence[float]) -> Floats:
    return np.array(values, dtype=float)[:, None]


def _gpus(point: Point) -> int:
    if point.disaggregated and point.phase == "prefill":
        return point.prefill.count * point.prefill.gpus
    if point.disaggregated and point.phase == "decode":
        return point.decode.count * point.decode.gpus
    return point.gpus


class Equilibria:
    """Many points at once."""

    def __init__(self, points: Sequence[PricedPoint]) -> None:
        self.points = tuple(points)
        kinds: dict[tuple[str, str], list[int]] = {}
        for i, one in enumerate(points):
            kinds.setdefault(one.kind, []).append(i)
        self._kinds = [_Kind.of(rows, [points[i] for i in rows]) for rows in kinds.values()]
        self.age = np.array([p.point.age for p in points])

    def some(self, rows: Index) -> Equilibria:
        return Equilibria([self.points[i] for i in rows])

    def column(self, name: str) -> Floats:
        """[points, 1] of a field of the points."""
        return _column([getattr(p.point, name) for p in self.points])

    def seen(self, given: Given) -> Measurable:
        """given: parameters, [points, draws] each."""
        draws = given.draws
        out = [np.empty((len(self.points), draws)) for _ in range(4)]
        for kind in self._kinds:
            found = _answered(kind, given.of(kind.rows, self.age))
            for column, values in zip(out, found, strict=True):
                column[kind.rows] = values
        mean = np.array([p.point.mean_ttft for p in self.points])[:, None]
        return Measurable(out[0], out[1], np.where(mean, out[3], out[2]), out[2])


def _answered(kind: _Kind, given: tuple[EngineParameters, dict[str, Floats]]) -> tuple[Floats, Floats, Floats, Floats]:
    """Rate, TPOT, median TTFT and mean TTFT."""
    engine, value = given
    points = kind.points

    drafts = _column([float(p.point.drafts) for p in points])
    accepted = tokens_per_step(value["acceptance"], drafts)
    demand = DemandArrays.of([p.traffic for p in points])
    in_flight = IN_FLIGHT.get(kind.form, 1.0)
    clients = _column([min(in_flight * p.point.concurrency, MOST_GENERATED) for p in points])
    entry = kind.entry.seconds(engine)
    workers = _column([p.point.prefill.count if kind.form == "apart" else p.point.decode.count for p in points])
    if kind.form == "decode":
        most = _column([p.sequences[1] for p in points])
        return _decoding(
            entry,
            clients,
            workers,
            most,
            accepted,
            _column([p.point.output for p in points]),
            engine.request_overhead_s,
        )
    if kind.form == "prefill":
        pool = _column([p.point.prefill.count for p in points])
        return _prefilling(entry, clients, pool, engine.request_overhead_s)
    said = _column([p.point.most_running is not None or p.point.most_running_of_rank is not None for p in points])
    decoding = kind.entry if kind.decode is None else kind.decode
    ranks = _column([float(engine.ranks) for engine in decoding.engines])
    most = np.minimum(_column([p.sequences[1] for p in points]), np.where(said > 0, math.inf, value["running"] * ranks))
    first = PoolArrays(entry, workers, most, _room([p.entry_kv for p in points]))
    second = moved = None
    if kind.decode is not None:
        second = PoolArrays(
            kind.decode.seconds(engine), _column([p.point.decode.count for p in points]),
            most, _room([p.decode_kv for p in points]),
        )  # fmt: skip
        moved = HandoverArrays(*(_column(list(values)) for values in zip(*(p.handover for p in points), strict=True)))
    cluster = ClusterArrays(
        first, demand, accepted, engine.request_overhead_s, second, moved, "prefill" if second is None else "decode"
    )
    found = closed_loop(cluster, clients, FIRST_WAVE, GENERATIONS)
    # The first wave meets for the first time the batch sizes for which kernels and graphs are kept, one a doubling.
    warm_up = FIRST_WAVE * np.log2(1.0 + np.maximum(1.0, clients / workers)) * value["warm_up_s"]
    return found.rate, found.tpot_s, found.ttft_s, found.mean_ttft_s + warm_up


def _room(kv: Sequence[tuple[float, float, float]]) -> KvArrays:
    room, token, sequence = (np.array(values, dtype=float)[:, None] for values in zip(*kv, strict=True))
    return KvArrays(np.minimum(room, ENDLESS), token, sequence)


def _decoding(
    steps: StepSeconds,
    clients: Floats,
    workers: Floats,
    most: Floats,
    accepted: Floats,
    output: Floats,
    overhead_s: Floats,
) -> tuple[Floats, Floats, Floats, Floats]:
    """A decode pool whose requests are all there: no prompt ever."""
    n = np.minimum(clients / workers, most)
    step_s = Place.on(steps.batches, n + 0 * steps.decode_s[..., 0]).of(steps.decode_s)
    token_s = step_s / accepted
    first = overhead_s + step_s
    return n * workers / (token_s * output), token_s, first, first


def _prefilling(
    steps: StepSeconds, clients: Floats, workers: Floats, overhead_s: Floats
) -> tuple[Floats, Floats, Floats, Floats]:
    """A prefill pool alone: a lone prompt for one client, full steps for many, who wait for half of those before."""
    lone = steps.lone_s.mean(axis=-1)[:, :, 0]
    full = steps.full_s[:, :, 0]
    rate = np.minimum(workers / full, clients / (lone + overhead_s))
    first = overhead_s + lone + np.maximum(0.0, clients / workers - 1) * full / 2
    return rate, full, first, first
