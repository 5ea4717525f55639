"""Equilibrium of a closed loop at fixed concurrency: many points at once, as arrays.

B sequences, O output tokens each, T prefill seconds that one prompt takes from the instance, t(B) seconds of a step:
  colocated      every request stalls all others while its prompt is prefilled:
                 cycle = B T + O t(B) / A,  X = B / cycle
  disaggregated  N decoding: X = N / (O t(N/workers) / A); those in prefill hold X (T0 + own + wait);
                 N is where both together are the concurrency
  wait           of M/D/1 where prompts ride in decode steps, else of steps that take all prompts that came during
                 the one before (the mean, or the median where TTFT is one); or the share of the requests that arrive
                 together (`bunching`) if that is longer; a mean over all requests has a first wave, when all of
                 them arrive at once and the engine warms up
A is tokens per step with drafts, (1 - p^(k+1)) / (1 - p). T lies between that of prompts as they arrive and that of
steps full of them, as a geometric mean with the share `gathering`, times `interruption` where decode has to stop for
it; a pool of its own has full steps where it counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from calibration.arrays import Index
from calibration.serving.engine_parameters import values
from calibration.serving.point_steps import GRID, IN_FLIGHT, PointSteps
from calibration.serving.points import PHASES
from calibration.serving.step_table import LaunchTable, table_of
from calibration.serving.waits import BUSIEST, waits, waits_of_steps
from hw_profiles.profile import HardwareProfile
from simulator.model.acceptance import tokens_per_step
from simulator.model.arrays import Floats

# Share of the stated concurrency that is in flight, X (TTFT + (O-1) TPOT) / C: the median of disaggregated rows of the
# published points; `IN_FLIGHT` is that of colocated ones.
IN_FLIGHT_DISAGGREGATED = 0.955
HALVINGS = 40  # of an interval of sequences, to 1e-12 of it
FEWEST_RUNNING = 1e-3  # sequences with which the search begins, small beside one
FIRST_WAVE = 0.1  # share of the requests that start together: benchmarks send ten for each in flight (assumed)
SHORTEST_S = 1e-6  # that a prompt adds to decode: roofs of launches may hide it (assumed)
SHORTEST_TOKEN_S = 1e-9  # that a token takes where logs are taken of it
LONGEST_FIRST = 0.5  # of a cycle, that the first token of a request takes at most (assumed)
TINY = 1e-12  # against division by nothing


@dataclass(frozen=True)
class Loop:
    """Points ready for `balance`."""

    table: LaunchTable
    batches: Floats  # [points, GRID], padded with the last
    disaggregated: NDArray[np.bool_]
    prompt: Floats
    output: Floats
    concurrency: Floats
    drafts: Floats
    decode_workers: Floats
    prefill_workers: Floats
    decode_gpus: Floats
    prefill_gpus: Floats
    prompts: Floats  # [points, COLUMNS]
    extra: Floats  # [points, COLUMNS] steps beyond those of decode
    phase: Index  # index in PHASES
    decode_ranks: Floats  # attention ranks of a decode worker
    mean_ttft: NDArray[np.bool_]  # TTFT is a mean over all requests
    kernels: Floats  # of a decode step
    age: Floats  # of the software, half-years


def loop_of(steps: Sequence[PointSteps], rates: Sequence[HardwareProfile]) -> Loop:
    """rates: for each point the profile with the kernel rates of its stack."""
    batches = np.array([_padded(s.batches) for s in steps])
    points = [s.point for s in steps]
    return Loop(
        table_of(steps, rates),
        batches,
        np.array([p.disaggregated for p in points]),
        np.array([p.prompt for p in points]),
        np.array([p.output for p in points]),
        np.array([p.concurrency for p in points]),
        np.array([float(p.drafts) for p in points]),
        np.array([float(p.decode.count) for p in points]),
        np.array([float(p.prefill.count) for p in points]),
        np.array([float(p.decode.count * p.decode.gpus) for p in points]),
        np.array([float(p.prefill.count * p.prefill.gpus) for p in points]),
        np.array([[one.prompts for one in (s.own, s.arriving, s.packed)] for s in steps]),
        np.array([[one.extra for one in (s.own, s.arriving, s.packed)] for s in steps]),
        np.array([PHASES.index(p.phase) for p in points]),
        np.array([float(p.decode.gpus if p.decode.data_parallel else 1) for p in points]),
        np.array([p.mean_ttft for p in points]),
        np.array([s.kernels for s in steps]),
        np.array([p.age for p in points]),
    )


def _padded(batches: Sequence[float]) -> list[float]:
    return [*batches, *[batches[-1]] * (GRID - len(batches))]


@dataclass(frozen=True)
class Prediction:
    """Arrays over points. [requests/s over all instances, s, s, s]

    ttft_s: the statistic of the point, a mean with the first wave or the median.
    """

    rate: Floats
    tpot_s: Floats
    ttft_s: Floats
    median_ttft_s: Floats

    def metrics(self, loop: Loop) -> dict[str, Floats]:
        """Every metric of a points file; output and input rates over all accelerators (see `per_pool`), which are those
        of a pool where it is measured alone. The median TTFT stands beside a mean."""
        both = loop.disaggregated & (loop.phase == PHASES.index("e2e"))
        alone = np.where(loop.phase == PHASES.index("prefill"), loop.prefill_gpus, loop.decode_gpus)
        gpus = np.where(both, loop.decode_gpus + loop.prefill_gpus, alone)
        return {
            "total_tok_s_per_gpu": self.rate * (loop.prompt + loop.output) / gpus,
            "output_tok_s_per_gpu": self.rate * loop.output / gpus,
            "input_tok_s_per_gpu": self.rate * loop.prompt / gpus,
            "tok_s_per_user": 1 / self.tpot_s,
            "tpot_ms": self.tpot_s * 1e3,
            "ttft_ms": self.ttft_s * 1e3,
            "median_ttft_ms": self.median_ttft_s * 1e3,
        }

    def per_pool(self, loop: Loop) -> dict[str, Floats]:
        """Output tokens per decode accelerator and input tokens per prefill accelerator."""
        return {
            "output_tok_s_per_gpu": self.rate * loop.output / loop.decode_gpus,
            "input_tok_s_per_gpu": self.rate * loop.prompt / loop.prefill_gpus,
        }


def balance(loop: Loop, theta: Floats) -> Prediction:
    """Equilibrium of every point. theta: [points, parameters] of `engine_parameters`."""
    given = values(theta)
    steps = loop.table.seconds(given)
    p, k = given["acceptance"], loop.drafts
    accepted = tokens_per_step(p, k)
    host = given["kernel_overhead_s"] * loop.kernels
    serial = host / given["renewal"] ** loop.age * np.where(k > 0, given["draft_overhead"], 1.0)
    each = given["sequence_overhead_s"] / loop.decode_ranks
    step = steps[:, :GRID] + serial[:, None] + each[:, None] * loop.batches
    decode = step / accepted[:, None]  # per token, at each batch
    own, arriving, packed = ((steps[:, GRID:] + host[:, None] * loop.extra) / loop.prompts).T
    arriving, packed = np.maximum(arriving, SHORTEST_S), np.maximum(packed, SHORTEST_S)
    taken = arriving * (packed / arriving) ** given["gathering"]
    taken *= np.where(loop.disaggregated, 1.0, given["interruption"])
    together = _colocated(loop, decode[:, 0], step[:, 0], own, taken, given)
    apart = _disaggregated(loop, decode, own, taken, given)
    first = given["request_overhead_s"] + own
    prefill = (loop.prefill_workers / taken, decode[:, 0], first, first)  # the pool alone, always busy
    batch = loop.batches[:, 0] * loop.decode_workers
    generating = (batch / (decode[:, 0] * loop.output), decode[:, 0], first, first)  # no prompt ever
    which = np.where(loop.phase == 0, np.where(loop.disaggregated, 1, 0), loop.phase + 1)
    every = zip(together, apart, prefill, generating, strict=True)
    rate, tpot, median, mean = (np.choose(which, choices) for choices in every)
    return Prediction(rate, tpot, np.where(loop.mean_ttft, mean, median), median)


def _first_wave(loop: Loop, served_s: Floats, ahead: Floats, waited: Floats, warm_up_s: Floats) -> Floats:
    """What the first wave adds to a mean TTFT: all requests in flight arrive at once, and meet for the first time the
    batch sizes for which kernels and graphs are kept, one for each doubling."""
    beyond: Floats = np.maximum(0.0, np.maximum(ahead, 0.0) * served_s / 2 - waited)
    doublings = np.log2(np.maximum(1.0, loop.concurrency))
    return FIRST_WAVE * (beyond + doublings * warm_up_s)


def _colocated(
    loop: Loop, per_token: Floats, step: Floats, own: Floats, taken: Floats, given: dict[str, Floats]
) -> tuple[Floats, Floats, Floats, Floats]:
    running = loop.batches[:, 0]
    output = loop.output
    cycle = running * taken + output * per_token
    rate = running / cycle * loop.decode_workers
    held = IN_FLIGHT * loop.concurrency / loop.decode_workers
    waiting = np.maximum(0.0, held - running) * loop.decode_workers
    ahead = np.minimum(held, running) - 1
    beside = waits(taken, running * taken / cycle, ahead, given["bunching"])
    apart = waits_of_steps(own, taken, loop.prompts[:, -1], running / cycle, ahead, given["bunching"])
    mean, median = (np.where(loop.extra[:, 1] > 0, a, b) for a, b in zip(apart, beside, strict=True))
    alone = given["request_overhead_s"] + own + step / 2
    first = alone + mean
    inside = np.minimum(first, LONGEST_FIRST * cycle)
    tpot = (cycle - inside) / np.maximum(output - 1, 1)
    queued = waiting / rate
    wave = _first_wave(loop, taken, held - 1, mean + step / 2, given["warm_up_s"])
    return rate, tpot, alone + median + queued, first + queued + wave


def _disaggregated(
    loop: Loop, decode: Floats, own: Floats, taken: Floats, given: dict[str, Floats]
) -> tuple[Floats, Floats, Floats, Floats]:
    grid, times = np.log(loop.batches), np.log(np.maximum(decode, SHORTEST_TOKEN_S))
    held = IN_FLIGHT_DISAGGREGATED * loop.concurrency
    rows = np.arange(len(held))
    prefill_workers = np.maximum(loop.prefill_workers, 1)

    def per_token(running: Floats) -> Floats:
        at = np.clip(np.log(np.maximum(running, 1.0)), grid[:, 0], grid[:, -1])
        right = np.clip((grid < at[:, None]).sum(axis=1), 1, GRID - 1)
        low, high = grid[rows, right - 1], grid[rows, right]
        share = np.where(high > low, (at - low) / np.maximum(high - low, TINY), 0.0)
        return np.exp(times[rows, right - 1] * (1 - share) + times[rows, right] * share)

    ahead = held / prefill_workers - 1

    def state(running: Floats) -> tuple[Floats, Floats, Floats, Floats, Floats]:
        token = per_token(running / loop.decode_workers)
        rate = running / (loop.output * token)
        busy = rate * taken / prefill_workers
        each = rate / prefill_workers
        mean, median = waits_of_steps(own, taken, loop.prompts[:, -1], each, ahead, given["bunching"])
        return rate, token, mean, median, busy

    def alone(token: Floats) -> Floats:
        return np.asarray(given["request_overhead_s"] + own + token)

    low, high = np.full_like(held, FEWEST_RUNNING), np.maximum(held, 2 * FEWEST_RUNNING)
    high = np.minimum(high, loop.batches[:, -1] * loop.decode_workers)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        rate, token, mean, _, busy = state(middle)
        over = (middle + rate * (alone(token) + mean) > held) | (busy > BUSIEST)
        high, low = np.where(over, middle, high), np.where(over, low, middle)
    rate, token, mean, median, _ = state(low)
    first = alone(token) + mean
    queued = np.maximum(0.0, held - low - rate * first) / rate
    wave = _first_wave(loop, taken, ahead, mean, given["warm_up_s"])
    return rate, token, alone(token) + median + queued, first + queued + wave


def take(loop: Loop, rows: Index) -> Loop:
    """The points `rows` alone, in that order."""
    arrays = {name: value[rows] for name, value in vars(loop).items() if isinstance(value, np.ndarray)}
    return replace(loop, table=loop.table.take(rows), **arrays)
