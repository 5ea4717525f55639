"""A benchmark played, and what it would have reported.

Of many clients a few requests each are played. The last but one of each then stands for those that it would have sent
besides, which go on at the rate of these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.serving.by_des.benchmark import GENERATIONS, Benchmark
from calibration.serving.by_des.decode_alone import decoded
from calibration.serving.points import Point, Unpredictable
from simulator.des.results.result import SimulationResult
from simulator.des.simulate import play
from simulator.des.workload.requests import make_requests
from simulator.model.arrays import Floats


@dataclass(frozen=True)
class Reported:
    """rate: requests/s of the cluster. tpot_s: of the median request, NaN where none has several tokens. ttft_s: the
    statistic of the point, a mean over all requests or the median; median_ttft_s stands beside it. NaN of a decode pool
    alone."""

    rate: float
    tpot_s: float
    ttft_s: float
    median_ttft_s: float

    def metrics(self, point: Point) -> dict[str, float]:
        """Every metric of a points file. Where a disaggregated row has both, output is by decode accelerators and input
        by prefill ones; else both are by all."""
        total = by_prefill = by_decode = point.gpus
        if point.phase != "e2e":
            pool = point.prefill if point.phase == "prefill" else point.decode
            total = by_prefill = by_decode = pool.count * pool.gpus
        elif point.disaggregated and point.phase == "e2e" and "input_tok_s_per_gpu" in point.measured:
            by_prefill, by_decode = (p.count * p.gpus for p in (point.prefill, point.decode))
        return {
            "total_tok_s_per_gpu": self.rate * (point.prompt + point.output) / total,
            "output_tok_s_per_gpu": self.rate * point.output / by_decode,
            "input_tok_s_per_gpu": self.rate * point.prompt / by_prefill,
            "tok_s_per_user": 1 / self.tpot_s if self.tpot_s else np.nan,
            "tpot_ms": self.tpot_s * 1e3,
            "ttft_ms": self.ttft_s * 1e3,
            "median_ttft_ms": self.median_ttft_s * 1e3,
        }


def reported(benchmark: Benchmark) -> Reported:
    """Play it.

    Raises Unpredictable where requests find no room; ScenarioError, CatalogError, ParallelismError or DoesNotFitError
    where there is nothing to play them on.
    """
    if benchmark.point.phase == "decode":
        return reported_of(decoded(benchmark), benchmark)
    scenario = benchmark.scenario
    traffic, router = np.random.SeedSequence(scenario.seed).spawn(2)
    assert scenario.deployment is not None
    result = play(
        scenario,
        scenario.deployment,
        benchmark.model,
        benchmark.profiles,
        make_requests(scenario.one_workload(), traffic),
        np.random.default_rng(router),
    )
    return reported_of(result, benchmark)


def reported_of(result: SimulationResult, benchmark: Benchmark) -> Reported:
    """What a benchmark of ten requests for each client says, of whom fewer or more were played."""
    if not result.finished.all():
        raise Unpredictable(f"a request does not fit: {next(iter(result.rejections), 'it was lost')}")
    clients = benchmark.clients
    weight = weights(result.arrival_s, clients)
    e2e_s = result.e2e_s[_repeated(result.arrival_s, clients)]
    played = len(weight)
    requests = max(played, GENERATIONS * clients)
    seconds = float(result.finish_s.max()) + (requests - played) * float(e2e_s.mean()) / clients
    ttft_s, several = result.ttft_s, np.isfinite(result.tpot_s)
    median = weighted_median(ttft_s, weight)
    # A simulated engine is warm; a tenth of the requests met one that was not.
    mean = float((ttft_s * weight).sum()) + benchmark.warm_up_s / GENERATIONS
    if benchmark.point.phase == "decode":  # the first token is not its own
        tokens = float(((result.output_tokens - 1) * weight).sum())
        rate = requests / seconds * tokens / benchmark.point.output
        return Reported(rate, weighted_median(result.tpot_s, weight), math.nan, math.nan)
    return Reported(
        requests / seconds,
        weighted_median(result.tpot_s[several], weight[several]) if several.any() else math.nan,
        mean if benchmark.point.mean_ttft else median,
        median,
    )


def weights(arrival_s: Floats, clients: int) -> Floats:
    """Of each request in a benchmark of ten for each client. Where fewer were played, the last but one of each client
    stand for those that were not; the last ones have ever fewer beside them.

    >>> weights(np.array([0.0, 1.0, 2.0]), 1).round(2).tolist()
    [0.1, 0.8, 0.1]
    """
    played, wanted = len(arrival_s), GENERATIONS * clients
    weight = np.full(played, 1 / max(played, wanted))
    weight[_repeated(arrival_s, clients)] += max(0, wanted - played) / wanted / clients
    return weight


def _repeated(arrival_s: Floats, clients: int) -> NDArray[np.intp]:
    """The last request but one of each client."""
    return np.argsort(arrival_s, kind="stable")[-2 * clients : -clients]


def weighted_median(values: Floats, weight: Floats) -> float:
    """The value below which half of the weight is.

    >>> weighted_median(np.array([3.0, 1.0, 2.0]), np.array([0.7, 0.1, 0.2]))
    3.0
    """
    order = np.argsort(values, kind="stable")
    below = np.cumsum(weight[order]) / weight.sum()
    return float(values[order][np.searchsorted(below, 0.5)])
