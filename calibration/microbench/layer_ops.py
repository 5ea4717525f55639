"""Ops of the model's layers, captured inside a real step and timed alone; and sampling."""

from __future__ import annotations

from collections.abc import Iterator

from calibration.microbench.bench import Bench, Item
from calibration.microbench.capture import blocks_needed, capture, step_inputs
from calibration.microbench.measurement import EngineStep, Measurement
from hw_profiles.efficiency import OpClass
from simulator.model.ops import Op

# Settings of the sampled rows: as chat endpoints use them (assumed).
TOP_K, TOP_P = 50, 0.9
LOGIT_PASSES, LOGIT_BYTES = 3, 4  # over float32 logits: read, made probabilities, searched, as the simulator counts


def items(bench: Bench) -> list[Item]:
    preset = bench.preset
    shapes = (*preset.decode_shapes, *preset.prefill_shapes)
    return [*(_captured(bench, shape) for shape in shapes), *(_sampling(bench, rows) for rows in preset.batches)]


def _name(shape: EngineStep) -> str:
    if shape.contexts:
        return f"decode of {len(shape.contexts)} at {shape.contexts[0]}"
    new, past = shape.prefills[0]
    return f"prefill of {new} after {past}"


def _captured(bench: Bench, shape: EngineStep) -> Item:
    name = _name(shape)

    def run() -> Iterator[Measurement]:
        import torch

        from runtime.cache import KVCache
        from runtime.model_runner import ModelRunner

        size = bench.preset.block_size
        config = bench.model.config
        slots = max(1, len(shape.contexts))
        cache = KVCache(config, blocks_needed(shape, size), slots, size, bench.device, bench.dtype)
        cache.randomise(bench.seed)
        runner = ModelRunner(bench.model, cache, cuda_graphs=False)
        inputs = step_inputs(shape, cache, config.vocab_size, bench.seed)
        with torch.inference_mode():
            for number, call in enumerate(capture(runner, inputs)):
                ops = bench.pricer.call_ops(call, shape)
                if ops:
                    sample = bench.timer.sample(call.calls)
                    yield Measurement(f"{name}: {call.name} {number}", call.name, sample=sample, ops=ops)
        yield Measurement(name, "captured")

    return Item(name, run)


def _sampling(bench: Bench, rows: int) -> Item:
    def run() -> Iterator[Measurement]:
        import torch

        from runtime import ops

        vocab = bench.config["vocab_size"]
        logits = [torch.randn(rows, vocab, device=bench.device) for _ in range(2)]
        seeds = torch.arange(rows, device=bench.device)
        steps = torch.zeros(rows, dtype=torch.int32, device=bench.device)
        one = torch.ones(rows, device=bench.device)
        top_k = torch.full((rows,), TOP_K, dtype=torch.int32, device=bench.device)
        sample = bench.timer.sample(
            [lambda x=x: ops.sample(x, one, top_k, one * TOP_P, seeds, steps) for x in logits]  # type: ignore[misc]
        )
        op = Op("sampling", OpClass.ELEMENTWISE, hbm_bytes=float(LOGIT_PASSES * rows * vocab * LOGIT_BYTES))
        yield Measurement(key, "sampling", sample=sample, ops=(op,))

    key = f"sampling of {rows}"
    return Item(key, run)
