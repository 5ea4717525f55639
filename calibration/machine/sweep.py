"""Everything that is measured, in order: the bare machine, ops of layers, hand-over, collectives, whole steps."""

from __future__ import annotations

from calibration.machine import collectives, kv_handover, layer_ops, raw_rates, whole_steps
from calibration.machine.bench import Bench, Item


def items(bench: Bench) -> list[Item]:
    parts = (raw_rates, layer_ops, kv_handover, collectives, whole_steps)
    return [item for part in parts for item in part.items(bench)]
