"""How much is measured: presets by device and size."""

from __future__ import annotations

from dataclasses import dataclass, replace

from calibration.microbench.device import Machine
from calibration.microbench.measurement import EngineStep
from calibration.microbench.timer import TimingLimits


class PresetError(ValueError):
    """A preset that is not there."""


@dataclass(frozen=True)
class Preset:
    """How much is measured.

    model, layers: whose layer shapes, and how many of its first layers. experts: routed experts of a layer, where a
    rank of a deployment holds so many of the model's; None: all. companions: more models, of which the ops of layers
    and whole steps are measured too. depths: layer counts of whole steps; the largest is predicted from the others.
    contexts, batches: of decode steps. chunks, pasts: of prefill steps.
    steps: whole steps at each depth. limits: of each timed call. message_bytes: of collectives.
    ops_s: time after which no op, hand-over or collective is begun any more; steps_s: of the whole steps of a depth.
    """

    model: str
    layers: int
    depths: tuple[int, ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    chunks: tuple[int, ...]
    pasts: tuple[int, ...]
    steps: int
    limits: TimingLimits
    gemm_sizes: tuple[int, ...]
    copy_bytes: tuple[int, ...]
    message_bytes: tuple[int, ...]
    block_size: int = 128
    max_sequences: int = 16
    max_step_tokens: int = 256
    longest_prompt: int = 160
    longest_output: int = 32
    ops_s: float = 110.0
    steps_s: float = 12.0
    experts: int | None = None
    companions: tuple[Preset, ...] = ()

    @property
    def limit_s(self) -> float:
        """What a sweep takes at most, but for its last op and the building of models."""
        return self.ops_s + sum(p.steps_s * len(p.depths) for p in (self, *self.companions))

    @property
    def decode_shapes(self) -> tuple[EngineStep, ...]:
        return tuple(EngineStep((), (c,) * b) for b in self.batches for c in self.contexts)

    @property
    def prefill_shapes(self) -> tuple[EngineStep, ...]:
        return tuple(EngineStep(((new, past),), ()) for new in self.chunks for past in self.pasts)


KIB, MIB = 1 << 10, 1 << 20  # bytes
# Sizes are assumed: shapes that a server of that device meets, as many as `ops_s` and `steps_s` leave time for.
CPU_QUICK = Preset(
    "tiny-v4",
    layers=8,
    depths=(2, 4, 6, 8),
    batches=(1, 4, 16),
    contexts=(48, 640),
    chunks=(16, 128, 256),
    pasts=(0, 512),
    steps=120,
    limits=TimingLimits(0.12, 30),
    gemm_sizes=(256, 1024),
    copy_bytes=(16 * MIB, 128 * MIB),
    message_bytes=(4 * KIB, 64 * KIB, 512 * KIB, 4 * MIB, 16 * MIB),
)
CPU_FULL = replace(
    CPU_QUICK,
    batches=(1, 2, 4, 8, 16),
    contexts=(16, 128, 640, 2048),
    chunks=(16, 64, 128, 256),
    pasts=(0, 128, 1024),
    steps=400,
    limits=TimingLimits(0.3, 60),
    gemm_sizes=(256, 1024, 2048),
    message_bytes=(4 * KIB, 64 * KIB, 256 * KIB, 1 * MIB, 4 * MIB, 16 * MIB),
    ops_s=360.0,
    steps_s=40.0,
)
# True layer shapes in bf16 within 80 GB: 8 layers with the experts that one of 4 (Flash) or of 8 ranks (Pro) holds.
CUDA_QUICK = Preset(
    "deepseek-v4-flash",
    layers=8,
    experts=64,
    depths=(2, 4, 6, 8),
    batches=(1, 16, 64),
    contexts=(1024, 16384),
    chunks=(512, 4096),
    pasts=(0, 8192),
    steps=120,
    limits=TimingLimits(0.1, 100),
    gemm_sizes=(2048, 8192),
    copy_bytes=(256 * MIB, 2048 * MIB),
    message_bytes=(64 * KIB, 1 * MIB, 16 * MIB, 256 * MIB),
    max_sequences=64,
    max_step_tokens=4096,
    longest_prompt=8192,
    longest_output=64,
)
CUDA_FULL = replace(
    CUDA_QUICK,
    batches=(1, 4, 16, 64, 128),
    contexts=(256, 1024, 8192, 65536),
    chunks=(128, 512, 2048, 8192),
    pasts=(0, 8192, 65536),
    steps=400,
    limits=TimingLimits(0.2, 200),
    message_bytes=(16 * KIB, 256 * KIB, 4 * MIB, 64 * MIB, 256 * MIB),
    max_sequences=128,
    max_step_tokens=8192,
    ops_s=400.0,
    steps_s=16.0,
)
CUDA_FULL_PRO = replace(
    CUDA_FULL,
    model="deepseek-v4-pro",
    experts=48,
    batches=(1, 16, 128),
    contexts=(1024, 8192, 65536),
    chunks=(512, 8192),
    pasts=(0, 65536),
)
CUDA_FULL = replace(CUDA_FULL, companions=(CUDA_FULL_PRO,))
PRESETS = {
    ("cpu", "quick"): CPU_QUICK,
    ("cpu", "full"): CPU_FULL,
    ("cuda", "quick"): CUDA_QUICK,
    ("cuda", "full"): CUDA_FULL,
}


def preset_of(machine: Machine, name: str) -> Preset:
    known = [size for device, size in PRESETS if device == machine.device]
    if name not in known:
        raise PresetError(f"--preset {name!r} is not known; use {' or '.join(known)}")
    return PRESETS[machine.device, name]
