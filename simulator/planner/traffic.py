"""Traffic as the steady-state model sees it: a rate, how bursty it is, and a sample of (prompt, output) pairs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from simulator.des.workload.draws import draw_lengths
from simulator.des.workload.requests import trace_arrivals
from simulator.scenario import Lengths, OpenLoop, ScenarioError, Trace, Workload
from simulator.steady_state.traffic import TrafficSample
from simulator.traces.columns import BLOCK_TOKENS
from simulator.traces.reading import read_trace

SAMPLES = 64  # (prompt, output) pairs that stand for all [requests; assumed]
DRAWS = 8192  # of a distribution, whose quantiles the samples are [requests; assumed]
WINDOW_S = 60.0  # over which a trace's rate is counted [s; assumed]
PEAK_PERCENTILE = 95.0  # of those rates, to plan for [%; assumed]
FEWEST_WINDOWS = 10  # of a trace, for a percentile of them to mean anything [assumed]


@dataclass(frozen=True)
class Traffic:
    """Requests as a planner needs them.

    rate: requests per second to plan for. [1/s]
    arrival_scv: squared coefficient of variation of the gaps between arrivals (1 for Poisson).
    prompts, outputs: paired token counts, a stratified sample of at most 64 requests.
    """

    rate: float
    arrival_scv: float
    prompts: tuple[int, ...]
    outputs: tuple[int, ...]
    description: str
    cached: int = 0  # tokens in front of each prompt that a prefix cache holds

    @cached_property
    def mean_prompt(self) -> float:
        return float(np.mean(self.prompts))

    @cached_property
    def mean_output(self) -> float:
        return float(np.mean(self.outputs))

    @cached_property
    def sample(self) -> TrafficSample:
        """For `simulator.steady_state`."""
        computed = [max(1, prompt - self.cached) for prompt in self.prompts]
        return TrafficSample.of(computed, self.outputs, float(self.cached))


def traffic_of(workload: Workload, seed: int) -> Traffic:
    """Summarise a workload. Raises ScenarioError for one whose arrival rate follows from the cluster."""
    if isinstance(workload, OpenLoop):
        _refuse_growth(workload)
        prompts, outputs = _stratified(workload.prompt, workload.output, seed)
        text = f"{workload.rate:g} requests/s, {np.mean(prompts):.0f} prompt and {np.mean(outputs):.0f} output tokens"
        cached = 0
        if workload.shared_prefix is not None:
            cached = min(workload.shared_prefix.tokens, *prompts) // BLOCK_TOKENS * BLOCK_TOKENS
            text += f", of which {cached} are in a prefix cache"
        return Traffic(workload.rate, workload.burstiness, prompts, outputs, text, cached)
    if isinstance(workload, Trace):
        return _trace_traffic(workload, seed)
    raise ScenarioError(
        f"plan sizes a cluster for arriving traffic, and workload.kind='{workload.kind}' has no rate of requests; "
        "use 'open_loop' with a rate, or 'trace'"
    )


def _refuse_growth(workload: OpenLoop) -> None:
    """A plan is for one highest rate."""
    growth = workload.diurnal.growth_per_day if workload.diurnal else 0.0
    if growth:
        raise ScenarioError(
            f"workload.diurnal.growth_per_day={growth:g}: plan sizes for one rate, {workload.rate:g}/s; leave it "
            f"out and give the rate of the day to plan for ({workload.rate * (1 + growth) ** 30:.4g}/s in 30 days)"
        )


def _stratified(prompt: Lengths, output: Lengths, seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Evenly spaced quantiles of a large draw of each side, paired at random."""
    rng = np.random.default_rng(seed)
    picks = (np.arange(SAMPLES) + 0.5) / SAMPLES
    sides = [np.quantile(draw_lengths(side, DRAWS, rng), picks, method="nearest") for side in (prompt, output)]
    rng.shuffle(sides[1])
    prompts, outputs = (tuple(int(x) for x in side) for side in sides)
    if len(set(prompts)) == 1 and len(set(outputs)) == 1:
        return prompts[:1], outputs[:1]
    return prompts, outputs


def _trace_traffic(workload: Trace, seed: int) -> Traffic:
    """Plan for the 95th percentile of the arrival rate over one-minute windows (all windows when few)."""
    trace = read_trace(workload)
    arrivals = np.sort(trace_arrivals(workload, trace, np.random.SeedSequence(seed)))
    span = float(arrivals[-1] - arrivals[0])
    drawn = not trace.timed and workload.rate is not None
    if span <= 0 and not drawn:
        raise ScenarioError(
            f"workload.path={workload.path}: all requests arrive at one instant, so there is no rate to plan for; "
            "use a longer trace"
        )
    mean_rate = workload.rate if drawn and workload.rate is not None else len(arrivals) / span
    rate = mean_rate
    if span >= FEWEST_WINDOWS * WINDOW_S and not drawn:
        counts = np.histogram(arrivals, bins=np.arange(arrivals[0], arrivals[-1], WINDOW_S))[0]
        rate = max(mean_rate, float(np.percentile(counts, PEAK_PERCENTILE)) / WINDOW_S)
    gaps = np.diff(arrivals)
    order = np.argsort(trace.prompt_tokens, kind="stable")
    picks = order[((np.arange(SAMPLES) + 0.5) / SAMPLES * len(order)).astype(int)]
    prompts = tuple(int(x) for x in trace.prompt_tokens[picks])
    # Pairs come from the trace; outputs are rescaled so that the sample keeps the trace's mean output.
    scale = float(np.mean(trace.output_tokens)) / max(1.0, float(np.mean(trace.output_tokens[picks])))
    outputs = tuple(max(1, round(float(x) * scale)) for x in trace.output_tokens[picks])
    text = (
        f"{workload.path.name}: {len(arrivals)} requests, mean {mean_rate:.2f}/s, planned for {rate:.2f}/s "
        "(95th percentile of one-minute windows), "
        f"{np.mean(prompts):.0f} prompt and {np.mean(outputs):.0f} output tokens"
    )
    text = "; ".join((text, *trace.left_out))
    scv = 1.0 if drawn else float(np.var(gaps) / np.mean(gaps) ** 2)
    return Traffic(rate, scv, prompts, outputs, text)
