"""Engines of a point's workers: hardware, cut and model as a row names them."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from calibration.serving.layouts import WorkerLayout
from calibration.serving.points import Point, Unpredictable
from calibration.serving.served_model import model_of, variant
from hw_profiles.catalog import load
from hw_profiles.profile import HardwareProfile
from hw_profiles.units import human_bytes
from simulator.model.architecture import ModelSpec
from simulator.model.latency import StepLatency
from simulator.model.memory import weight_bytes_per_gpu
from simulator.model.parallelism import Parallelism
from simulator.model.sharding import Cut


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
    layers = model_of(point.model).layers
    # Where attention cannot be cut so, printed sizes such as TP12 are of data-parallel ranks.
    if any(layer.attention.heads % parallelism.tp for layer in layers):
        parallelism = replace(parallelism, tp=1, dp=parallelism.tp)
    model = variant(point.model, point.precision, point.engine, hardware, parallelism.ep)
    if drafts and model.draft is None:
        raise Unpredictable(f"drafts by a head of which nothing is known: the preset of {point.model} has none")
    _check_weights(model, hardware, parallelism)
    return _latency(model, hardware, parallelism, drafts)


def _check_weights(model: ModelSpec, hardware: HardwareProfile, parallelism: Parallelism) -> None:
    """Refuse what no engine could have run: weights alone larger than the accelerator's memory."""
    weights = weight_bytes_per_gpu(model, Cut.of(parallelism, hardware))
    if weights > hardware.usable_memory_bytes:
        raise Unpredictable(
            f"{model.name} under {parallelism} has {human_bytes(weights)} of weights on each {hardware.name}, which "
            f"offers {human_bytes(hardware.usable_memory_bytes)}: check model, precision and layout of this point"
        )


@lru_cache(maxsize=4096)
def _latency(model: ModelSpec, hardware: HardwareProfile, parallelism: Parallelism, drafts: int) -> StepLatency:
    return StepLatency(model, hardware, parallelism, drafts)
