"""Everything that is measured, in order: the bare machine, hand-over, collectives, ops of layers, whole steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from calibration.microbench import collectives, kv_handover, layer_ops, raw_rates, whole_steps
from calibration.microbench.bench import Bench, Item
from calibration.microbench.measurement import Measurement


def items(bench: Bench, *companions: Bench) -> list[Item]:
    """Whole steps come last and in any case: a fit needs them most. Of companions ops of layers and whole steps alone,
    under the names of their models."""
    ops = [item for part in (raw_rates, kv_handover, collectives, layer_ops) for item in part.items(bench)]
    steps = whole_steps.items(bench)
    for other in companions:
        ops += [_of(other, item) for item in layer_ops.items(other)]
        steps += [_of(other, item) for item in whole_steps.items(other)]
    return [*(replace(item, within_s=bench.preset.ops_s) for item in ops), *steps]


def _of(bench: Bench, item: Item) -> Item:
    """An item with the model's name in all its keys."""

    def key(old: str) -> str:
        return f"{bench.preset.model}: {old}"

    def run() -> Iterator[Measurement]:
        return (replace(row, key=key(row.key)) for row in item.run())

    return replace(item, key=key(item.key), run=run)
