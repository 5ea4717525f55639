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

from calibration.roofline_fit import Array
from calibration.serving.engine_parameters import values
from calibration.serving.point_steps import GRID, PointSteps
from calibration.serving.points import PHASES
from hw_profiles.efficiency import OpClass
from hw_profiles.profile import HardwareProfile
from simulator.model import engine as situations
from simulator.model.ops import Op
from simulator.model.roofline import roof_times

IN_FLIGHT_COLOCATED = 0.975  # measured X (TTFT + (O-1) TPOT) / C, medians
IN_FLIGHT_DISAGGREGATED = 0.955
HALVINGS = 40
FIRST_WAVE = 0.1  # share of the requests that start together: benchmarks send ten for each in flight
BUSIEST = 0.98  # utilisation above which the prefill pool counts as saturated
STEP_ROUNDS = 6  # of the fixed point of a prefill step
SHORTEST_S = 1e-6  # that a prompt adds to decode: roofs of launches may hide it
COLUMNS = 3  # kinds of prompts beside the decode grid: own, arriving, packed
ALL = GRID + COLUMNS

CLASSES = tuple(OpClass)
ATTENTION = [CLASSES.index(c) for c in situations.CORES]
EXPERTS = [CLASSES.index(c) for c in situations.EXPERTS]


def rates_of(given: dict[str, Array]) -> Array:
    """[points, classes, 3] matrix, memory and network rates inside the engine over those of kernels alone."""
    three = np.stack((given["matrix"], given["memory"], given["network"]), axis=1)
    rates = np.repeat(three[:, None, :], len(CLASSES), axis=1)
    rates[:, ATTENTION, :2] *= given["attention"][:, None, None]
    rates[:, EXPERTS, :2] *= given["experts"][:, None, None]
    return rates


@dataclass(frozen=True)
class StepTable:
    """All steps of many points, in seconds under the kernels' own rates.

    Launches with one roof add up (`linear`: compute, memory, network by op class); those with several are kept apart
    for their p-norm.
    """

    latency: Array  # [points, ALL]
    exits: Array  # [points, ALL] collectives that leave the scale-up domain
    linear: Array  # [points, ALL, classes, 3]
    point: NDArray[np.intp]  # of each launch with several roofs
    step: NDArray[np.intp]  # its step: decode steps, then prompts
    op_class: NDArray[np.intp]
    count: Array
    roofs: Array  # [launches, 3]
    exponent: Array

    @property
    def points(self) -> int:
        return len(self.linear)

    def seconds(self, given: dict[str, Array]) -> Array:
        """[points, ALL] seconds of each step, host time left out. given: parameters of `stack`."""
        rates = rates_of(given)
        times = self.roofs / rates[self.point, self.op_class]
        q = self.exponent
        norm = (times ** q[:, None]).sum(axis=1) ** (1 / q)
        mixed = np.bincount(self.step, weights=self.count * norm, minlength=self.points * ALL)
        alone = (self.linear / rates[:, None]).sum(axis=(2, 3)) + self.latency * given["launch"][:, None]
        alone += self.exits * given["exit_latency_s"][:, None]
        return alone + mixed.reshape(self.points, ALL)

    def take(self, rows: NDArray[np.intp]) -> StepTable:
        """The points `rows` alone, in that order."""
        place = np.full(self.points, -1, dtype=np.intp)
        place[rows] = np.arange(len(rows))
        kept = place[self.point] >= 0
        point = place[self.point[kept]]
        return StepTable(
            self.latency[rows], self.exits[rows], self.linear[rows], point,
            point * ALL + self.step[kept] % ALL, self.op_class[kept], self.count[kept],
            self.roofs[kept], self.exponent[kept],
        )  # fmt: skip


