"""Speed of the discrete-event cluster: `python -m benchmarks.des --requests N [N ...] --json FILE`.

Plays N requests with the lengths of a public conversation trace on 8 prefill and 8 decode instances. CPU seconds
and peak memory are of one process, drawing of the workload and percentiles included, reading of presets not. Machines
differ and drift, so half of `bare_simpy` runs before and half after, and the ratio to it is reported. Several numbers
of requests run one after the other in a process each; the file has them as `runs`.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import bare_simpy
from hw_profiles.catalog import load
from simulator.des.simulate import play
from simulator.des.workload.requests import Requests, draw_arrivals
from simulator.model.presets import load_model
from simulator.scenario import Deployment, Scenario, parse_scenario

# Token counts at every 5% of the Azure LLM inference trace 2023, conversation (CC-BY 4.0,
# github.com/Azure/AzurePublicDataset).
# fmt: off
PROMPT_QUANTILES = (2, 181, 207, 372, 387, 396, 403, 414, 703, 984, 1020, 1045, 1071, 1097, 1130, 1189, 1315, 1876,
                    2734, 4083, 14050)
OUTPUT_QUANTILES = (7, 41, 54, 67, 77, 85, 91, 96, 103, 113, 129, 151, 177, 217, 384, 395, 400, 411, 424, 451, 1000)
# fmt: on
RATE = 70.0  # requests per second


def scenario() -> Scenario:
    """8 prefill and 8 decode instances of 8 accelerators; the workload section only names the lengths."""
    pool = {"gpu": "h200_sxm", "instances": 8, "tp": 8, "max_sequences": 256}
    return parse_scenario(
        {
            "model": "qwen3-235b-a22b",
            "workload": {"kind": "open_loop", "rate": RATE, "prompt": 1155, "output": 211},
            "slo": {"ttft_s": 2.0, "tpot_s": 0.05},
            "deployment": {"prefill": pool, "decode": pool},
        }
    )


def conversation(count: int, seed: int) -> Requests:
    """`count` requests, lengths by interpolation between the quantiles, Poisson arrivals."""
    arrivals, prompts, outputs = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))
    grid = np.linspace(0, 1, len(PROMPT_QUANTILES))

    def lengths(quantiles: tuple[int, ...], rng: np.random.Generator) -> Any:
        return np.rint(np.interp(rng.random(count), grid, quantiles)).astype(np.int64)

    return Requests(
        lengths(PROMPT_QUANTILES, prompts),
        lengths(OUTPUT_QUANTILES, outputs),
        arrival_s=draw_arrivals(RATE, 1.0, count, arrivals),
    )


def measure(count: int, seed: int = 0) -> dict[str, Any]:
    """One run: requests per CPU second, peak resident memory, and what came out of it."""
    bare_s = _bare_s(count, seed)
    report = run(count, seed)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    bare_s += _bare_s(count, seed)
    yardstick = {"bare_simpy_cpu_s": bare_s, "over_bare_simpy": report["cpu_s"] / bare_s}
    return report | yardstick | {"peak_mib": peak_mib}


def run(count: int, seed: int = 0) -> dict[str, Any]:
    """The cluster alone."""
    chosen = scenario()
    deployment = chosen.deployment
    assert isinstance(deployment, Deployment)
    model = load_model(chosen.model)
    profiles = {f"{pool.gpu}@{pool.stack}": load(pool.gpu, pool.stack) for pool in deployment.groups}
    start = time.process_time()
    requests = conversation(count, seed)
    ended: list[tuple[int, float]] = [(0, time.process_time())]
    result = play(
        chosen,
        deployment,
        model,
        profiles,
        requests,
        np.random.default_rng(seed),
        progress=lambda done, _: ended.append((done, time.process_time())),
    )
    summary = result.summary().to_json()
    cpu_s = time.process_time() - start
    return {
        "requests": count,
        "requests_per_s": count / cpu_s,
        "cpu_s": cpu_s,
        "second_half_over_first": _growth(ended),
        "steps": sum(int(pool["steps"]) for pool in summary["utilization"].values()),
        "p99": {name: spread["p99"] for name, spread in summary["metrics"].items()},
    }


def _bare_s(count: int, seed: int) -> float:
    """CPU seconds of the bare model for half of `count` requests; none of it is left in memory."""
    half = max(1, count // 2)
    return bare_simpy.cpu_s(conversation(half, seed)) * count / (2 * half)


def _growth(ended: list[tuple[int, float]]) -> float:
    """CPU time of the second half of all requests over that of the first: 1 where time grows linearly.

    >>> _growth([(0, 1.0), (50, 3.0), (100, 6.0)])
    1.5
    """
    done, cpu_s = zip(*ended, strict=True)
    half_s = float(np.interp(done[-1] / 2, done, cpu_s))
    return (cpu_s[-1] - half_s) / (half_s - cpu_s[0])


def measure_all(counts: Sequence[int], seed: int) -> Iterator[dict[str, Any]]:
    """A run for each count; several in a process each, for a process only ever tells its highest peak of memory."""
    if len(counts) == 1:
        yield measure(counts[0], seed)
        return
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as processes:
        yield from processes.map(partial(measure, seed=seed), counts)


def table(runs: Sequence[dict[str, Any]], machine: dict[str, Any]) -> dict[str, Any]:
    """What the file holds: one run as it is, several as `runs`, and where they ran."""
    return {"machine": machine} | (runs[0] if len(runs) == 1 else {"runs": list(runs)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, nargs="+", default=[10_000], metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if min(options.requests) < 1:
        parser.error(f"--requests {min(options.requests)} is none to play; give 1 or more")
    runs = []
    for report in measure_all(options.requests, options.seed):
        runs.append(report)
        print(
            f"{report['requests']:,} requests: {report['cpu_s']:.2f} s of CPU, "
            f"{report['requests_per_s']:,.0f} requests/s, {report['peak_mib']:.0f} MiB, "
            f"{report['over_bare_simpy']:.1f} times bare SimPy ({report['bare_simpy_cpu_s']:.1f} s), "
            f"{report['steps'] / report['requests']:.1f} steps a request, "
            f"second half / first half of the run {report['second_half_over_first']:.2f} (linear: 1)",
            flush=True,
        )
    if options.json is not None:
        from runtime.machine import machine_facts  # brings PyTorch, which the runs do without

        options.json.write_text(json.dumps(table(runs, machine_facts()), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
