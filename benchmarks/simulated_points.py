"""Published serving points through the discrete-event model, as `plan` and `simulate` would predict them.

`validate` gives a point every effect that was fitted to its configuration. A plan has a profile of the stack on the
accelerator and nothing more, so its errors are larger and need a spread of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from calibration.serving.engine_fit import SCORED_METRICS
from calibration.serving.engine_parameters import NOTHING_FITTED, StackFit, family_of, values

from benchmarks.study import Study
from calibration.arrays import Index
from calibration.serving.export_profiles import in_engine
from calibration.serving.layouts import WorkerLayout
from calibration.serving.point_engines import parallelism_of
from calibration.serving.points import Point
from calibration.serving.served_model import preset_of, variant
from hw_profiles.efficiency import Efficiency
from hw_profiles.profile import HardwareProfile
from simulator.des.simulate import play
from simulator.des.workload.requests import make_requests
from simulator.model.acceptance import tokens_per_step
from simulator.model.arrays import Floats
from simulator.model.memory import DoesNotFitError
from simulator.model.presets import load_model
from simulator.scenario import parse_scenario

# Published benchmarks draw lengths from 0.8 to 1 of nominal, so from 8/9 to 10/9 of their mean.
SHORTEST, LONGEST = 8 / 9, 10 / 9
REQUESTS_PER_CLIENT = 3  # of which the first is warm-up (assumed)
FEWEST_REQUESTS = 60  # of a run (assumed)
LONGEST_WARM_UP = 0.5  # share of a run (assumed)


def log_ratios(study: Study, fit: StackFit | None, rows: Index) -> Iterator[tuple[int, Floats]]:
    """(row, logs of measured / simulated by SCORED_METRICS) of those rows whose memory plan fits.

    fit: gives the profile of each stack, as `calibration.serving.export_profiles` writes it; None: assumed profiles.
    """
    profiles: dict[tuple[str, str], Efficiency] = {}
    for row in rows:
        steps, levels = study.steps[row], study.levels[row]
        point, hardware = steps.point, steps.hardware
        if point.phase != "e2e":
            continue
        given = {name: float(value[0]) for name, value in values((fit or NOTHING_FITTED).theta([levels])).items()}
        if fit is not None:
            key = (hardware.name, family_of(point.engine))
            if key not in profiles:
                profiles[key] = in_engine(*key, fit)
            # The row ran the software of its month, the profile is of the newest.
            host_s = profiles[key].kernel_overhead_s / given["renewal"] ** point.age
            hardware = replace(hardware, efficiency=profiles[key].model_copy(update={"kernel_overhead_s": host_s}))
        try:
            # A user states the acceptance length; here it is what the levels of the fit say.
            simulated = simulate_point(point, hardware, given["acceptance"])
        except DoesNotFitError:
            continue
        measured = [point.measured.get(name, math.nan) for name in SCORED_METRICS]
        if point.median_ttft_ms is not None:  # simulated in its steady state, without the first wave
            measured[SCORED_METRICS.index("ttft_ms")] = point.median_ttft_ms
        ratios = np.log(measured) - np.log(simulated)
        if study.saturated[row]:
            ratios[SCORED_METRICS.index("ttft_ms")] = np.nan
        yield int(row), ratios


def simulate_point(point: Point, hardware: HardwareProfile, acceptance: float) -> Floats:
    """SCORED_METRICS of a closed loop at the point's concurrency, medians as published."""
    drafts = point.drafts if load_model(preset_of(point.model)).draft else 0
    decode = _pool(point, point.decode, hardware, drafts, acceptance)
    pools = (
        {"prefill": _pool(point, point.prefill, hardware, 0, acceptance), "decode": decode}
        if point.disaggregated
        else {"colocated": decode}
    )
    clients = max(1, round(point.concurrency))
    requests = max(FEWEST_REQUESTS, REQUESTS_PER_CLIENT * clients)
    scenario = parse_scenario(
        {
            "model": preset_of(point.model),
            "workload": {
                "kind": "closed_loop",
                "concurrency": clients,
                "requests": requests,
                "prompt": _lengths(point.prompt),
                "output": _lengths(point.output),
            },
            "deployment": pools,
            "warmup_fraction": min(LONGEST_WARM_UP, clients / requests),
        }
    )
    ep = max(parallelism_of(worker).ep for worker in (point.prefill, point.decode))
    model = variant(point.model, point.precision, point.engine, hardware, ep)
    traffic, router = np.random.SeedSequence(scenario.seed).spawn(2)
    assert scenario.deployment is not None
    result = play(
        scenario,
        scenario.deployment,
        model,
        {f"{hardware.name}@{hardware.stack}": hardware},
        make_requests(scenario.one_workload(), traffic),
        np.random.default_rng(router),
    )
    latency, rates = result.metrics(), result.throughput()
    ttfts = latency["ttft_s"]
    ttft = ttfts.mean if point.mean_ttft and point.median_ttft_ms is None else ttfts.p50
    tpot = latency["tpot_s"].p50
    return np.array(
        [
            math.nan if tpot is None else tpot * 1e3,
            rates.total_tok_s_per_gpu,
            math.nan if ttft is None else ttft * 1e3,
        ]
    )


def _pool(
    point: Point, worker: WorkerLayout, hardware: HardwareProfile, drafts: int, acceptance: float
) -> dict[str, Any]:
    cut = parallelism_of(worker)
    if load_model(preset_of(point.model)).layers[0].attention.heads % cut.tp:  # attention cannot be cut so
        cut = replace(cut, tp=1, dp=cut.tp)
    return {
        "gpu": hardware.name,
        "stack": hardware.stack,
        "instances": worker.count,
        "tp": cut.tp,
        "dp": cut.dp,
        "ep": cut.ep,
        "pp": cut.pp,
        "cp": cut.cp,
        "draft_tokens": drafts,
        "acceptance_length": tokens_per_step(acceptance, drafts),
    }


def _lengths(mean: float) -> dict[str, Any]:
    return {"kind": "uniform", "low": max(1, round(SHORTEST * mean)), "high": max(1, round(LONGEST * mean))}
