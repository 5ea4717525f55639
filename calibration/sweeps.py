"""What is measured, as items that run one after the other: raw rates, ops of captured steps, whole steps, hand-over.

An item knows its key before it runs, so that a resumed measurement skips what is on file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from calibration import models
from calibration.capture import blocks_needed, capture, step_inputs
from calibration.device import Machine
from calibration.measurement import Measurement, StepShape
from calibration.step_ops import StepPricer
from calibration.timer import Limits, Sample, Timer
from hw_profiles import catalog
from hw_profiles.efficiency import OpClass
from simulator.model.ops import Op

if TYPE_CHECKING:
    from runtime.engine import Engine


class PresetError(ValueError):
    """A preset that is not there."""


@dataclass(frozen=True)
class Preset:
    """How much is measured.

    model, layers: whose layer shapes, and how many of its first layers. depths: layer counts of whole steps; the
    largest is predicted from the others. contexts, batches: of decode steps. chunks, pasts: of prefill steps.
    steps: whole steps at each depth. limits: of each timed call.
    """

    model: str
    layers: int
    depths: tuple[int, ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    chunks: tuple[int, ...]
    pasts: tuple[int, ...]
    steps: int
    limits: Limits
    gemm_sizes: tuple[int, ...]
    copy_bytes: tuple[int, ...]
    block_size: int = 128
    max_sequences: int = 16
    max_step_tokens: int = 256
    longest_prompt: int = 160
    longest_output: int = 32

    @property
    def decode_shapes(self) -> tuple[StepShape, ...]:
        return tuple(StepShape((), (c,) * b) for b in self.batches for c in self.contexts)

    @property
    def prefill_shapes(self) -> tuple[StepShape, ...]:
        return tuple(StepShape(((new, past),), ()) for new in self.chunks for past in self.pasts)


MIB = 1 << 20
CPU_QUICK = Preset(
    "tiny-v4",
    8,
    (2, 4, 6, 8),
    (1, 4, 16),
    (48, 640),
    (16, 128, 256),
    (0, 512),
    120,
    Limits(0.12, 30),
    (256, 1024),
    (16 * MIB, 128 * MIB),
)
CPU_FULL = replace(
    CPU_QUICK,
    batches=(1, 2, 4, 8, 16),
    contexts=(16, 128, 640, 2048),
    chunks=(16, 64, 128, 256),
    pasts=(0, 128, 1024),
    steps=400,
    limits=Limits(0.3, 60),
    gemm_sizes=(256, 1024, 2048),
)
CUDA_QUICK = Preset(
    "deepseek-v4-flash",
    6,
    (3, 4, 5, 6),
    (1, 16, 64),
    (1024, 16384),
    (512, 4096),
    (0, 8192),
    120,
    Limits(0.1, 100),
    (2048, 8192),
    (256 * MIB, 2048 * MIB),
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
    limits=Limits(0.2, 200),
    max_sequences=128,
    max_step_tokens=8192,
)
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


@dataclass(frozen=True)
class Item:
    """One piece of the sweep. run gives its measurements; the last carries the item's own key."""

    key: str
    run: Callable[[], Iterator[Measurement]]


