"""Everything that is measured, in order: the bare machine, ops of layers, hand-over, collectives, whole steps."""

from __future__ import annotations

from dataclasses import replace

from calibration.machine import collectives, kv_handover, layer_ops, raw_rates, whole_steps
from calibration.machine.bench import Bench, Item


def items(bench: Bench) -> list[Item]:
    """Whole steps come last and in any case: a fit needs them most."""
    ops = [item for part in (raw_rates, layer_ops, kv_handover, collectives) for item in part.items(bench)]
    return [*(replace(item, within_s=bench.preset.ops_s) for item in ops), *whole_steps.items(bench)]
