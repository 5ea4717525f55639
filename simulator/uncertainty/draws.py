"""Draws of what is not known of an engine, and what they do to the steps of a pool.

A profile holds draws of the posterior of the fit that it comes from, or where nothing was measured the deviations that
are assumed; both are logs of the factors of `simulator.model.engine`. Pushed through the steps of an instance they give
draws of its times; a measurement adds its own noise.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hw_profiles.efficiency import WHOLE_STEPS, Efficiency
from hw_profiles.profile import HardwareProfile
from simulator.model.acceptance import ASSUMED_CHANCE, tokens_per_step
from simulator.model.architecture import ModelSpec
from simulator.model.arrays import Floats
from simulator.model.draws import DRAWS, NORMAL, normal_scores
from simulator.model.engine import DEVIATIONS, FACTORS, NOISE, Condition, Factor, Form, holding, in_service
from simulator.model.limits import TOKENS_PER_STEP
from simulator.model.parallelism import Parallelism
from simulator.model.step import StepOps
from simulator.steady_state.arrays import Place
from simulator.steady_state.parameters import EngineParameters, constant
from simulator.steady_state.step_table import StepTable, price
from simulator.steady_state.traffic import TrafficSample

RATES: tuple[Factor, ...] = ("memory", "matrix", "network", "attention", "experts", "acceptance")  # the others: times
HUNDREDTH = 0.01  # unit of draws in a profile
MEDIAN_OF_ABSOLUTE = NORMAL.inv_cdf(0.75)  # median distance of a standard normal from its mean [-]
# Traffic and load under which times of a pool are drawn: errors hardly depend on them (assumed).
PROMPT, OUTPUT = 4000.0, 1000.0  # tokens
RUNNING = 32.0  # sequences of an attention rank
ENGINES_REMEMBERED = 1024  # assumed: a plan asks for some hundred


def drawn_logs(efficiency: Efficiency, model: str, form: Form) -> dict[Factor, Floats]:
    """[DRAWS] log of each factor less that of the profile."""
    own = efficiency.held_out_error.get(WHOLE_STEPS) if efficiency.origin == "measured" else None
    if own:
        return _measured(own)
    known: dict[Condition, str] = {"model": model, "form": form}
    logs: dict[Factor, Floats] = {factor: np.zeros(DRAWS) for factor in FACTORS}
    variance = dict.fromkeys(FACTORS, 0.0)
    there = tuple(holding(efficiency, known))
    for situation in there:
        for factor in FACTORS:
            if factor in situation.drawn:
                logs[factor] = logs[factor] + HUNDREDTH * np.array(situation.drawn[factor])
            variance[factor] += situation.deviations.get(factor, 0.0) ** 2
    if not there:
        variance = {factor: deviation**2 for factor, deviation in DEVIATIONS.items()}
    elif model and all(one.when.get("model") != model for one in efficiency.situations):
        variance = {factor: v + efficiency.unseen.get(factor, 0.0) ** 2 for factor, v in variance.items()}
    for factor in FACTORS:
        if variance[factor]:
            name = f"{efficiency.accelerator}@{efficiency.stack} {model} {form} {factor}"
            logs[factor] = logs[factor] + variance[factor] ** 0.5 * normal_scores(zlib.crc32(name.encode()))
    return logs


def _measured(error: float) -> dict[Factor, Floats]:
    """A machine of one's own is faster or slower as a whole, by the median error of whole steps that its calibration
    left out of its fit: a normal law of log(1 + error) / z_0.75."""
    slower = np.log1p(error) / MEDIAN_OF_ABSOLUTE * normal_scores(0)
    return {factor: -slower if factor in RATES and factor != "acceptance" else slower for factor in FACTORS}


@dataclass(frozen=True)
class DrawnPool:
    """[DRAWS] logs over their median, measurement noise among them: of the time of a token, of a lone prompt up to its
    first token, and of the rates at which an instance works prompts off, decodes, and does both."""

    tpot: Floats
    ttft: Floats
    prefill_rate: Floats
    decode_rate: Floats
    rate: Floats


@lru_cache(maxsize=ENGINES_REMEMBERED)
def drawn_times(
    hardware: HardwareProfile, model: ModelSpec, cut: Parallelism, draft_tokens: int, form: Form
) -> DrawnPool:
    """Of an instance. hardware: as the catalogue has it. Raises CatalogError."""
    logs = drawn_logs(hardware.efficiency, model.name, form)
    served = in_service(hardware, model, form)
    host = served.efficiency
    rates: dict[Factor, Floats] = {factor: np.exp(logs[factor])[None] for factor in FACTORS}
    given = EngineParameters(
        constant(host.step_overhead_s) * rates["kernel_overhead_s"],
        host.kernel_overhead_s * rates["kernel_overhead_s"],
        host.request_overhead_s * rates["request_overhead_s"],
        host.sequence_overhead_s * rates["sequence_overhead_s"],
        host.exit_latency_s * (rates["exit_latency_s"] - 1),  # steps are priced with one
        **{name: rates[name] for name in ("matrix", "memory", "network", "attention", "experts")},
    )
    ops = StepOps(model, served, cut, draft_tokens)
    traffic = TrafficSample.of([PROMPT], [OUTPUT])
    most = RUNNING * cut.dp
    steps = StepTable.of([price(ops, traffic, TOKENS_PER_STEP, "prefill_first", most)]).seconds(given)
    step = Place.on(steps.batches, np.full((1, DRAWS), most)).of(steps.decode_s)[0]
    if draft_tokens:
        chance = host.acceptance if host.acceptance is not None else ASSUMED_CHANCE
        odds = chance / (1 - chance) * rates["acceptance"][0]
        step = step / tokens_per_step(odds / (1 + odds), np.array(float(draft_tokens)))
    prompt = steps.lone_s.mean(axis=-1)[0, :, 0] + given.request_overhead_s[0]
    full = steps.full_s[0, :, 0]
    speed, arrivals = normal_scores(1), normal_scores(2)
    sigma = NOISE | host.noise
    noise = sigma["total_tok_s_per_gpu"] * speed
    return DrawnPool(
        _centred(np.log(step) + sigma["tpot_ms"] * speed),
        _centred(np.log(prompt) + sigma["ttft_ms"] * arrivals),
        _centred(-np.log(full) - noise),
        _centred(-np.log(step) - noise),
        _centred(-np.log(full + OUTPUT * step / most) - noise),
    )


def _centred(logs: Floats) -> Floats:
    return np.asarray(logs - np.median(logs))
