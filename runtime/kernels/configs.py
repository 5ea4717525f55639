"""What kernels know about the device: its architecture, its size, and a table of tile shapes.

Tiles are chosen from a table, not by an autotuner: nothing is measured at import or at first use, and a
machine without a GPU can compile exactly what a GPU would run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import triton

ARCHITECTURES = ("sm80", "sm90", "sm100", "gfx942")
LEAST_ROWS = 16  # of a tile that a matrix unit takes (Triton's `tl.dot`)
BULK_COPY_BYTES = 16  # a bulk tensor copy needs rows of whole units of that many
SKINNY_ROWS = 64  # of a dense product, up to which it streams weights (assumed)
SMALL_TILE = 32  # rows of a grouped tile, up to which it needs few warps (assumed)
WIDE_VALUES = 128  # columns of values, beyond which their accumulator takes half of the registers

# Compute units, for persistent grids when no device can be asked. Sources: NVIDIA A100, H100 and B200 and
# AMD MI300X data sheets (108, 132, 148 SMs; 304 CUs).
_COMPUTE_UNITS = {"sm80": 108, "sm90": 132, "sm100": 148, "gfx942": 304, "interpreter": 3}


@dataclass(frozen=True)
class Tile:
    """Block of the output (m, n), step along the inner axis (k), warps a program, pipeline stages."""

    m: int
    n: int
    k: int
    warps: int = 4
    stages: int = 3


# The interpreter pays per tensor operation, so its tiles are large in k and otherwise small enough that the
# odd shapes of the tests still need several tiles. The others are assumed: what fits the shared memory and registers of
# each, large enough to be bound by the matrix unit.
_DENSE_FP8 = {
    "sm80": Tile(128, 128, 128, 8, 3),
    "sm90": Tile(128, 128, 128, 8, 4),
    "sm100": Tile(128, 128, 128, 8, 4),
    "gfx942": Tile(128, 128, 128, 8, 1),
    "interpreter": Tile(16, 64, 128),
}
_DENSE_FP8_SKINNY = {  # few rows: weight streaming, so a deep pipeline of narrow tiles over all compute units
    "sm80": Tile(16, 64, 128, 4, 4),
    "sm90": Tile(16, 64, 128, 4, 6),
    "sm100": Tile(16, 64, 128, 4, 6),
    "gfx942": Tile(16, 64, 128, 4, 1),
    "interpreter": Tile(16, 64, 128),
}
# Grouped products, by stored weight format; m comes from the alignment. n is the width per accumulator.
_GROUPED = {
    ("sm80", "float"): Tile(0, 64, 64, 8, 3),
    ("sm90", "float"): Tile(0, 128, 64, 8, 3),
    ("sm100", "float"): Tile(0, 128, 64, 8, 3),
    ("gfx942", "float"): Tile(0, 64, 64, 4, 1),
    ("sm90", "fp8"): Tile(0, 128, 128, 8, 3),
    ("sm100", "fp8"): Tile(0, 128, 128, 8, 3),
    ("gfx942", "fp8"): Tile(0, 64, 128, 4, 1),
    ("sm80", "fp4"): Tile(0, 32, 64, 8, 2),
    ("sm90", "fp4"): Tile(0, 64, 128, 8, 3),
    ("sm100", "fp4"): Tile(0, 64, 128, 8, 3),
    ("gfx942", "fp4"): Tile(0, 64, 128, 4, 1),
    ("interpreter", "float"): Tile(0, 32, 64),
    ("interpreter", "fp8"): Tile(0, 32, 128),
    ("interpreter", "fp4"): Tile(0, 32, 128),
}

# Attention: m query rows (heads of one token, or tokens of one head), n keys a step. Wide: value rows over 128
# columns, whose accumulator takes half of the registers.
_ATTENTION_WIDE = {
    "sm80": Tile(16, 32, 0, 4, 2),
    "sm90": Tile(64, 32, 0, 8, 3),
    "sm100": Tile(64, 32, 0, 8, 2),
    "gfx942": Tile(16, 32, 0, 4, 1),
    "interpreter": Tile(16, 32, 0),
}
_ATTENTION = {
    "sm80": Tile(64, 64, 0, 4, 2),
    "sm90": Tile(128, 64, 0, 8, 3),
    "sm100": Tile(128, 64, 0, 8, 3),
    "gfx942": Tile(64, 64, 0, 4, 1),
    "interpreter": Tile(16, 32, 0),
}

_forced: list[str] = []


@contextmanager
def architecture(name: str) -> Iterator[None]:
    """Within the block, kernels are configured for `name` whatever the device: for compiling without a
    GPU.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"architecture {name!r} is not known; use one of {', '.join(ARCHITECTURES)}")
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


