"""Steps that a point's equilibrium needs, as ops: decode at one or several batch sizes, prompts alone and packed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from calibration.validation.points import Point, Unpredictable, Worker
from calibration.validation.variants import UnknownModel, preset_of, variant
from hw_profiles.catalog import load
from hw_profiles.loading import CatalogError
from hw_profiles.profile import HardwareProfile
from simulator.model.architecture import ModelSpec
from simulator.model.latency import StepLatency
from simulator.model.memory import DoesNotFitError, plan_memory
from simulator.model.ops import Op
from simulator.model.parallelism import Parallelism, ParallelismError
from simulator.model.presets import load_model
from simulator.model.step import Chunk, DecodeLoad

BUDGET = 8192  # prompt tokens of a packed prefill step, per attention rank
IN_FLIGHT = 0.975  # X (TTFT + (O-1) TPOT) / C measured over colocated rows: ramp-up and drain
# Published configurations fit their stated concurrency with little to spare, so room is counted at its most.
MOST_FILLED = 0.95  # of device memory
SMALL_STEP = 2048  # tokens of working memory
ACCEPTANCE = 0.68  # of a draft, in the token budget
GRID = 7  # batch sizes at which a disaggregated decode pool is priced


@dataclass(frozen=True)
class PointSteps:
    """What `balance` needs of one point. Ops leave the host's time per step out."""

    point: Point
    hardware: HardwareProfile
    batches: tuple[float, ...]  # sequences on one decode instance
    decode: tuple[tuple[Op, ...], ...]  # one step at each of `batches`
    own: tuple[tuple[Op, ...], ...]  # steps of a prompt alone on an instance
    packed: tuple[tuple[Op, ...], ...]  # steps of `packed_prompts` prompts on an instance
    packed_prompts: int
    limit: float  # sequences whose KV fits on a decode instance
    prefill_ranks: int = field(default=1)


def steps_of(point: Point) -> PointSteps:
    """Raises Unpredictable."""
    try:
        hardware = hardware_of(point.gpu)
        prefill = _engine(point, point.prefill, hardware, 0)
        decode = _engine(point, point.decode, hardware, point.drafts)
    except (CatalogError, UnknownModel, ParallelismError) as error:
        raise Unpredictable(str(error)) from None
    limit = min(_limit(point, decode), _budget_limit(point, decode))
    if point.disaggregated and point.phase == "e2e":
        most = max(1.0, min(point.concurrency / point.decode.count * 1.02, limit))
        batches = tuple(np.unique(np.round(np.geomspace(1, most, GRID), 3)).tolist())
    elif point.phase == "decode":
        batches = (max(1.0, point.concurrency / point.decode.count),)
    else:
        batches = (max(1.0, min(IN_FLIGHT * point.concurrency / point.decode.count, limit)),)
    context = point.prompt + point.output / 2
    ranks = prefill.parallelism.dp
    per_rank = max(1, int(BUDGET // point.prompt))
    if not point.disaggregated:  # no more prompts at once than there are requests
        per_rank = max(1, min(per_rank, math.ceil(batches[0] / ranks)))
    return PointSteps(
        point,
        hardware,
        batches,
        tuple(_ops(decode, [], _load(decode, batch, context), None) for batch in batches),
        _prompt(prefill, point.prompt, 1, 1),
        _prompt(prefill, point.prompt, per_rank, ranks),
        per_rank * ranks,
        limit,
        ranks,
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
    accepted = (1 - ACCEPTANCE ** (drafts + 1)) / (1 - ACCEPTANCE)
    each = 1 + drafts + accepted * point.prompt / point.output
    return max(1.0, point.token_budget / each * engine.parallelism.dp)


def _load(engine: StepLatency, batch: float, context: float) -> DecodeLoad:
    """`batch` sequences over the attention ranks; the busiest has half a standard deviation more than the mean."""
    ranks = engine.parallelism.dp
    mean = batch / ranks
    busiest = max(1, round(mean + 0.5 * math.sqrt(mean))) if ranks > 1 else max(1, round(batch))
    capped = tuple(round(busiest * min(context, cap)) for cap in engine.caps)
    return DecodeLoad(busiest, round(busiest * context), capped, max(1, round(batch)))


def _prompt(engine: StepLatency, prompt: float, together: int, ranks: int) -> tuple[tuple[Op, ...], ...]:
    """Steps that prefill `together` prompts on each of `ranks` attention ranks."""
    length = max(1, round(prompt))
    if length <= 2 * BUDGET:
        chunks = [[Chunk(length, 0)] * together]
    else:
        chunks = [[Chunk(min(BUDGET, length - past), past)] for past in range(0, length, BUDGET)]
    return tuple(_ops(engine, step, None, sum(c.new for c in step) * ranks) for step in chunks)


def _ops(engine: StepLatency, chunks: Sequence[Chunk], load: DecodeLoad | None, total: int | None) -> tuple[Op, ...]:
    load = load or DecodeLoad(0, 0, tuple(0 for _ in engine.caps), 0)
    return _cached_ops(engine, tuple(chunks), load, total)


@lru_cache(maxsize=65536)
def _cached_ops(engine: StepLatency, chunks: tuple[Chunk, ...], load: DecodeLoad, total: int | None) -> tuple[Op, ...]:
    priced = engine.breakdown(chunks, load, total)
    return tuple(one.op for one in priced if one.bound != "host")
