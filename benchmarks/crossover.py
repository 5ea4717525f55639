"""Where disaggregation pays: `python -m benchmarks.crossover --json FILE`.

The motivating experiment of DistServe (Zhong et al., OSDI 2024, figure 1), set up from memory of the paper: a dense 13B
model in 16 bits on A100 80GB, 512 prompt and 64 output tokens, 90% of requests to see TTFT <= 0.4 s and TPOT <= 40 ms.
Goodput is the highest rate a GPU at which they do. The paper's colocated system computes whole prompts first (vLLM at
that time): `prefill_first` with a budget of one prompt; `chunked` is what came after (Sarathi-Serve, OSDI 2024).
Limits from strict to loose show on which side of the crossover either form wins.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.des.results.result import SimulationResult
from simulator.des.simulate import simulate
from simulator.scenario import parse_scenario

# Shapes of Llama 2 13B (its public config.json); OPT-13B, which the paper served, has as many layers of the same width.
DENSE_13B = {
    "model_type": "llama",
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "torch_dtype": "float16",
    "tie_word_embeddings": False,
}
ATTAINMENT = 0.9  # share of requests within both limits: figure 1
GPUS = 4  # of a deployment, enough for splits of 1:3 to 3:1 (assumed)
FIRST, GROWTH = 0.5, 1.25  # rates tried: requests/s/GPU of the first, ratio of each to the one before (assumed)
MAX_SEQUENCES = 256  # of an instance (assumed)
CHUNK, PREFILL_BATCH = 512, 1024  # prompt tokens of a step: chunked, and that about saturate the GPU (assumed)


@dataclass(frozen=True)
class LatencyLimits:
    """Latency limits. [s]"""

    ttft_s: float
    tpot_s: float


LIMITS = (
    LatencyLimits(0.4, 0.02),
    LatencyLimits(0.4, 0.03),
    LatencyLimits(0.4, 0.04),  # figure 1, from memory
    LatencyLimits(0.4, 0.06),
    LatencyLimits(0.4, 0.1),
    LatencyLimits(1.0, 0.2),
)
LENGTHS = (512, 64)  # tokens of prompt and output


def designs() -> dict[str, dict[str, Any]]:
    """Deployments of GPUS accelerators, one an instance; a prefill step holds about what saturates the GPU."""
    pool = {"gpu": "a100_sxm", "max_sequences": MAX_SEQUENCES}
    table: dict[str, dict[str, Any]] = {
        "colocated, prefill first": {"colocated": pool | {"instances": GPUS, "batching": "prefill_first"}},
        "colocated, chunked": {"colocated": pool | {"instances": GPUS, "max_tokens_per_step": CHUNK}},
    }
    for prefill in range(1, GPUS):
        table[f"disaggregated {prefill}:{GPUS - prefill}"] = {
            "prefill": pool | {"instances": prefill, "max_tokens_per_step": PREFILL_BATCH},
            "decode": pool | {"instances": GPUS - prefill},
        }
    return table


def run(model: Path, deployment: dict[str, Any], lengths: tuple[int, int], rate: float, requests: int) -> Any:
    """One simulated run at `rate` requests/s over the whole deployment."""
    return simulate(
        parse_scenario(
            {
                "model": str(model),
                "workload": {
                    "kind": "open_loop",
                    "rate": rate,
                    "requests": requests,
                    "prompt": lengths[0],
                    "output": lengths[1],
                },
                "deployment": deployment,
            }
        )
    )


def attainment(result: SimulationResult, limits: LatencyLimits) -> float:
    """Share of the measured requests inside both limits."""
    kept = (result.ttft_s <= limits.ttft_s) & (result.tpot_s <= limits.tpot_s) & result.finished
    return float(kept[result.measured].mean())


def goodputs(
    model: Path, deployment: dict[str, Any], lengths: tuple[int, int], limits: tuple[LatencyLimits, ...], requests: int
) -> list[float]:
    """Per limits the rate [requests/s/GPU] at which attainment falls through ATTAINMENT, between steps by a line."""
    found = [0.0] * len(limits)
    last = [(0.0, 1.0)] * len(limits)  # rate and attainment before
    left = set(range(len(limits)))
    rate = FIRST
    while left:
        result = run(model, deployment, lengths, rate * GPUS, requests)
        for i in sorted(left):
            share = attainment(result, limits[i])
            if share < ATTAINMENT:
                lower, before = last[i]
                found[i] = lower + (rate - lower) * (before - ATTAINMENT) / (before - share) if lower else 0.0
                left.discard(i)
            last[i] = rate, share
        rate *= GROWTH
    return found


def write_model(folder: Path) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(DENSE_13B), encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder))
        columns = {name: goodputs(model, form, LENGTHS, LIMITS, options.requests) for name, form in designs().items()}
    rows = []
    print(f"{LENGTHS[0]} in, {LENGTHS[1]} out, {GPUS} GPUs: goodput, requests/s/GPU")
    for i, limits in enumerate(LIMITS):
        row = {design: values[i] for design, values in columns.items()}
        split = max((design for design in row if design.startswith("dis")), key=lambda design: row[design])
        rows.append({"ttft_s": limits.ttft_s, "tpot_s": limits.tpot_s, "goodput": row, "best_split": split})
        shown = {d: v for d, v in row.items() if d.startswith("col")} | {split: row[split]}
        text = "  ".join(f"{design} {value:.2f}" for design, value in shown.items())
        print(f"  TTFT <= {limits.ttft_s:g} s, TPOT <= {limits.tpot_s * 1e3:g} ms: {text}")
    report = {"gpus": GPUS, "attainment": ATTAINMENT, "requests": options.requests, "limits": rows}
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