@lru_cache
def _device_architecture(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    amd = torch.version.hip is not None
    name = properties.gcnArchName.split(":")[0] if amd else f"sm{properties.major}{properties.minor}"
    # Successors with at least the same shared memory take the table of their elder (the small parts sm86,
    # sm89 and sm120 have less: 99 KiB, so they are refused rather than failed on launch).
    name = {"sm103": "sm100", "gfx950": "gfx942"}.get(name, name)
    if name not in ARCHITECTURES:
        raise ValueError(f"no kernel tiles for device architecture {name}; known: {', '.join(ARCHITECTURES)}")
    return name


def architecture_of(device: torch.device) -> str:
    """Key of the tile tables; a CPU tensor is being interpreted."""
    if _forced:
        return _forced[-1]
    return _device_architecture(device.index or 0) if device.type == "cuda" else "interpreter"


def compute_units(device: torch.device) -> int:
    """Programs that run at once: the size of a persistent grid."""
    if device.type == "cuda" and not _forced:
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    return _COMPUTE_UNITS[architecture_of(device)]


def dense_fp8_tile(device: torch.device, rows: int) -> Tile:
    table = _DENSE_FP8_SKINNY if rows <= SKINNY_ROWS else _DENSE_FP8
    return table[architecture_of(device)]


def weight_format(weight: torch.Tensor, scale: torch.Tensor | None) -> str:
    """float, fp8, fp4 (MXFP4: exponent bytes) or nvfp4 (e4m3 scales), by the dtypes of values and scales."""
    if weight.dtype == torch.uint8:
        return "fp4" if scale is None or scale.dtype == torch.uint8 else "nvfp4"
    return "fp8" if weight.dtype == torch.float8_e4m3fn else "float"


def grouped_tile(device: torch.device, weight: torch.Tensor, block_m: int) -> Tile:
    """Tile of a grouped product for a stored weight, shrunk to the alignment's rows."""
    form = {torch.uint8: "fp4", torch.float8_e4m3fn: "fp8"}.get(weight.dtype, "float")
    arch = architecture_of(device)
    if (arch, form) not in _GROUPED:
        raise ValueError(f"{form} expert weights have no matrix unit on {arch}; dequantise them to bfloat16")
    tile = _GROUPED[arch, form]
    if block_m > SMALL_TILE or arch == "interpreter":
        return replace(tile, m=block_m)
    # A small tile: fewer warps to feed, a deeper pipeline. Decoding fp4 takes registers, so it keeps its warps.
    warps = tile.warps if form == "fp4" else 4
    return replace(tile, m=block_m, warps=warps, stages=tile.stages + (tile.stages > 1))


def attention_tile(device: torch.device, rows: int, wide: bool = True) -> Tile:
    """m is at most what `rows` need, and at least the LEAST_ROWS a matrix unit takes."""
    tile = (_ATTENTION_WIDE if wide else _ATTENTION)[architecture_of(device)]
    m = max(LEAST_ROWS, min(tile.m, triton.next_power_of_2(rows)))
    return replace(tile, m=m, warps=4 if m < 64 else tile.warps)


def uses_descriptors(device: torch.device) -> bool:
    """Whether bulk tensor copies (TMA) exist; the interpreter runs the same path for its tests."""
    return architecture_of(device) in ("sm90", "sm100", "interpreter")
