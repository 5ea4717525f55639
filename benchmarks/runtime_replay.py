"""Poisson traffic on a scaled-down V4, on CPU: one engine, and prefill and decode in separate processes.

    python benchmarks/runtime_replay.py

One torch thread a worker. Both runs get the same requests, so their tokens must be equal, and are compared. Where
prefill and decode workers outnumber the idle cores, the second run measures the cores, not disaggregation.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from runtime.backend import Backend
from runtime.bench import Replay, replay, request_rows, summarize, warm_up
from runtime.disaggregation import DisaggregatedConfig, DisaggregatedEngine
from runtime.engine import EngineConfig
from runtime.machine import machine_facts
from runtime.presets import load_model_config
from runtime.trace import TraceRequest, poisson_trace
from runtime.worker import WorkerSpec

NUM_BLOCKS, STEP_TOKENS = 64, 256  # of each engine: what a laptop holds and computes at once (assumed)
RESULT = Path(__file__).parent / "results" / "runtime_replay.json"


def run(name: str, backend: Backend, trace: list[TraceRequest], seed: int) -> Replay:
    def progress(done: int, of: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{name}: {done} of {of} requests", end="", file=sys.stderr)

    try:
        warm_up(backend)
        return replay(backend, trace, seed=seed, progress=progress)
    finally:
        backend.close()


def compact(result: Replay) -> list[dict[str, Any]]:
    """Rows without the time of each token."""
    rows = request_rows(result)
    for row in rows:
        times = row.pop("token_times_s")
        row |= {"first_token_s": times[0], "last_token_s": times[-1]} if times else {}
    return [{k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="tiny-v4")
    parser.add_argument("--num-requests", type=int, default=200)
    parser.add_argument("--rate", type=float, default=2.0, help="requests per second")
    parser.add_argument("--isl", type=int, default=64, help="prompt tokens")
    parser.add_argument("--osl", type=int, default=12, help="output tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-prefill", type=int, default=1)
    parser.add_argument("--num-decode", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    facts = machine_facts()
    config = EngineConfig(num_blocks=NUM_BLOCKS, max_num_batched_tokens=STEP_TOKENS)
    spec = WorkerSpec(load_model_config(arguments.model), config)
    trace = poisson_trace(arguments.rate, arguments.num_requests, arguments.isl, arguments.osl, arguments.seed)
    colocated = run("colocated", spec.build(), trace, arguments.seed)
    pair = DisaggregatedConfig(arguments.num_prefill, arguments.num_decode)
    disaggregated = run("disaggregated", DisaggregatedEngine(spec, pair), trace, arguments.seed)
    pairs = zip(colocated.outputs, disaggregated.outputs, strict=True)
    summaries = {"colocated": summarize(colocated), "disaggregated": summarize(disaggregated)}
    same_tokens = sum(a.token_ids == b.token_ids for a, b in pairs)
    report = {
        "machine": facts,
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(arguments).items() if k != "output"},
        "same_tokens": same_tokens,
        "colocated": {"summary": summaries["colocated"], "requests": compact(colocated)},
        "disaggregated": {"summary": summaries["disaggregated"], "requests": compact(disaggregated)},
    }
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    for name, summary in summaries.items():
        print(
            f"{name}: {summary['num_finished']} of {summary['num_requests']} finished "
            f"in {summary['duration_s']:.1f} s, "
            f"TTFT p50 {summary['ttft_s']['p50']:.3f} s, TPOT p50 {summary['tpot_s']['p50']:.3f} s, "
            f"{summary['output_tokens_per_s']:.1f} output tokens/s"
        )
    print(f"same tokens: {same_tokens} of {len(trace)} requests")
    print(f"written: {arguments.output}")


if __name__ == "__main__":
    main()
