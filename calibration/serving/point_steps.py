"""Steps that a point's equilibrium needs, as ops: decode at one or several batch sizes, and prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from calibration.serving.layouts import WorkerLayout
from calibration.serving.points import Point, Unpredictable
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

IN_FLIGHT = 0.975  # share; X (TTFT + (O-1) TPOT) / C, median of colocated rows of published.csv: ramp-up and drain
# Published configurations fit their stated concurrency with little to spare, so room is counted at its most.
MOST_FILLED = 0.95  # share of device memory; assumed: the most that engines are set to
SMALL_STEP = 2048  # tokens; assumed: rows of the step whose working memory is kept free
GRID = 7  # batch sizes at which a disaggregated decode pool is priced; assumed: enough to interpolate between
TO_SPARE = 1.02  # of the concurrency; assumed: decode batches are priced a little beyond what can be in flight
ABOVE_MEAN = 0.5  # standard deviations; assumed: load of the busiest attention rank over the mean


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
        prefill = engine_of(point, point.prefill, hardware, 0)
        decode = engine_of(point, point.decode, hardware, point.drafts)
    except (CatalogError, UnknownModel, ParallelismError) as error:
        raise Unpredictable(str(error)) from None
    limit = min(_limit(point, decode), _budget_limit(point, decode), _stated_limit(point, decode))
    if math.isinf(point.concurrency):
        if math.isinf(limit):
            raise Unpredictable("all requests at once, and how many an instance can hold is not known")
        point = replace(point, concurrency=limit * point.decode.count / IN_FLIGHT)
    if point.disaggregated and point.phase == "e2e":
        most = max(1.0, min(point.concurrency / point.decode.count * TO_SPARE, limit))
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


def parallelism_of(worker: WorkerLayout) -> Parallelism:
    stage = worker.gpus // worker.stages
    ranks = stage // worker.context_ranks
    dp = worker.attention_ranks or (ranks if worker.data_parallel else 1)
    tp = ranks // dp
    ep = stage if worker.expert_parallel else 1
    return Parallelism(tp=tp, dp=dp, ep=ep, pp=worker.stages, cp=worker.context_ranks)


def engine_of(point: Point, worker: WorkerLayout, hardware: HardwareProfile, drafts: int) -> StepLatency:
    parallelism = parallelism_of(worker)
    heads = load_model(preset_of(point.model)).layers[0].attention.heads
    if heads % parallelism.tp:  # attention cannot be cut so: printed sizes such as TP12 are of data-parallel ranks
        parallelism = replace(parallelism, tp=1, dp=parallelism.tp)
    model = variant(point.model, point.precision, point.engine, hardware, parallelism.ep)
    if drafts and model.draft is None:
        raise Unpredictable(f"drafts by a head of which nothing is known: the preset of {point.model} has none")
    return _latency(model, hardware, parallelism, drafts)


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
    busiest = max(1, round(mean + ABOVE_MEAN * math.sqrt(mean))) if ranks > 1 else max(1, round(batch))
    return DecodeLoad.alike(busiest, context, engine.caps, max(1, round(batch)))
