"""One launch of a kernel or collective on one accelerator, as work to be priced; and what attention reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from hw_profiles.efficiency import WIDENING, OpClass
from simulator.model.architecture import BF16_BYTES, AttentionSpec, WeightDtype

LinkName = Literal["scale_up", "scale_out"]

ACTIVATION_BYTES = BF16_BYTES  # of one element of what flows between layers [B]

# Index scores of a row up to which some prefill kernels choose in another way. A row of vLLM 0.24's CSA modules on an
# H200 takes 0.1 us more than without a choice where it has 640 entries, 0.4 us with 1,800 and 0.02 us with 2,300;
# SGLang and TensorRT-LLM are slow below this length too. [entries]
SHORT_ROW = 2048

# Precision that a projection multiplies in, by storage type. 4-bit projections are weight-only (operands are
# widened on the way in); fp32 ones run on tensor cores as tf32.
MATMUL_DTYPE: dict[WeightDtype, str] = {
    "fp32": "tf32",
    "bf16": "bf16",
    "fp8": "fp8",
    "int8": "int8",
    "fp4": "bf16",
    "int4": "bf16",
}


@dataclass(frozen=True, slots=True)
class Op:
    """Work of `count` identical launches, each: FLOPs by matrix dtype, HBM bytes, bytes sent over `link`."""

    name: str
    op_class: OpClass
    flops: Mapping[str, float] = field(default_factory=dict)
    hbm_bytes: float = 0.0
    network_bytes: float = 0.0
    link: LinkName | None = None
    count: int = 1
    hops: float = 1  # latencies in sequence (levels of a collective, kernels of an op), or a share of one
    short_row_bytes: float = 0.0  # of the HBM bytes, those of rows that a kernel handles in another way than long ones
    row_flops: float = 0.0  # of one more row in every tile that may be ragged, in the dtype of `flops`
    again_bytes: float = 0.0  # of weights that further tiles read once more, not among the HBM bytes
    depth: float = 0.0  # length of the sums that a tile works through one after the other, whatever the op's size
    stored: WeightDtype | None = None  # type of weights that the kernel widens to its operands' on the way in


def operand_dtype(op: Op) -> str:
    """Operand dtype of most of the op's FLOPs; "" where it multiplies nothing."""
    return max(op.flops, key=lambda dtype: op.flops[dtype], default="")


def kernel_of(op: Op) -> str:
    """What kernel runs it: its operand dtype, and the type of weights that it widens, as in "fp8 x fp4"."""
    dtype = operand_dtype(op)
    return f"{dtype}{WIDENING}{op.stored}" if op.stored else dtype


class Reader(NamedTuple):
    """Entries a query at position p reads: min(floor(p / ratio), cap). A window of W is Reader(1, W)."""

    ratio: int
    cap: int | None


class ShortRows(NamedTuple):
    """Entries among which queries at position p choose: floor(p / ratio) where that is in (topk, most], else none."""

    ratio: int
    topk: int
    most: int


Counted = Reader | ShortRows


def window_reader(attention: AttentionSpec) -> Reader | None:
    """The recent tokens that the layer reads one by one."""
    return Reader(1, attention.window) if attention.window else None


def entry_reader(attention: AttentionSpec, queries: int = 1) -> Reader | None:
    """The entries beyond the window. `queries` rows of one sequence read the union of their selections,
    taken as `queries` times one selection (no overlap), at most all entries."""
    if not attention.ratio:
        return None
    topk = attention.indexer.topk * queries if attention.indexer else None
    return Reader(attention.ratio, topk)


def key_reader(attention: AttentionSpec) -> Reader | None:
    """The index keys that the layer scores; None where it has no indexer or takes another's selection."""
    if attention.indexer is None or attention.indexer.shares_layer is not None:
        return None
    return Reader(attention.ratio, None)


def readers(attentions: Iterable[AttentionSpec], queries: int = 1) -> tuple[Reader, ...]:
    """Every distinct reader of the layers, in a fixed order."""
    found: set[Reader] = set()
    for attention in attentions:
        candidates = (
            window_reader(attention),
            entry_reader(attention),
            entry_reader(attention, queries),
            key_reader(attention),
        )
        found.update(reader for reader in candidates if reader is not None)
    return tuple(sorted(found, key=lambda reader: (reader.ratio, reader.cap or 0)))


def short_rows(attention: AttentionSpec) -> ShortRows | None:
    """Index scores of prefill rows that choose among few; None where the layer chooses nothing, or more than few."""
    selection = entry_reader(attention)
    if key_reader(attention) is None or selection is None or selection.cap is None or selection.cap >= SHORT_ROW:
        return None
    return ShortRows(selection.ratio, selection.cap, SHORT_ROW)


def prefill_counts(attentions: Iterable[AttentionSpec], queries: int = 1) -> tuple[Counted, ...]:
    """All that the cores and indexers of prefill count: every reader, and choices among few."""
    given = tuple(attentions)
    return (*readers(given, queries), *sorted({rows for a in given if (rows := short_rows(a)) is not None}))


def selectors(attentions: Iterable[AttentionSpec]) -> tuple[Reader, ...]:
    """What a query of each layer that scores keys may select."""
    found = {reader for a in attentions if key_reader(a) and (reader := entry_reader(a)) is not None}
    return tuple(sorted(found, key=lambda reader: (reader.ratio, reader.cap or 0)))


def _sum_floor(last: int, ratio: int) -> int:
    """sum of floor(p / ratio) over p = 0..last.

    >>> _sum_floor(9, 4)
    8
    """
    full, rest = divmod(last + 1, ratio)
    return ratio * full * (full - 1) // 2 + full * rest


def entries_read(reader: Reader, new: int, past: int) -> int:
    """Entries read by the queries p = past+1 .. past+new together: sum of min(floor(p / ratio), cap).

    >>> entries_read(Reader(4, 2), new=12, past=0)  # 0 0 0 1 1 1 1 2 2 2 2 2
    14
    """
    last = past + new
    if reader.cap is None:
        return _sum_floor(last, reader.ratio) - _sum_floor(past, reader.ratio)
    # From position ratio * cap on, every query reads `cap`.
    full_from = reader.ratio * reader.cap
    rising_last = min(last, full_from - 1)
    rising_past = min(past, full_from - 1)
    rising = _sum_floor(rising_last, reader.ratio) - _sum_floor(rising_past, reader.ratio)
    return rising + reader.cap * (last - max(past, full_from - 1) if last >= full_from else 0)


def counted(what: Counted, new: int, past: int) -> int:
    """What the queries p = past+1 .. past+new add to a count.

    >>> counted(ShortRows(4, 1, 2), new=12, past=0)  # 0 0 0 0 0 0 0 2 2 2 2 0
    8
    """
    if isinstance(what, Reader):
        return entries_read(what, new, past)
    before = what.ratio * (what.topk + 1) - 1
    last = what.ratio * (what.most + 1) - 1
    return _sum_floor(min(max(past + new, before), last), what.ratio) - _sum_floor(
        min(max(past, before), last), what.ratio
    )
