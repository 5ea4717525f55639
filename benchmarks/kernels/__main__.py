"""Time every kernel at DeepSeek-V4-Flash shapes against the measured roof of this GPU.

    python -m benchmarks.kernels [--case NAME] --json benchmarks/results/kernels-<device>.json

Needs a CUDA device. What compiles without one: python -m benchmarks.kernels.compile_gate.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.kernels.cases import CASES, Case
from benchmarks.kernels.roof import Roof, measure_roof, median_s, standing


def provenance(device: torch.device) -> dict[str, str]:
    import triton

    def output(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else "unknown"

    return {
        "device": torch.cuda.get_device_name(device),
        "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": str(torch.version.cuda or torch.version.hip),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": output("git", "rev-parse", "HEAD"),
        "date": output("date", "-u", "+%Y-%m-%dT%H:%M:%SZ"),
    }


def run_case(case: Case, device: torch.device, roof: Roof) -> dict[str, object]:
    torch.manual_seed(0)
    call = case.build(device)
    call()  # compiles
    seconds = median_s(call)
    result = standing(seconds, case.flops, case.num_bytes, case.matrix_dtype, roof)
    return {"case": case.name, "microseconds": seconds * 1e6, **asdict(result)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.kernels", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", choices=[case.name for case in CASES], action="append", help="default: all")
    parser.add_argument("--json", type=Path, help="write the table, the roof and the provenance")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("benchmarks.kernels needs a CUDA device and found none: nothing was measured", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    roof = measure_roof(device)
    peaks = ", ".join(f"{name} {rate / 1e12:.0f} TFLOP/s" for name, rate in roof.flops.items())
    print(f"roof: {roof.bandwidth / 1e9:.0f} GB/s, {peaks}", file=sys.stderr)
    print(f"{'case':28}{'us':>10}{'TFLOP/s':>10}{'GB/s':>9}{'of roof':>9}  bound")
    results, skipped = [], []
    for case in CASES:
        if options.case and case.name not in options.case:
            continue
        if case.fp8 and "fp8" not in roof.flops:
            skipped.append(case.name)
            continue
        row = run_case(case, device, roof)
        results.append(row)
        print(
            f"{case.name:28}{row['microseconds']:10.1f}{row['tflops']:10.1f}{row['gigabytes_per_s']:9.0f}"
            f"{row['fraction']:9.0%}  {row['bound']}",
            flush=True,
        )
        torch.cuda.empty_cache()
    if skipped:
        print(f"not run, no fp8 matrix unit: {', '.join(skipped)}", file=sys.stderr)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        content = {"provenance": provenance(device), "roof": asdict(roof), "skipped": skipped, "results": results}
        options.json.write_text(json.dumps(content, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