@dataclass(frozen=True)
class Loop:
    """Points ready for `balance`."""

    table: StepTable
    batches: Array  # [points, GRID], padded with the last
    disaggregated: NDArray[np.bool_]
    prompt: Array
    output: Array
    concurrency: Array
    drafts: Array
    decode_workers: Array
    prefill_workers: Array
    decode_gpus: Array
    prefill_gpus: Array
    prompts: Array  # [points, COLUMNS]
    extra: Array  # [points, COLUMNS] steps beyond those of decode
    phase: NDArray[np.intp]  # index in PHASES
    decode_ranks: Array  # attention ranks of a decode worker
    mean_ttft: NDArray[np.bool_]  # TTFT is a mean over all requests
    kernels: Array  # of a decode step
    age: Array  # of the software, half-years


def loop_of(steps: Sequence[PointSteps], rates: Sequence[HardwareProfile]) -> Loop:
    """rates: for each point the profile with the kernel rates of its stack."""
    batches = np.array([_padded(s.batches) for s in steps])
    points = [s.point for s in steps]
    return Loop(
        _table(steps, rates),
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
class _Launches:
    """Sums of launches with one roof, and (count, roofs, exponent, class) of the others."""

    latency_s: float
    exits: float
    linear: Array  # [classes, 3]
    mixed: list[tuple[float, ...]]

    @classmethod
    def of(cls, ops: tuple[Op, ...], hardware: HardwareProfile) -> _Launches:
        latency_s = exits = 0.0
        linear = np.zeros((len(CLASSES), 3))
        mixed: dict[tuple[float, ...], float] = {}
        for op in ops:
            times = roof_times(op, hardware)
            roofs = (times.compute_s, times.memory_s, times.network_s)
            latency_s += op.count * times.latency_s
            exits += op.count * op.hops * (op.link == "scale_out")
            place = CLASSES.index(op.op_class)
            if sum(roof > 0 for roof in roofs) > 1:
                key = (*roofs, times.exponent, place)
                mixed[key] = mixed.get(key, 0.0) + op.count
            else:
                linear[place] += op.count * np.array(roofs)
        return cls(latency_s, exits, linear, [(count, *key) for key, count in mixed.items()])


def _table(steps: Sequence[PointSteps], rates: Sequence[HardwareProfile]) -> StepTable:
    latency, exits = np.zeros((len(steps), ALL)), np.zeros((len(steps), ALL))
    linear = np.zeros((len(steps), ALL, len(CLASSES), 3))
    point: list[int] = []
    step: list[int] = []
    rows: list[tuple[float, ...]] = []
    known: dict[tuple[int, int], _Launches] = {}

    def add(index: int, place: int, ops: tuple[Op, ...], weight: float = 1.0) -> None:
        key = (id(ops), id(rates[index]))
        if key not in known:
            known[key] = _Launches.of(ops, rates[index])
        found = known[key]
        latency[index, place] += weight * found.latency_s
        exits[index, place] += weight * found.exits
        linear[index, place] += weight * found.linear
        rows.extend((weight * count, *rest) for count, *rest in found.mixed)
        point.extend([index] * len(found.mixed))
        step.extend([index * ALL + place] * len(found.mixed))

    for index, one in enumerate(steps):
        for place, ops in enumerate(one.decode):
            add(index, place, ops)
        if one.point.disaggregated:
            for place in range(len(one.decode), GRID):  # padding repeats the last batch
                add(index, place, one.decode[-1])
        for column, prompts in enumerate((one.own, one.arriving, one.packed)):
            for weight, ops in prompts.steps:
                add(index, GRID + column, ops, weight)
    data = np.array(rows).reshape(-1, 6)
    return StepTable(
        latency, exits, linear, np.array(point, dtype=np.intp), np.array(step, dtype=np.intp),
        data[:, 5].astype(np.intp), data[:, 0], data[:, 1:4], data[:, 4],
    )  # fmt: skip


@dataclass(frozen=True)
class Prediction:
    """Arrays over points. [requests/s over all instances, s, s, s, s]

    ttft_s: the statistic of the point, a mean with the first wave or the median.
    """

    rate: Array
    tpot_s: Array
    ttft_s: Array
    median_ttft_s: Array
    own_prefill_s: Array

    def metrics(self, loop: Loop) -> dict[str, Array]:
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

    def per_pool(self, loop: Loop) -> dict[str, Array]:
        """Output tokens per decode accelerator and input tokens per prefill accelerator."""
        return {
            "output_tok_s_per_gpu": self.rate * loop.output / loop.decode_gpus,
            "input_tok_s_per_gpu": self.rate * loop.prompt / loop.prefill_gpus,
        }


def balance(loop: Loop, theta: Array) -> Prediction:
    """Equilibrium of every point. theta: [points, parameters] of `stack`."""
    given = values(theta)
    steps = loop.table.seconds(given)
    p, k = given["acceptance"], loop.drafts
    accepted = (1 - p ** (k + 1)) / (1 - p)
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
    return Prediction(rate, tpot, np.where(loop.mean_ttft, mean, median), median, own)


def waits(served_s: Array, busy: Array, ahead: Array, bunching: Array) -> tuple[Array, Array]:
    """Mean and median wait of a prompt. served_s: of one prompt; ahead: others of which it finds half if all come at
    once."""
    capped = np.minimum(busy, BUSIEST)
    mean = served_s * capped / (2 * (1 - capped))
    return _bounded(mean, _median_wait(mean, capped), served_s, ahead, bunching)


def _median_wait(mean: Array, busy: Array) -> Array:
    """Of Poisson arrivals a share `busy` waits at all, W / busy in the mean; taken as exponential, the median of all is
    W / busy ln(2 busy), and nothing up to half busy."""
    median: Array = mean / np.maximum(busy, 0.5) * np.log(np.maximum(2 * busy, 1.0))
    return median


def _bounded(mean: Array, median: Array, served_s: Array, ahead: Array, bunching: Array) -> tuple[Array, Array]:
    """Both waits, at most that of all who are ahead coming at once, and at least the share `bunching` of it."""
    together = np.maximum(ahead, 0.0) * served_s / 2
    bunched = bunching * together
    return np.maximum(np.minimum(mean, together), bunched), np.maximum(np.minimum(median, together), bunched)


def waits_of_steps(
    own_s: Array, served_s: Array, most: Array, rate: Array, ahead: Array, bunching: Array
) -> tuple[Array, Array]:
    """Mean and median of what a prompt takes longer than alone, where steps take all prompts that came during the one
    before, at most `most`.

    own_s: step of one prompt; served_s: of a full step for each of its prompts; rate: prompts/s; ahead, bunching: as
    in `waits`. A step of n takes f + n m. With lambda arrivals/s, steps of S = (f + m P0) / (1 - lambda m) follow each
    other, P0 = exp(-lambda S) being the chance that one ends with nothing to do. A prompt waits for half of the step
    that runs (if one does), is served with the lambda S others that came in its time, and where even full steps hardly
    keep up it queues as in M/D/1 (rho^2 s / (2 (1 - rho)) beyond the prompt in service). Means are within 20% of a
    simulated queue, see the tests.
    """
    more = np.where(most > 1, np.maximum(0.0, most * served_s - own_s) / np.maximum(most - 1, 1), 0.0)
    fixed = np.maximum(0.0, own_s - more)
    busy = np.minimum(rate * served_s, BUSIEST)
    filling = np.minimum(rate * more, BUSIEST)
    step = own_s
    for _ in range(STEP_ROUNDS):
        found = (fixed + more * np.exp(-rate * step)) / (1 - filling)
        step = np.sqrt(step * np.minimum(found, np.maximum(own_s, most * served_s)))  # the mean keeps it from swinging
    idle = np.exp(-rate * step)
    running = np.maximum(busy, rate * step / (rate * step + idle))
    queue = served_s * busy**2 / (2 * (1 - busy))
    mean = running * step * (0.5 + filling) + queue
    in_median = np.maximum(0.0, running - 0.5) / np.maximum(running, 0.5)
    median = in_median * step + (running > 0.5) * filling * step + _median_wait(queue, busy)
    return _bounded(mean, median, served_s, ahead, bunching)


def _first_wave(loop: Loop, served_s: Array, ahead: Array, waited: Array, warm_up_s: Array) -> Array:
    """What the first wave adds to a mean TTFT: all requests in flight arrive at once, and meet for the first time the
    batch sizes for which kernels and graphs are kept, one for each doubling."""
    beyond: Array = np.maximum(0.0, np.maximum(ahead, 0.0) * served_s / 2 - waited)
    doublings = np.log2(np.maximum(1.0, loop.concurrency))
    return FIRST_WAVE * (beyond + doublings * warm_up_s)


def _colocated(
    loop: Loop, per_token: Array, step: Array, own: Array, taken: Array, given: dict[str, Array]
) -> tuple[Array, Array, Array, Array]:
    running = loop.batches[:, 0]
    output = loop.output
    cycle = running * taken + output * per_token
    rate = running / cycle * loop.decode_workers
    held = IN_FLIGHT_COLOCATED * loop.concurrency / loop.decode_workers
    waiting = np.maximum(0.0, held - running) * loop.decode_workers
    ahead = np.minimum(held, running) - 1
    beside = waits(taken, running * taken / cycle, ahead, given["bunching"])
    apart = waits_of_steps(own, taken, loop.prompts[:, -1], running / cycle, ahead, given["bunching"])
    mean, median = (np.where(loop.extra[:, 1] > 0, a, b) for a, b in zip(apart, beside, strict=True))
    alone = given["request_overhead_s"] + own + step / 2
    first = alone + mean
    inside = np.minimum(first, 0.5 * cycle)
    tpot = (cycle - inside) / np.maximum(output - 1, 1)
    queued = waiting / rate
    wave = _first_wave(loop, taken, held - 1, mean + step / 2, given["warm_up_s"])
    return rate, tpot, alone + median + queued, first + queued + wave


def _disaggregated(
    loop: Loop, decode: Array, own: Array, taken: Array, given: dict[str, Array]
) -> tuple[Array, Array, Array, Array]:
    grid, times = np.log(loop.batches), np.log(np.maximum(decode, 1e-9))
    held = IN_FLIGHT_DISAGGREGATED * loop.concurrency
    rows = np.arange(len(held))
    prefill_workers = np.maximum(loop.prefill_workers, 1)

    def per_token(running: Array) -> Array:
        at = np.clip(np.log(np.maximum(running, 1.0)), grid[:, 0], grid[:, -1])
        right = np.clip((grid < at[:, None]).sum(axis=1), 1, GRID - 1)
        low, high = grid[rows, right - 1], grid[rows, right]
        share = np.where(high > low, (at - low) / np.maximum(high - low, 1e-12), 0.0)
        return np.exp(times[rows, right - 1] * (1 - share) + times[rows, right] * share)

    ahead = held / prefill_workers - 1

    def state(running: Array) -> tuple[Array, Array, Array, Array, Array]:
        token = per_token(running / loop.decode_workers)
        rate = running / (loop.output * token)
        busy = rate * taken / prefill_workers
        each = rate / prefill_workers
        mean, median = waits_of_steps(own, taken, loop.prompts[:, -1], each, ahead, given["bunching"])
        return rate, token, mean, median, busy

    def alone(token: Array) -> Array:
        return np.asarray(given["request_overhead_s"] + own + token)

    low, high = np.full_like(held, 1e-3), np.maximum(held, 2e-3)
    high = np.minimum(high, loop.batches[:, -1] * loop.decode_workers)
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        rate, token, mean, _, busy = state(middle)
        over = (middle + rate * (alone(token) + mean) > held) | (busy > BUSIEST)
        high, low = np.where(over, middle, high), np.where(over, low, middle)
    rate, token, mean, median, _ = state(low)
    first = alone(token) + mean
    queued = np.maximum(0.0, held - low - rate * first) / rate
    wave = _first_wave(loop, taken, ahead, mean, given["warm_up_s"])
    return rate, token, alone(token) + median + queued, first + queued + wave


def take(loop: Loop, rows: NDArray[np.intp]) -> Loop:
    """The points `rows` alone, in that order."""
    arrays = {name: value[rows] for name, value in vars(loop).items() if isinstance(value, np.ndarray)}
    return replace(loop, table=loop.table.take(rows), **arrays)
