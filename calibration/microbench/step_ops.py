"""What the simulator prices for a step of the runtime, and for one captured call within it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from calibration.microbench.capture import Captured
from calibration.microbench.measurement import EngineStep
from hw_profiles.efficiency import OpClass
from hw_profiles.profile import HardwareProfile
from simulator.model import attention as cores
from simulator.model import layers as layer_ops
from simulator.model.architecture import LayerSpec, ModelSpec
from simulator.model.moe import unfused_ops, uniform_load
from simulator.model.ops import ACTIVATION_BYTES, MATMUL_DTYPE, Op, Reader, counted, key_reader
from simulator.model.parallelism import Parallelism
from simulator.model.step import NO_DECODE, Chunk, DecodeLoad, StepOps

SINGLE = Parallelism()
MATRIX_DTYPE = {"torch.float32": MATMUL_DTYPE["fp32"], "torch.bfloat16": "bf16", "torch.float8_e4m3fn": "fp8"}
# Captured op -> the simulator's op of the same work within a row of the layer.
ROW_OPS = {
    "compress": "compressor",
    "mhc_pre": "mHC pre",
    "mhc_post": "mHC post",
    "router_gate": "choice of experts",
}
CORE_OPS = {
    "window_attention_prefill": "attention core",
    "paged_attention_prefill": "attention core",
    "window_attention_decode": "attention core",
    "paged_attention_decode": "attention core",
    "indexer_scores": "index scores",
    "top_k": "top-k of index scores",
}
EXPERT_OPS = {
    "grouped_gemm1": ("expert up GEMM", "expert activation"),
    "grouped_gemm2_combine": ("expert down GEMM", "sum of choices"),
}


class StepPricer:
    """Ops of steps of one model on one accelerator."""

    def __init__(self, model: ModelSpec, hardware: HardwareProfile) -> None:
        self.model = model
        self.steps = StepOps(model, hardware, SINGLE, 0)

    def load(self, shape: EngineStep) -> tuple[list[Chunk], DecodeLoad]:
        """The step in the words of `simulator.model.latency`."""
        contexts = shape.contexts
        load = DecodeLoad.of(contexts, self.steps.caps) if contexts else NO_DECODE
        return [Chunk(new, past) for new, past in shape.prefills], load

    def ops(self, shape: EngineStep) -> tuple[Op, ...]:
        """The whole step."""
        chunks, load = self.load(shape)
        return tuple(self.steps.all_ops(self.steps.shape(chunks, load, None)))

    def call_ops(self, call: Captured, shape: EngineStep) -> tuple[Op, ...]:
        """One captured call of a step that is all prefill or all decode; () where the simulator has no op."""
        if call.name == "linear":
            return (_linear(call.arguments),)
        if call.name in ("rms_norm", "rope", "norm_rope_store"):
            moved = 2 * call.arguments[0].numel() * ACTIVATION_BYTES
            return (Op(call.name, OpClass.ELEMENTWISE, hbm_bytes=moved),)
        layer = self._layer(call)
        if layer is None:
            return ()
        if call.name in EXPERT_OPS:
            load = uniform_load(layer.ffn, _rows(shape), 1)
            found = {op.name: op for op in unfused_ops(layer.ffn, load, 1)}
            return tuple(found[name] for name in EXPERT_OPS[call.name])
        if call.name in ROW_OPS:
            ops = layer_ops.row_ops(layer, self.model, _rows(shape), self.steps.cut)
            return _once(ops, ROW_OPS[call.name])
        return _once(self._core_ops(layer, shape), CORE_OPS[call.name])

    def _core_ops(self, layer: LayerSpec, shape: EngineStep) -> list[Op]:
        """The runtime selects at every length."""
        reads: Mapping[Reader, float]
        if shape.contexts:
            contexts = shape.contexts
            reads = {
                r: sum(min(c, r.ratio * r.cap) if r.cap else c for c in contexts) / r.ratio for r in self.steps.readers
            }
            return cores.decode_core_ops(layer.attention, len(contexts), 1, reads, self.steps.cut, selects=True)
        counts = {c: sum(counted(c, new, past) for new, past in shape.prefills) for c in self.steps.prefill_counts}
        new, past = (sum(column) for column in zip(*shape.prefills, strict=True))
        chunks = len(shape.prefills)
        return cores.prefill_core_ops(layer.attention, new, past, chunks, counts, self.steps.cut, selects=True)

    def _layer(self, call: Captured) -> LayerSpec | None:
        """A layer of the kind that makes such calls; compressors of index keys have no op of their own."""
        layers = self.model.layers
        if call.name in ("grouped_gemm1", "grouped_gemm2_combine", "router_gate"):
            return next((x for x in layers if x.ffn.experts), None)
        if call.name in ("indexer_scores", "top_k"):
            return next((x for x in layers if key_reader(x.attention) is not None), None)
        if call.name.startswith("mhc"):
            return next((x for x in layers if x.mixing), None)
        if call.name == "compress":
            ratio, dim = call.arguments[12], call.arguments[8].shape[0]
            return next((x for x in layers if x.attention.ratio == ratio and x.attention.v_dim == dim), None)
        if call.name.startswith("window_attention"):
            return self._window_layer(call)
        return layers[0]

    def _window_layer(self, call: Captured) -> LayerSpec | None:
        """By the entries that the call reads besides the window: none, few a block (HCA), many (CSA)."""
        first = 9 if call.name.endswith("prefill") else 6
        entries, table = call.arguments[first : first + 2]
        if entries is None or table is None:
            return next((x for x in self.model.layers if not x.attention.ratio), None)
        ratios = sorted({x.attention.ratio for x in self.model.layers if x.attention.ratio})
        # entries: [blocks, entries a block, D]; the block size is a multiple of every ratio
        per_block = int(entries.shape[1])
        ratio = ratios[-1] if len(ratios) > 1 and per_block * ratios[0] < ratios[-1] else ratios[0]
        return next(x for x in self.model.layers if x.attention.ratio == ratio)


def _rows(shape: EngineStep) -> int:
    return len(shape.contexts) + sum(new for new, _ in shape.prefills)


def _once(ops: list[Op], name: str) -> tuple[Op, ...]:
    """The ops of that name, each as one launch."""
    return tuple(replace(op, count=1) for op in ops if op.name == name)


def _linear(arguments: tuple[Any, ...]) -> Op:
    """x [M, K] by weight [N, K]."""
    x, weight = arguments[0], arguments[1]
    outputs, inputs = weight.shape
    rows = x.numel() // inputs
    return Op(
        "linear",
        OpClass.DENSE_GEMM,
        {MATRIX_DTYPE[str(weight.dtype)]: 2.0 * rows * inputs * outputs},
        weight.numel() * weight.element_size() + rows * (inputs + outputs) * ACTIVATION_BYTES,
        row_flops=2.0 * inputs * outputs,
    )
