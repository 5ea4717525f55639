"""Block hit rate of a prefix cache over a trace with hash ids: `python -m benchmarks.prefix_replay --trace FILE.jsonl`.

Requests come one after the other in order of arrival, so the cache without bound gives the ideal of the trace.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from simulator.des.instance.prefix_cache import replayed_hit_rate
from simulator.scenario import Trace
from simulator.traces.reading import read_trace

SIZES = (1_000, 10_000, 100_000)  # blocks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path, required=True)
    blocks = read_trace(Trace(path=parser.parse_args().trace)).blocks
    if blocks is None:
        raise SystemExit("the trace has no hash_ids; give one that has them")
    total = sum(len(prompt) for prompt in blocks)
    print(f"{len(blocks):,} prompts, {total:,} blocks; without bound {replayed_hit_rate(blocks):.1%}")
    for size in SIZES:
        print(f"{size:>9,} blocks, LRU: {replayed_hit_rate(blocks, size):.1%}")


if __name__ == "__main__":
    main()
