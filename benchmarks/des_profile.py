"""Where the discrete-event cluster spends its time: `python -m benchmarks.des_profile --requests N`.

The run of `benchmarks.des`, interrupted every two milliseconds of CPU time to see which function runs. Unlike tracing
profilers this costs nothing per call, so that small functions are not overstated. Python answers a signal between
instructions: time in C code is booked to the Python function that called it.
"""

from __future__ import annotations

import argparse
import signal
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType

from benchmarks.des import run

PERIOD_S = 0.002  # between samples
PARTS = {
    "SimPy: events and clock": ("simpy/", "primitives/clock.py"),
    "the step of an instance": ("instance/instance.py", "step_loop.py", "decode_loop.py", "records/usage.py"),
    "what a step holds, KV, preemption": ("scheduler.py", "instance/rank.py", "kv_room.py", "primitives/queues.py"),
    "running sequences": ("running_batch.py", "paced_batch.py"),
    "arrivals, routers, ends": (
        "cluster/cluster.py",
        "cluster/router.py",
        "cluster/dispatch.py",
        "cluster/serving.py",
        "workload/sources.py",
        "records/request_log.py",
    ),
    "what a step takes": ("instance/step_cost.py", "simulator/model/"),
    "transfers": (
        "cluster/kv_transfer.py",
        "primitives/links.py",
        "instance/handover.py",
        "kv_sender.py",
        "kv_receiver.py",
    ),
}


def sample(requests: int) -> Counter[CodeType]:
    """Samples by the code that ran."""
    seen: Counter[CodeType] = Counter()

    def look(_: int, frame: FrameType | None) -> None:
        if frame is not None:
            seen[frame.f_code] += 1

    before = signal.signal(signal.SIGPROF, look)
    signal.setitimer(signal.ITIMER_PROF, PERIOD_S, PERIOD_S)
    try:
        run(requests)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)
    return seen


def part_of(code: CodeType) -> str:
    path = Path(code.co_filename).as_posix()
    return next((part for part, places in PARTS.items() if any(place in path for place in places)), "the rest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    seen = sample(parser.parse_args().requests)
    total = seen.total()
    parts: Counter[str] = Counter()
    for code, count in seen.items():
        parts[part_of(code)] += count
    print(f"{total:,} samples")
    for part, count in parts.most_common():
        print(f"{count / total:6.1%}  {part}")
        own = [(code, times) for code, times in seen.most_common() if part_of(code) == part]
        for code, times in own[:4]:
            print(f"        {times / total:6.1%}  {code.co_qualname}")


if __name__ == "__main__":
    main()
