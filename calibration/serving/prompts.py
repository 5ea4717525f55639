"""Steps that prefill the prompts of a point: how many share a step, in how many chunks, and beside which decode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from calibration.serving.engine_parameters import PARAMETERS, family_of
from calibration.serving.points import Point
from simulator.model.acceptance import tokens_per_step
from simulator.model.latency import StepLatency
from simulator.model.limits import TOKENS_PER_STEP
from simulator.model.ops import Op
from simulator.model.step import Chunk, DecodeLoad

FEWEST_CHUNK = 16  # prompt tokens of a step whose token budget decode has used up (assumed)
# Times TOKENS_PER_STEP, to which a prompt still goes in one step where the row does not say. (assumed)
UNSAID_STRETCH = 2
# Chance that a draft token is accepted, where the number of requests that end in a step is needed before any fit: as
# `engine_parameters` assumes it.
ACCEPTANCE = next(p.assumed for p in PARAMETERS if p.name == "acceptance")
REMEMBERED = 65536  # steps, of some thousand points (assumed)
MIXING = ("vllm", "trtllm")  # families whose schedulers put prompts into the steps that decode


def mean_of_any(mean: float) -> float:
    """Mean of a Poisson number where it is not zero: a / (1 - exp(-a)).

    mean: a, of all, zeros included; above 0.

    >>> round(mean_of_any(1.0), 6)
    1.581977
    """
    return mean / -math.expm1(-mean)


@dataclass(frozen=True)
class Prompts:
    """Steps that prefill `prompts` prompts, as (weight, ops).

    A step that prompts share with decode has weight 1 and the decode step whose place it takes -1: together they are
    what the prompts add. extra: steps beyond those of decode, each with the host's time.
    """

    steps: tuple[tuple[float, tuple[Op, ...]], ...]
    prompts: float
    extra: float

    def as_seen(self) -> Prompts:
        """What a request waits for until its prompt is done: whole steps, decode within them included."""
        whole = tuple(step for step in self.steps if step[0] > 0)
        return replace(self, steps=whole, extra=sum(weight for weight, _ in whole))

    def mixed(self, other: Prompts, share: float) -> Prompts:
        """A mean of both, `share` of it the other."""
        steps = tuple((weight * (1 - share), ops) for weight, ops in self.steps)
        steps += tuple((weight * share, ops) for weight, ops in other.steps)
        return Prompts(
            steps,
            self.prompts * (1 - share) + other.prompts * share,
            self.extra * (1 - share) + other.extra * share,
        )


def shares_steps(point: Point) -> bool:
    """Whether prompts are prefilled in the steps that decode, as the schedulers of vLLM and TensorRT-LLM do; those of
    SGLang and ATOM run prompts in steps of their own."""
    return not point.disaggregated and point.phase == "e2e" and family_of(point.engine) in MIXING


def accepted_tokens(drafts: int) -> float:
    """Tokens of a step with `drafts` drafts."""
    return tokens_per_step(ACCEPTANCE, drafts)


def most_at_once(engine: StepLatency, point: Point, running: float = math.inf) -> int:
    """Prompts that one step takes over all attention ranks; no more than there are requests."""
    most = max(1, int(_chunk(point, 0) // point.prompt)) * engine.parallelism.dp
    return min(most, math.ceil(running)) if math.isfinite(running) else most


def arriving(engine: StepLatency, point: Point, running: float, beside: DecodeLoad | None) -> Prompts:
    """Prompts that come while `running` sequences take one step.

    mu = B A / O sequences end in a step and as many prompts come; a step with any has mu / (1 - exp(-mu)) in the mean.
    """
    coming = running * accepted_tokens(point.drafts) / point.output
    mean = min(float(most_at_once(engine, point, running)), mean_of_any(coming))
    few = together(engine, point, math.floor(mean), beside)
    if mean == math.floor(mean):
        return few
    return few.mixed(together(engine, point, math.floor(mean) + 1, beside), mean - math.floor(mean))


def together(engine: StepLatency, point: Point, prompts: int, beside: DecodeLoad | None) -> Prompts:
    """`prompts` over the attention ranks in as few steps as the chunk allows. beside: decode of these steps."""
    length, ranks = max(1, round(point.prompt)), engine.parallelism.dp
    limit = _chunk(point, (beside.sequences if beside else 0) * (1 + point.drafts))
    said = point.prefill_chunk is not None or point.token_budget is not None
    if length <= (limit if said else UNSAID_STRETCH * limit):
        steps = [[Chunk(length, 0)] * -(-prompts // ranks)]
    else:
        prompts = min(prompts, ranks)
        steps = [[Chunk(min(limit, length - past), past)] for past in range(0, length, limit)]
    priced: list[tuple[float, tuple[Op, ...]]] = []
    for chunks in steps:
        ops = ops_of(engine, chunks, beside, prompts * chunks[0].new)
        priced.append((drained(engine.parallelism.pp, len(steps)), ops))
        if beside:
            priced.append((-1.0, ops_of(engine, [], beside, None)))
    return Prompts(tuple(priced), float(prompts), 0.0 if beside else float(len(steps)))


def _chunk(point: Point, rows: int) -> int:
    """Prompt tokens that one step of an attention rank takes beside `rows` of decode."""
    chunk = point.prefill_chunk or TOKENS_PER_STEP
    if point.token_budget is not None:
        chunk = max(FEWEST_CHUNK, min(chunk, point.token_budget - rows))
    return round(chunk)


def drained(stages: int, steps: int) -> float:
    """What the stages of a pipeline take for n steps in a row over p stage times a step: with p microbatches in each
    they are done after n p + p - 1, so (n p + p - 1) / (n p).

    >>> drained(1, 5), drained(2, 1), drained(2, 100)
    (1.0, 1.5, 1.005)
    """
    return (steps * stages + stages - 1) / (steps * stages)


def ops_of(engine: StepLatency, chunks: Sequence[Chunk], load: DecodeLoad | None, total: int | None) -> tuple[Op, ...]:
    """Ops of a step without the host's time. total: prompt tokens over all ranks."""
    load = load or DecodeLoad(0, 0, tuple(0 for _ in engine.caps), 0)
    return _cached_ops(engine, tuple(chunks), load, total)


@lru_cache(maxsize=REMEMBERED)
def _cached_ops(engine: StepLatency, chunks: tuple[Chunk, ...], load: DecodeLoad, total: int | None) -> tuple[Op, ...]:
    priced = engine.breakdown(chunks, load, total)
    return tuple(one.op for one in priced if one.bound != "host")
