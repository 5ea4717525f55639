"""Quantisation schemes: how weights are stored, and what they are multiplied in.

Sources: modelopt's `quant_algo` names (NVIDIA TensorRT Model Optimizer, `export/quant_utils`, and vLLM's
`quantization/modelopt.py`), the schemes of compressed-tensors, OCP microscaling formats 1.0, bitsandbytes (blocks of 64
under one scale; QLoRA, arXiv 2305.14314, for double quantisation).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from simulator.model.architecture import BF16_BYTES, BYTE, F32_BYTES, FP4_GROUP, FP8_BLOCK, NIBBLE, WeightDtype

NVFP4_GROUP = 16  # weights under one fp8 scale (NVIDIA modelopt)
INT4_GROUP = 128  # weights under one scale where AWQ, GPTQ and modelopt do not say (their own default)
BITSANDBYTES_BLOCK = 64  # weights under one absmax (bitsandbytes)
DOUBLE_QUANTISED_BLOCKS = 256  # absmax values under one f32 scale of their own (QLoRA)


@dataclass(frozen=True)
class Scheme:
    """How the weights of a projection are stored, and the precision that its product takes its operands in.

    bytes_per_param: scales and zero points included. [B]
    """

    name: str
    dtype: WeightDtype
    bytes_per_param: float
    compute: WeightDtype


def block_fp8(rows: int = FP8_BLOCK, columns: int = FP8_BLOCK, scale_bytes: float = F32_BYTES) -> Scheme:
    """fp8 with one scale for each block of weights.

    >>> block_fp8().bytes_per_param
    1.000244140625
    """
    return Scheme("FP8 blocks", "fp8", BYTE + scale_bytes / (rows * columns), "fp8")


def plain_fp8() -> Scheme:
    """fp8 with one scale a tensor or a channel, which take no room."""
    return Scheme("FP8", "fp8", BYTE, "fp8")


def weight_only_fp8() -> Scheme:
    """fp8 that is widened before the product."""
    return Scheme("FP8, weights alone", "fp8", BYTE, "bf16")


def mxfp8(group: int = FP4_GROUP) -> Scheme:
    """fp8 with a one-byte exponent for each group."""
    return Scheme("MXFP8", "fp8", BYTE + BYTE / group, "fp8")


def nvfp4(group: int = NVFP4_GROUP, compute: WeightDtype = "fp4") -> Scheme:
    """fp4 with an fp8 scale for each group.

    >>> nvfp4().bytes_per_param
    0.5625
    """
    return Scheme("NVFP4" + _activations(compute), "fp4", NIBBLE + BYTE / group, compute)


def mxfp4(group: int = FP4_GROUP, compute: WeightDtype = "fp4") -> Scheme:
    """fp4 with a one-byte exponent for each group.

    >>> mxfp4().bytes_per_param
    0.53125
    """
    return Scheme("MXFP4" + _activations(compute), "fp4", NIBBLE + BYTE / group, compute)


def integers(
    bits: int, group: int | None = None, *, zero_points: bool = False, compute: WeightDtype = "bf16"
) -> Scheme:
    """Integers of up to 8 bits with a bf16 scale, and maybe a zero point of as many bits, for each group; None: one
    scale a column, which takes no room.

    >>> integers(4, 32).bytes_per_param, integers(4, 128, zero_points=True).bytes_per_param
    (0.5625, 0.51953125)
    """
    size = bits / 8
    scales = (BF16_BYTES + (size if zero_points else 0.0)) / group if group else 0.0
    dtype: WeightDtype = "int8" if bits > 4 else "int4"
    return Scheme(f"INT{bits}{_activations(compute)}", dtype, size + scales, compute)


def bitsandbytes_4bit(double_quantised: bool) -> Scheme:
    """nf4 or fp4 with an f32 absmax for each block, itself in 8 bits with double quantisation.

    >>> bitsandbytes_4bit(True).bytes_per_param, bitsandbytes_4bit(False).bytes_per_param
    (0.515869140625, 0.5625)
    """
    absmax = BYTE + F32_BYTES / DOUBLE_QUANTISED_BLOCKS if double_quantised else F32_BYTES
    return Scheme("bitsandbytes 4-bit", "int4", NIBBLE + absmax / BITSANDBYTES_BLOCK, "bf16")


def _activations(compute: WeightDtype) -> str:
    """What a scheme's name says of activations that are wider than its weights."""
    return {"bf16": ", weights alone", "fp8": " x FP8"}.get(compute, "")


# Scheme of each `quant_algo`, given the group size of the file or None.
ALGORITHMS: dict[str, Callable[[int | None], Scheme]] = {
    "FP8": lambda group: plain_fp8(),
    "FP8_PER_CHANNEL_PER_TOKEN": lambda group: plain_fp8(),
    "FP8_PB_WO": lambda group: block_fp8(),
    "FP8_PB_REAL": lambda group: block_fp8(),
    "FP8_BLOCK_SCALES": lambda group: block_fp8(),
    "MXFP8": lambda group: mxfp8(group or FP4_GROUP),
    "NVFP4": lambda group: nvfp4(group or NVFP4_GROUP),
    "NVFP4_AWQ": lambda group: nvfp4(group or NVFP4_GROUP),
    "NVFP4_SVD": lambda group: nvfp4(group or NVFP4_GROUP),
    "W4A4_NVFP4": lambda group: nvfp4(group or NVFP4_GROUP),
    "W4A8_NVFP4_FP8": lambda group: nvfp4(group or NVFP4_GROUP, "fp8"),
    "W4A16_NVFP4": lambda group: nvfp4(group or NVFP4_GROUP, "bf16"),
    "MXFP4": lambda group: mxfp4(group or FP4_GROUP),
    "W4A8_MXFP4_FP8": lambda group: mxfp4(group or FP4_GROUP, "fp8"),
    "W4A16_MXFP4": lambda group: mxfp4(group or FP4_GROUP, "bf16"),
    "W4A16_AWQ": lambda group: integers(4, group or INT4_GROUP),
    "W4A16": lambda group: integers(4, group),
    "W4A8_AWQ": lambda group: integers(4, group or INT4_GROUP, compute="fp8"),
    "INT8_SQ": lambda group: integers(8, compute="int8"),
    "INT8": lambda group: integers(8, compute="int8"),
    "W8A8_SQ_PER_CHANNEL": lambda group: integers(8, compute="int8"),
    "W8A16": lambda group: integers(8),
}
