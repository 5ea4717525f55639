"""What is served in the loop: a model cut to a few layers, an engine's limits, and the cost of handing KV over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from calibration.microbench import kv_handover, models
from calibration.microbench.bench import Bench
from calibration.microbench.device import Machine
from calibration.microbench.measurement import Measurements
from calibration.microbench.preset import Preset
from calibration.replay.traffic import ReplayTraffic
from calibration.replay.twin import EngineLimits, HandoverCost, profiled_times, simulate
from hw_profiles.profile import HardwareProfile
from simulator.model.latency import StepLatency

ANY_LENGTH = 1 << 62  # tokens that a model without a limit takes
ROUNDED = 0.99  # of the scale at which a request just fits: each count is rounded
Form = Literal["colocated", "disaggregated"]
FORMS: tuple[Form, ...] = ("colocated", "disaggregated")


class TrafficError(ValueError):
    """Requests that cannot be replayed; the message names one and the way out."""


@dataclass(frozen=True)
class Subject:
    """What is served. handover: between workers."""

    machine: Machine
    preset: Preset
    config: dict[str, Any]  # of the model, already cut to its layers
    handover: HandoverCost

    @property
    def layers(self) -> int:
        return int(self.config["num_hidden_layers"])

    @property
    def limits(self) -> EngineLimits:
        p = self.preset
        per_sequence = -(-(p.longest_prompt + p.longest_output) // p.block_size) * p.block_size
        return EngineLimits(p.max_sequences, p.max_step_tokens, p.max_sequences * per_sequence)

    def check(self, traffic: ReplayTraffic) -> None:
        """Refuse requests that the engine cannot take, before any is replayed."""
        tokens = traffic.prompt_tokens + traffic.output_tokens
        most = min(self.limits.capacity_tokens, int(self.config.get("max_position_embeddings", ANY_LENGTH)))
        longest = int(tokens.argmax())
        if tokens[longest] > most:
            share = ROUNDED * most / int(tokens[longest])
            unit = 10.0 ** (math.floor(math.log10(share)) - 1)
            raise TrafficError(
                f"request {longest + 1} has {traffic.prompt_tokens[longest]} prompt and "
                f"{traffic.output_tokens[longest]} output tokens, the engine takes {most} together; make all shorter, "
                f"for example with --length-scale {math.floor(share / unit) * unit:.2g}"
            )
        if not (traffic.output_tokens > 1).any():
            raise TrafficError(
                "no request has more than one output token, so there is no TPOT to compare; give a trace with longer "
                "outputs, or a larger --length-scale"
            )

    def times(self, hardware: HardwareProfile) -> StepLatency:
        return profiled_times(models.model_spec(self.config, self.machine, self.preset.model), hardware)


def subject_of(machine: Machine, preset: Preset, layers: int, measured: Measurements | None = None) -> Subject:
    """The preset's model cut to `layers`; hand-over as measured, else measured now."""
    config = models.config_of(preset)
    bench = Bench(machine, replace(preset, layers=layers), config)
    rows = measured.family("handover") if measured else ()
    points = [(row.num_bytes, row.seconds) for row in rows]
    if not points:
        found = [row for item in kv_handover.items(bench) for row in item.run()]
        points = [(row.num_bytes, row.seconds) for row in found if row.sample is not None]
    return Subject(machine, preset, models.cut_to(config, layers), _handover_cost(bench, points))


def _handover_cost(bench: Bench, points: Sequence[tuple[float, float]]) -> HandoverCost:
    """Fixed time and bandwidth through the measured points; bytes from the cache's own count."""
    from runtime.cache import KVCache

    p = bench.preset
    config = models.runtime_config(models.cut_to(bench.config, p.layers))
    cache = KVCache(config, 1, 1, p.block_size, "cpu", bench.dtype)
    sizes, seconds = (np.array(column) for column in zip(*points, strict=True))
    slope = float(np.polyfit(sizes, seconds, 1)[0]) if len(set(sizes)) > 1 else 0.0
    bandwidth = 1 / slope if slope > 0 else float(sizes.max() / seconds.min())
    fixed = max(0.0, float(np.median(seconds - sizes / bandwidth)))
    # A prompt's last block moves whole: half a block on average beyond its tokens.
    half_block = cache.bytes_per_block / 2
    return HandoverCost(fixed, bandwidth, cache.bytes_per_slot + half_block, cache.bytes_per_block / p.block_size)


def capacity(traffic: ReplayTraffic, subject: Subject, times: StepLatency, form: Form) -> float:
    """Requests a second when all arrive at once, by the simulator. [1/s]"""
    burst = replace(traffic, arrival_s=np.zeros_like(traffic.arrival_s))
    result = simulate(burst, times, subject.limits, subject.handover if form == "disaggregated" else None)
    return len(burst.arrival_s) / float(result.finish_s.max())
