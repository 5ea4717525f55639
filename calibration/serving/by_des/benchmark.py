"""The benchmark of a point as a scenario: a closed loop whose clients all start at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from calibration.serving.by_des.engine import FittedEngine
from calibration.serving.equilibria import MOST_FILLED
from calibration.serving.layouts import WorkerLayout
from calibration.serving.parameters import family_of
from calibration.serving.point_engines import parallelism_of
from calibration.serving.points import Point, Unpredictable
from calibration.serving.served_model import preset_of, variant
from hw_profiles.profile import HardwareProfile
from simulator.model.acceptance import tokens_per_step
from simulator.model.architecture import ModelSpec
from simulator.model.engine import form_of
from simulator.model.limits import TOKENS_PER_STEP
from simulator.model.parallelism import Parallelism
from simulator.model.presets import load_model
from simulator.scenario import Scenario, parse_scenario
from simulator.steady_state.policies import batching_of

GENERATIONS = 10  # requests of each client, as InferenceX sends them
# Of many clients fewer are played, so that 4,600 published rows take ten minutes on two cores: no more than that many
# requests in all, but so many of each client. Where prompts hold up decode, waves of the start take longer to dissolve:
# with five each, throughput is 3% above that of ten and TPOT 3% below; apart, with three, 0.5% (medians of seven
# published rows with 128 to 333 clients, 1 December 2026).
MOST_REQUESTS = 5000
FEWEST_OF_CLIENT = {"colocated": 5, "disaggregated": 3}
FEWEST_REQUESTS = 40  # so that medians of few clients are of more than a handful (assumed)
DECODED = 64.0  # tokens that a request is decoded for where a row states a context alone (assumed)
MOST_CLIENTS = 2**16  # twice what was ever published (36,864); ten seconds (assumed)


@dataclass(frozen=True)
class Benchmark:
    """A point as a scenario of one closed loop, on hardware and a model that the scenario names."""

    point: Point
    scenario: Scenario
    model: ModelSpec
    hardware: HardwareProfile
    clients: int
    warm_up_s: float  # of FittedEngine

    @property
    def profiles(self) -> dict[str, HardwareProfile]:
        return {f"{self.hardware.name}@{self.hardware.stack}": self.hardware}


def benchmark_of(point: Point, engine: FittedEngine) -> Benchmark:
    """Raises Unpredictable for what cannot be played."""
    hardware = engine.hardware
    policy = batching_of(family_of(point.engine))
    drafts = point.drafts if point.phase != "prefill" else 0
    if drafts and load_model(preset_of(point.model)).draft is None:
        raise Unpredictable(f"drafts by a head of which nothing is known: the preset of {point.model} has none")
    clients = clients_of(point)
    if math.isinf(point.concurrency):
        raise Unpredictable("all requests at once, of which the row does not say how many")
    if clients > MOST_CLIENTS:
        raise Unpredictable(f"{clients:,} requests in flight are more than are played ({MOST_CLIENTS:,})")
    last = _pool(point, point.decode, hardware, clients, engine.running) | {
        "draft_tokens": drafts,
        "acceptance_length": tokens_per_step(engine.acceptance, drafts),
    }
    pools: dict[str, Any]
    if point.phase == "decode":
        prompts = _pool(point, point.decode, hardware, clients, clients)  # computed in no time: see decode_alone
        pools = {"prefill": prompts, "decode": last, "transfer": {"handshake_s": 0.0}, "first_token": "prefill"}
    elif point.disaggregated and point.phase == "e2e":
        pools = {"prefill": _pool(point, point.prefill, hardware, clients, clients), "decode": last}
    else:
        pools = {"colocated": last | {"batching": policy}}
    scenario = parse_scenario(
        {
            "name": point.id,
            "model": preset_of(point.model),
            "workload": {
                "kind": "closed_loop",
                "concurrency": clients,
                "requests": requests_of(point),
                "prompt": _lengths(point.prompt, point.spread),
                "output": _lengths(output_of(point), point.spread),
            },
            "deployment": pools,
            "warmup_fraction": 0.0,
        }
    )
    ep = max(parallelism_of(worker).ep for worker in (point.prefill, point.decode))
    model = variant(point.model, point.precision, point.engine, hardware, ep)
    filled = hardware.efficiency.model_copy(update={"memory_utilisation": MOST_FILLED})  # as in equilibria of points
    hardware = replace(hardware, efficiency=filled)
    return Benchmark(point, scenario, model, hardware, clients, engine.warm_up_s)


def clients_of(point: Point) -> int:
    return max(1, round(min(point.concurrency, MOST_CLIENTS + 1)))


def output_of(point: Point) -> float:
    """Tokens of an answer: of a decode pool alone at a context, as many as hardly lengthen it."""
    return DECODED if point.phase == "decode" and point.output <= 1 else point.output


def requests_of(point: Point) -> int:
    """Requests that are played."""
    clients = clients_of(point)
    fewest = FEWEST_OF_CLIENT[form_of(point.disaggregated)] * clients
    return max(fewest, min(GENERATIONS * clients, MOST_REQUESTS), FEWEST_REQUESTS)


def _pool(
    point: Point, worker: WorkerLayout, hardware: HardwareProfile, clients: int, running: float
) -> dict[str, Any]:
    """With the limits that the row states, or of as many requests on a rank as the fit says that its engine runs."""
    cut = cut_of(point, worker)
    limits = [most for most in (point.most_running, (point.most_running_of_rank or 0) * cut.dp) if most]
    stated = min(limits, default=min(clients, running * cut.dp))
    return {
        "gpu": hardware.name,
        "stack": hardware.stack,
        "instances": worker.count,
        "tp": cut.tp,
        "dp": cut.dp,
        "ep": cut.ep,
        "pp": cut.pp,
        "cp": cut.cp,
        "max_tokens_per_step": round(point.prefill_chunk or point.token_budget or TOKENS_PER_STEP),
        "max_sequences": max(1, round(stated)),
    }


def cut_of(point: Point, worker: WorkerLayout) -> Parallelism:
    """Attention that cannot be cut so is data-parallel: printed sizes such as TP12 are of such ranks."""
    cut = parallelism_of(worker)
    if load_model(preset_of(point.model)).layers[0].attention.heads % cut.tp:
        return replace(cut, tp=1, dp=cut.tp)
    return cut


def _lengths(mean: float, spread: float) -> dict[str, Any]:
    low, high = (max(1, round(mean * (1 + sign * spread))) for sign in (-1, 1))
    return {"kind": "uniform", "low": low, "high": high}