class Bench:
    """Builds the items of a preset on one machine. config: config.json of the preset's model, all layers."""

    def __init__(self, machine: Machine, preset: Preset, config: dict[str, Any], seed: int = 0) -> None:
        import torch

        self.machine, self.preset, self.config, self.seed = machine, preset, config, seed
        self.device = torch.device(machine.device)
        self.dtype = models.torch_dtype(machine)
        if machine.device == "cpu":
            torch.set_num_threads(machine.threads)
        torch.manual_seed(seed)

    @cached_property
    def timer(self) -> Timer:
        return Timer(self.device, self.preset.limits)

    @cached_property
    def pricer(self) -> StepPricer:
        spec = models.model_spec(models.cut_to(self.config, self.preset.layers), self.machine, self.preset.model)
        # The ops of one rank do not depend on the accelerator: any entry of the catalogue builds them.
        return StepPricer(spec, catalog.load(catalog.names()[0]))

    def items(self) -> list[Item]:
        p = self.preset
        items = [self._copy(size) for size in p.copy_bytes]
        items += [self._gemm(dtype, size) for dtype in self._dtypes() for size in p.gemm_sizes]
        items.append(self._launch())
        if self.machine.device == "cuda":
            items += [self._host_copy(direction) for direction in ("to device", "to host")]
        items += [self._ops(shape) for shape in (*p.decode_shapes, *p.prefill_shapes)]
        items += [self._sampling(rows) for rows in p.batches]
        items += [self._handover(tokens) for tokens in p.contexts]
        items += [self._steps(depth) for depth in p.depths]
        return items

    def _dtypes(self) -> tuple[str, ...]:
        return ("fp32", "bf16") if self.machine.device == "cpu" else ("tf32", "bf16")

    # ---- raw rates

    def _copy(self, size: int) -> Item:
        def run() -> Iterator[Measurement]:
            import torch

            pairs = [torch.rand(2, size // 4, device=self.device) for _ in range(2)]
            sample = self.timer.sample([lambda p=p: p[0].copy_(p[1]) for p in pairs], flush=False)  # type: ignore[misc]
            yield Measurement(key, "copy", sample=sample, num_bytes=2.0 * size)

        key = f"copy of {size} bytes"
        return Item(key, run)

    def _gemm(self, dtype: str, size: int) -> Item:
        def run() -> Iterator[Measurement]:
            import torch

            element = torch.bfloat16 if dtype == "bf16" else torch.float32
            a, b = (torch.randn(size, size, device=self.device).to(element) for _ in range(2))
            sample = self.timer.sample([lambda: a @ b, lambda: b @ a])
            yield Measurement(key, "gemm", sample=sample, dtype=dtype, flops=2.0 * size**3)

        key = f"{dtype} product of {size}"
        return Item(key, run)

    def _launch(self) -> Item:
        def run() -> Iterator[Measurement]:
            import torch

            x = torch.zeros(1, device=self.device)
            yield Measurement(key, "launch", sample=self.timer.sample([lambda: x.add_(1)], flush=False))

        key = "launch of one small op"
        return Item(key, run)

    def _host_copy(self, direction: str) -> Item:
        def run() -> Iterator[Measurement]:
            import torch

            host = torch.rand(64 * MIB // 4).pin_memory()
            device = host.to(self.device)
            target, source = (device, host) if direction == "to device" else (host, device)
            sample = self.timer.sample([lambda: target.copy_(source, non_blocking=True)], flush=False)
            yield Measurement(key, "host copy", sample=sample, num_bytes=float(64 * MIB), note=direction)

        key = f"copy {direction}"
        return Item(key, run)

    # ---- ops of captured steps

    def _ops(self, shape: StepShape) -> Item:
        decode = bool(shape.contexts)
        name = (
            f"decode of {len(shape.contexts)} at {shape.contexts[0]}"
            if decode
            else f"prefill of {shape.prefills[0][0]} after {shape.prefills[0][1]}"
        )

        def run() -> Iterator[Measurement]:
            from runtime.cache import KVCache
            from runtime.model_runner import ModelRunner

            blocks = blocks_needed(shape, self.preset.block_size)
            slots = max(1, len(shape.contexts))
            cache = KVCache(self._model.config, blocks, slots, self.preset.block_size, self.device, self.dtype)
            runner = ModelRunner(self._model, cache, cuda_graphs=False)
            inputs = step_inputs(shape, cache, self._model.config.vocab_size, self.seed)
            import torch

            with torch.inference_mode():
                for number, call in enumerate(capture(runner, inputs)):
                    ops = self.pricer.call_ops(call, shape)
                    if ops:
                        sample = self.timer.sample(call.calls)
                        yield Measurement(f"{name}: {call.name} {number}", call.name, sample=sample, ops=ops)
            yield Measurement(name, "captured")

        return Item(name, run)

    @cached_property
    def _model(self) -> Any:
        from runtime.models import build

        config = models.runtime_config(models.cut_to(self.config, self.preset.layers))
        return build(config, seed=self.seed, device=self.device, dtype=self.dtype)

    def _sampling(self, rows: int) -> Item:
        def run() -> Iterator[Measurement]:
            import torch

            from runtime import ops

            vocab = self.config["vocab_size"]
            logits = [torch.randn(rows, vocab, device=self.device) for _ in range(2)]
            seeds = torch.arange(rows, device=self.device)
            steps = torch.zeros(rows, dtype=torch.int32, device=self.device)
            one = torch.ones(rows, device=self.device)
            top_k = torch.full((rows,), 50, dtype=torch.int32, device=self.device)
            sample = self.timer.sample(
                [lambda x=x: ops.sample(x, one, top_k, one * 0.9, seeds, steps) for x in logits]  # type: ignore[misc]
            )
            # Logits are read, made probabilities and searched: three passes, as the simulator counts.
            op = Op("sampling", OpClass.ELEMENTWISE, hbm_bytes=3.0 * rows * vocab * 4)
            yield Measurement(key, "sampling", sample=sample, ops=(op,))

        key = f"sampling of {rows}"
        return Item(key, run)

    # ---- hand-over of a sequence's cache between processes

    def _handover(self, tokens: int) -> Item:
        def run() -> Iterator[Measurement]:
            import os

            from runtime import handover
            from runtime.cache import KVCache

            blocks = -(-tokens // self.preset.block_size)
            source, target = (
                KVCache(self._model.config, blocks, 1, self.preset.block_size, self.device, self.dtype)
                for _ in range(2)
            )
            ids = list(range(blocks))
            segment = f"moeplan-calibrate-{os.getpid()}"
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

            sample = self.timer.sample([move])
            yield Measurement(key, "handover", sample=sample, num_bytes=float(moved))

        key = f"hand-over of {tokens} tokens"
        return Item(key, run)

    # ---- whole steps of an engine

    def engine(self, depth: int) -> Engine:
        """An engine of the first `depth` layers with room for every sequence of a step."""
        from runtime.engine import Engine, EngineConfig

        p = self.preset
        per_sequence = -(-(p.longest_prompt + p.longest_output) // p.block_size)
        config = EngineConfig(
            num_blocks=p.max_sequences * per_sequence,
            block_size=p.block_size,
            num_snapshots=0,
            max_num_seqs=p.max_sequences,
            max_num_batched_tokens=p.max_step_tokens,
            prefix_caching=False,
        )
        cut = models.runtime_config(models.cut_to(self.config, depth))
        return Engine.build(cut, config, seed=self.seed, device=self.machine.device, dtype=self.dtype)

    def traffic(self, count: int, seed: int) -> list[Any]:
        """Requests in bursts of every size, so that steps of every batch size come by."""
        from runtime.trace import TraceRequest

        p = self.preset
        rng = np.random.default_rng(seed)
        bursts = rng.choice([1, 2, p.max_sequences // 4, p.max_sequences], count)
        prompts = np.rint(np.exp(rng.uniform(np.log(4), np.log(p.longest_prompt), count))).astype(int)
        outputs = rng.integers(2, p.longest_output, count)
        # Gaps of hours on a clock that skips idle time: each burst runs out before the next.
        starts = np.cumsum(np.concatenate(([0], rng.random(count - 1) * bursts[1:] < 1))) * 1e4
        return [TraceRequest(float(s), int(i), int(o)) for s, i, o in zip(starts, prompts, outputs, strict=True)]

    def _steps(self, depth: int) -> Item:
        def run() -> Iterator[Measurement]:
            from calibration.virtual_clock import replay

            engine = self.engine(depth)
            with contextlib.closing(engine):
                replay(engine, self.traffic(4, self.seed + 1), until_steps=8)  # warm-up
                steps = replay(engine, self.traffic(self.preset.steps, self.seed), until_steps=self.preset.steps).steps
            for number, step in enumerate(steps):
                s = step.duration_s
                yield Measurement(
                    f"{name}: {number}", "step", sample=Sample(s, s, s, 1), step=step.shape, layers=depth,
                    model=self.preset.model,
                )  # fmt: skip
            yield Measurement(name, "steps", layers=depth)

        name = f"whole steps of {depth} layers"
        return Item(name, run)
