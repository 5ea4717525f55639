"""How the weights of a checkpoint are stored, read from `quantization_config`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from simulator.model.architecture import BF16_BYTES, BYTE, FP4_GROUP, FP8_BLOCK, NIBBLE, WeightDtype
from simulator.model.families.reader import LONGEST_SHOWN, ConfigReader

# What a checkpoint may treat differently; routers, norms, embedding and LM head are never quantised here.
TensorKind = Literal["attention", "dense_ffn", "shared_expert", "expert"]

# Names of one tensor of each kind, as checkpoints of these families spell it, to try `ignore` patterns on.
_EXAMPLE_NAMES: dict[TensorKind, tuple[str, ...]] = {
    "attention": ("model.layers.{}.self_attn.q_proj", "model.layers.{}.self_attn.kv_a_proj_with_mqa"),
    "dense_ffn": ("model.layers.{}.mlp.gate_proj", "model.layers.{}.mlp.gate_up_proj"),
    "shared_expert": ("model.layers.{}.mlp.shared_experts.gate_proj",),
    "expert": ("model.layers.{}.mlp.experts.0.gate_proj", "model.layers.{}.mlp.experts.0.w1"),
}
_TORCH_DTYPES: dict[str, WeightDtype] = {"bfloat16": "bf16", "float16": "bf16", "float32": "fp32"}


@dataclass(frozen=True)
class Storage:
    """Stored type of one kind of tensor and, where the scales are unusual, its bytes per parameter."""

    dtype: WeightDtype
    bytes_per_param: float | None = None


@dataclass(frozen=True)
class Quantisation:
    """Storage of each kind of tensor of a checkpoint, and the precision its grouped GEMM multiplies in."""

    plain: Storage  # whatever is not quantised
    tensors: dict[TensorKind, Storage]
    expert_compute: WeightDtype
    assumptions: tuple[str, ...] = ()

    def of(self, tensor: TensorKind) -> Storage:
        return self.tensors.get(tensor, self.plain)


def _ignored(patterns: list[str], tensor: TensorKind, layers: int) -> bool:
    """Whether the checkpoint's own list leaves this kind of tensor in the plain type on every layer."""

    def hit(name: str, pattern: str) -> bool:
        if pattern.startswith("re:"):
            return re.match(pattern[3:], name) is not None
        # Whole dotted components, `*` standing for one: "gate" is the router, not "gate_proj".
        components = re.escape(pattern).replace(r"\*", r"[^.]*")
        return re.search(rf"(^|\.){components}(\.|$)", name) is not None

    return any(
        all(any(hit(name.format(i), pattern) for pattern in patterns) for i in range(layers))
        for name in _EXAMPLE_NAMES[tensor]
    )


def _plain(reader: ConfigReader) -> Storage:
    key = reader.first_of("dtype", "torch_dtype")
    name = reader.text(key, "bfloat16")
    if name not in _TORCH_DTYPES:
        raise reader.fail(f"key {key!r} is {name!r}, expected one of {', '.join(_TORCH_DTYPES)}")
    return Storage(_TORCH_DTYPES[name])


def _compressed_tensors(q: ConfigReader) -> tuple[Storage, WeightDtype]:
    """Storage and compute type of the one weight group of a compressed-tensors checkpoint."""
    groups = q.section("config_groups")
    if len(groups.config) != 1:
        raise q.fail(f"config_groups has {len(groups.config)} groups; only one is supported")
    weights = groups.section(next(iter(groups.config))).section("weights")
    bits, kind = weights.integer("num_bits"), weights.text("type", "int")
    if (bits, kind) == (8, "float"):
        return Storage("fp8"), "fp8"
    if (bits, kind) == (4, "int"):
        # packed int4 with one bf16 scale per group; multiplied in bf16 after dequantisation (W4A16)
        return Storage("int4", NIBBLE + BF16_BYTES / weights.integer("group_size", FP4_GROUP)), "bf16"
    if (bits, kind) == (4, "float"):
        # mxfp4: one byte of scale per group
        return Storage("fp4", NIBBLE + BYTE / weights.integer("group_size", FP4_GROUP)), "bf16"
    raise weights.fail(f"num_bits={bits} of type {kind!r} is not supported; use 8 float, 4 int or 4 float")


def read_quantisation(reader: ConfigReader, layers: int) -> Quantisation:
    """Storage of a checkpoint from its `quantization_config` (absent: everything in the plain type).

    Sources: transformers `quantizers/` (fp8 block, mxfp4, compressed-tensors keys); DeepSeek, Kimi and gpt-oss
    model cards. Weight-only formats multiply in bf16, the type their activations keep.
    """
    plain = _plain(reader)
    if not reader.has("quantization_config"):
        return Quantisation(plain, {}, plain.dtype)
    q = reader.section("quantization_config")
    method = q.text("quant_method", "")
    ignore_key = q.first_of("ignore", "modules_to_not_convert", "ignored_layers")
    patterns = q.config.get(ignore_key)
    if patterns is not None and not (
        isinstance(patterns, list) and all(isinstance(pattern, str) for pattern in patterns)
    ):
        raise q.fail(f"key {ignore_key!r} is {patterns!r:.{LONGEST_SHOWN}}, expected a list of strings")

    tensors: tuple[TensorKind, ...] = ("attention", "dense_ffn", "shared_expert", "expert")
    assumptions: tuple[str, ...] = ()
    compute: WeightDtype
    if method == "fp8":
        storage, compute = Storage("fp8"), "fp8"
        if q.text("scale_fmt", "") == "ue8m0":
            storage = Storage("fp8", BYTE + BYTE / FP8_BLOCK**2)  # one-byte block scales
    elif method == "mxfp4":
        storage, compute, tensors = Storage("fp4"), "bf16", ("expert",)
        assumptions = ("mxfp4 experts multiply in bf16 after dequantisation (weight-only)",)
    elif method == "compressed-tensors":
        storage, compute = _compressed_tensors(q)
        routed = reader.has(reader.first_of("n_routed_experts", "num_experts", "num_local_experts"))
        if patterns is None and routed and compute == "bf16":
            # Weight-only checkpoints of the routed families here quantise the experts alone.
            tensors = ("expert",)
            assumptions = ("only routed experts are quantised (the configuration has no ignore list)",)
        if compute == "bf16":
            assumptions += (f"{storage.dtype} weights multiply in bf16 after dequantisation (weight-only)",)
    else:
        raise q.fail(
            f"quant_method {method!r} is not supported; use fp8, mxfp4, compressed-tensors or leave "
            "quantization_config out"
        )
    if patterns:
        try:
            tensors = tuple(tensor for tensor in tensors if not _ignored(patterns, tensor, layers))
        except re.error as error:
            raise q.fail(f"key {ignore_key!r} holds a bad regular expression: {error}") from error
    return Quantisation(
        plain,
        dict.fromkeys(tensors, storage),
        compute if "expert" in tensors else plain.dtype,
        assumptions,
    )
