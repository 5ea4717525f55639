"""Hand-over of a sequence's KV between processes: out of one cache, through shared memory, into another."""

from __future__ import annotations

from collections.abc import Iterator

from calibration.microbench.bench import Bench, Item
from calibration.microbench.measurement import Measurement


def items(bench: Bench) -> list[Item]:
    return [_handover(bench, tokens) for tokens in bench.preset.contexts]


def _handover(bench: Bench, tokens: int) -> Item:
    def run() -> Iterator[Measurement]:
        from runtime import handover
        from runtime.cache import KVCache

        size = bench.preset.block_size
        blocks = -(-tokens // size)
        config = bench.runtime_config
        source, target = (KVCache(config, blocks, 1, size, bench.device, bench.dtype) for _ in range(2))
        source.randomise(bench.seed)
        ids = list(range(blocks))
        handover.remove_orphans()
        segment = handover.segment_prefix("measure")
        moved = 0

        def move() -> None:
            nonlocal moved
            written = handover.write(segment, source.export_blocks(ids, 0))
            try:
                with handover.opened(written) as tensors:
                    target.import_blocks(ids, 0, tensors)
            finally:
                handover.remove(segment)
            moved = written.num_bytes

        sample = bench.timer.sample([move])
        yield Measurement(key, "handover", sample=sample, num_bytes=float(moved))

    key = f"hand-over of {tokens} tokens"
    return Item(key, run)
