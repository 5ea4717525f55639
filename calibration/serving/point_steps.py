"""Steps that a point's equilibrium needs, as ops: decode at one or several batch sizes, and prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from calibration.serving.points import Point, Unpredictable, Worker
from calibration.serving.prompts import (
    Prompts,
    accepted_tokens,
    arriving,
    most_at_once,
    ops_of,
    shares_steps,
    together,
)
from calibration.serving.served_model import UnknownModel, preset_of, variant
from hw_profiles.catalog import load
from hw_profiles.loading import CatalogError
from hw_profiles.profile import HardwareProfile
from simulator.model.architecture import ModelSpec
from simulator.model.latency import StepLatency
from simulator.model.memory import DoesNotFitError, plan_memory
from simulator.model.ops import Op
from simulator.model.parallelism import Parallelism, ParallelismError
from simulator.model.presets import load_model
from simulator.model.step import DecodeLoad

IN_FLIGHT = 0.975  # X (TTFT + (O-1) TPOT) / C measured over colocated rows: ramp-up and drain
# Published configurations fit their stated concurrency with little to spare, so room is counted at its most.
MOST_FILLED = 0.95  # of device memory
SMALL_STEP = 2048  # tokens of working memory
GRID = 7  # batch sizes at which a disaggregated decode pool is priced


@dataclass(frozen=True)
class PointSteps:
    """What `balance` needs of one point. Ops leave the host's time per step out."""

    point: Point
    hardware: HardwareProfile
    batches: tuple[float, ...]  # sequences on one decode instance
    decode: tuple[tuple[Op, ...], ...]  # one step at each of `batches`
    own: Prompts  # one prompt, as its request sees it
    arriving: Prompts  # as many as come in the time of a step
    packed: Prompts  # as many as a step takes on every attention rank
    limit: float  # sequences that a decode instance can run at once
    kernels: float  # that a decode step launches


def steps_of(point: Point) -> PointSteps:
    """Raises Unpredictable."""
    try:
        hardware = hardware_of(point.gpu)
        prefill = _engine(point, point.prefill, hardware, 0)
        decode = _engine(point, point.decode, hardware, point.drafts)
    except (CatalogError, UnknownModel, ParallelismError) as error:
        raise Unpredictable(str(error)) from None
    limit = min(_limit(point, decode), _budget_limit(point, decode), _stated_limit(point, decode))
    if point.disaggregated and point.phase == "e2e":
        most = max(1.0, min(point.concurrency / point.decode.count * 1.02, limit))
        batches = tuple(np.unique(np.round(np.geomspace(1, most, GRID), 3)).tolist())
    elif point.phase == "decode":
        batches = (max(1.0, point.concurrency / point.decode.count),)
    else:
        batches = (max(1.0, min(IN_FLIGHT * point.concurrency / point.decode.count, limit)),)
    context = point.prompt + point.output / 2
    loads = [_load(decode, batch, context) for batch in batches]
    beside = loads[0] if shares_steps(point) else None
    engine = decode if beside else prefill
    running = math.inf if point.disaggregated else batches[0]
    packed = together(engine, point, most_at_once(engine, point, running), beside)
    return PointSteps(
        point,
        hardware,
        batches,
        tuple(ops_of(decode, [], load, None) for load in loads),
        together(engine, point, 1, beside).as_seen(),
        packed if point.disaggregated else arriving(engine, point, running, beside),
        packed,
        limit,
        decode.kernels,
    )


@lru_cache(maxsize=64)
def hardware_of(gpu: str) -> HardwareProfile:
    """Catalogue profile of a published name such as 'B200' or 'H100-SXM'."""
    return load(gpu)


def parallelism_of(worker: Worker) -> Parallelism:
    ep = worker.gpus if worker.expert_parallel else 1
    return Parallelism(dp=worker.gpus, ep=ep) if worker.data_parallel else Parallelism(tp=worker.gpus, ep=ep)


def _engine(point: Point, worker: Worker, hardware: HardwareProfile, drafts: int) -> StepLatency:
    parallelism = parallelism_of(worker)
    heads = load_model(preset_of(point.model)).layers[0].attention.heads
    if heads % parallelism.tp:  # attention cannot be cut so: printed sizes such as TP12 are of data-parallel ranks
        parallelism = Parallelism(dp=worker.gpus, ep=parallelism.ep)
    model = variant(point.model, point.precision, point.engine, hardware, parallelism.ep)
    return _latency(model, hardware, parallelism, drafts if model.draft else 0)


@lru_cache(maxsize=4096)
def _latency(model: ModelSpec, hardware: HardwareProfile, parallelism: Parallelism, drafts: int) -> StepLatency:
    return StepLatency(model, hardware, parallelism, drafts)


def _limit(point: Point, engine: StepLatency) -> float:
    """Sequences whose KV fits; no limit where the plan says that the measured set-up does not fit at all (a stack
    may fill more memory than assumed)."""
    part = engine.hardware
    filled = replace(part, efficiency=part.efficiency.model_copy(update={"memory_utilisation": MOST_FILLED}))
    try:
        plan = plan_memory(engine.model, filled, engine.parallelism, SMALL_STEP, engine.draft_tokens)
    except DoesNotFitError:
        return math.inf
    return float(max(1, plan.max_sequences(int(point.prompt + point.output))) * engine.parallelism.dp)


def _budget_limit(point: Point, engine: StepLatency) -> float:
    """Running sequences whose rows and whose successors' prompts fill the token budget of every step.

    n sequences verify n (1 + k) rows and end n A / O requests a step, whose successors bring I tokens each.
    """
    if point.token_budget is None or point.disaggregated:
        return math.inf
    drafts = engine.draft_tokens
    each = 1 + drafts + accepted_tokens(drafts) * point.prompt / point.output
    return max(1.0, point.token_budget / each * engine.parallelism.dp)


def _stated_limit(point: Point, engine: StepLatency) -> float:
    """Sequences that the row says an instance runs at once."""
    ranks = engine.parallelism.dp
    return min(point.most_running or math.inf, (point.most_running_of_rank or math.inf) * ranks)


def _load(engine: StepLatency, batch: float, context: float) -> DecodeLoad:
    """`batch` sequences over the attention ranks; the busiest has half a standard deviation more than the mean."""
    ranks = engine.parallelism.dp
    mean = batch / ranks
    busiest = max(1, round(mean + 0.5 * math.sqrt(mean))) if ranks > 1 else max(1, round(batch))
    return DecodeLoad.alike(busiest, context, engine.caps, max(1, round(batch)))
