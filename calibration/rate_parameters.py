"""Parameters of `ClassEfficiency` as a fit moves them: logs, laid out flat, with bounds and priors; and the class that
fitted ones make.

Kernels of one class share a parameter where `_kernel_for` says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hw_profiles.efficiency import ClassEfficiency, OpClass
from simulator.model.arrays import Floats
from simulator.model.ops import Op, kernel_of

# One parameter: field, class, and the kernel it is of (operand dtype, and that of weights it widens; "" for ops that
# multiply nothing, and for fields that all kernels share).
Slot = tuple[str, OpClass, str]
FIELDS = ("matrix_fraction", "memory_fraction", "network_fraction", "latency_s", "exponent", "tile_rows",
          "short_row_factor", "reread_share", "depth_s")  # fmt: skip
# Classes whose kernels share a memory fraction: dense products stream their weights alike in every precision.
SHARED_MEMORY = (OpClass.DENSE_GEMM,)
# Classes whose kernels have floors of their own: SGLang casts the queries of FP8 caches before the core, in kernels
# with which a decode step of grouped heads takes 17 us at least instead of 10; vLLM and TensorRT-LLM do not. Experts of
# one token take 20 us in NVFP4 and 50 us in FP8, beyond what their bytes explain. MLA decode takes 10 us at least where
# the cache is FP8, 15 us where it is bf16.
OWN_FLOORS = (OpClass.ATTENTION_DECODE, OpClass.LATENT_DECODE, OpClass.GROUPED_GEMM)
OWN_REREADS = (OpClass.GROUPED_GEMM,)
# Bounds of the search, wide of what any table showed (assumed). Fractions are of data-sheet peaks, latencies in
# seconds, `depth_s` in seconds for each term of a sum, exponent, factors and shares plain numbers, tiles in rows.
LOWER = {
    "matrix_fraction": 0.01, "memory_fraction": 0.001, "network_fraction": 0.02, "latency_s": 2e-7, "exponent": 1.0,
    "tile_rows": 1e-9,  # none
    "short_row_factor": 1.0,
    "reread_share": 0.01,
    "depth_s": 1e-13,
}  # fmt: skip
UPPER = {
    "matrix_fraction": 1.0, "memory_fraction": 1.0, "network_fraction": 1.0, "latency_s": 4e-4, "exponent": 8.0,
    "tile_rows": 1024.0,
    "short_row_factor": 1000.0,
    "reread_share": 2.0,
    "depth_s": 2e-9,
}  # fmt: skip
RAGGED = (
    OpClass.DENSE_GEMM, OpClass.ATTENTION_PREFILL, OpClass.LATENT_PREFILL, OpClass.SPARSE_PREFILL,
    OpClass.RECURRENT_PREFILL,
)  # fmt: skip
TILE_ROWS = 32.0  # rows of a ragged tile where a fit of them starts (assumed)
SHORT_ROW_FACTOR = 100.0  # times the time of long rows, where a fit starts (assumed)
DEEP = (OpClass.DENSE_GEMM,)  # whose kernels have sums of a pace of their own
# Width of the priors in log units: a factor of e in rates and floors, of 1.5 in the exponent. Each weighs as much
# as one measurement. Assumed.
UNIT_WIDTH = 1.0  # of the other fields
PRIOR_WIDTH = {"exponent": 0.4, "tile_rows": 2.0, "short_row_factor": 2.0, "reread_share": 0.5, "depth_s": 0.5}


def ragged(classes: Mapping[OpClass, ClassEfficiency]) -> dict[OpClass, ClassEfficiency]:
    """The same rates, with ragged tiles that a fit may then make smaller or larger."""
    given = {"tile_rows": TILE_ROWS}
    return {name: rates.model_copy(update=given) if name in RAGGED else rates for name, rates in classes.items()}


def with_short_rows(classes: Mapping[OpClass, ClassEfficiency]) -> dict[OpClass, ClassEfficiency]:
    """The same rates, with slow choices among few, which fits do not find from a factor of 1."""
    selection = classes[OpClass.SELECTION].model_copy(update={"short_row_factor": SHORT_ROW_FACTOR})
    return {**classes, OpClass.SELECTION: selection}


def _kernel_for(field: str, op_class: OpClass, kernel: str) -> str:
    """`kernel` where each has a `field` of its own in the class, else that of all."""
    own = {
        "matrix_fraction": True,
        "memory_fraction": op_class not in SHARED_MEMORY,
        "latency_s": op_class in OWN_FLOORS,
        "depth_s": op_class in DEEP,
        "reread_share": op_class in OWN_REREADS,
    }
    return kernel if own.get(field) else ""


class Parameters:
    """Log parameters of every class, laid out flat."""

    def __init__(self, slots: Sequence[Slot], logs: Floats) -> None:
        self.slots, self.logs = tuple(slots), logs
        self.place = {slot: i for i, slot in enumerate(self.slots)}

    @classmethod
    def of(cls, classes: dict[OpClass, ClassEfficiency], kernels: dict[OpClass, set[str]]) -> Parameters:
        slots: list[Slot] = []
        values: list[float] = []
        for op_class, rates in classes.items():
            given = {
                "matrix_fraction": rates.matrix_fraction_of,
                "memory_fraction": rates.memory_fraction_of,
                "latency_s": rates.latency_s_of,
                "depth_s": rates.depth_s_of,
                "reread_share": rates.reread_share_of,
            }
            for field in FIELDS:
                for kernel in sorted({_kernel_for(field, op_class, k) for k in kernels.get(op_class, {""})}):
                    slots.append((field, op_class, kernel))
                    values.append(given[field](kernel) if field in given else getattr(rates, field))
        low = np.array([LOWER[field] for field, _, _ in slots])
        high = np.array([UPPER[field] for field, _, _ in slots])
        return cls(slots, np.log(np.clip(values, low, high)))

    def with_logs(self, logs: Floats) -> Parameters:
        return Parameters(self.slots, logs)

    def value(self, field: str, op_class: OpClass, kernel: str = "") -> float:
        return float(np.exp(self.logs[self.place[field, op_class, kernel]]))

    def place_for(self, field: str, op: Op) -> int:
        """Place of the parameter that prices `op`."""
        return self.place[field, op.op_class, _kernel_for(field, op.op_class, kernel_of(op))]

    def by_kernel(self, field: str, op_class: OpClass) -> dict[str, float]:
        """Values of a field that differs by kernel, "" for ops that multiply nothing; none where all share it."""
        found = sorted(k for f, c, k in self.slots if (f, c) == (field, op_class))
        return {} if found == [""] else {kernel: self.value(field, op_class, kernel) for kernel in found}

    def _rest(self, field: str, op_class: OpClass) -> float:
        """Of kernels without a row: the least of those that have one and multiply, or what all share."""
        own = [value for kernel, value in self.by_kernel(field, op_class).items() if kernel]
        return min(own) if own else self.value(field, op_class)

    def fractions(self, op_class: OpClass, before: ClassEfficiency) -> dict[str, float | dict[str, float]]:
        """Matrix and memory fractions as fields of a `ClassEfficiency`, rounded. Kernels without a row take the least
        of those that have one."""
        matrix, memory = ({k: round(v, 4) for k, v in self.by_kernel(f, op_class).items()} for f in FIELDS[:2])
        matrix.pop("", None)
        return {
            "matrix_fraction": min(matrix.values(), default=before.matrix_fraction),
            "matrix_fraction_by": matrix,
            "memory_fraction": round(self._rest("memory_fraction", op_class), 4),
            "memory_fraction_by": memory,
        }

    def floors(self, op_class: OpClass) -> dict[str, float | dict[str, float]]:
        """Latencies, and depths of deep products, as fields of a `ClassEfficiency`, in four digits. Kernels without a
        row take the least."""
        found: dict[str, float | dict[str, float]] = {}
        for field in ("latency_s", "depth_s") if op_class in DEEP else ("latency_s",):
            own = {kernel: float(f"{value:.4g}") for kernel, value in self.by_kernel(field, op_class).items()}
            found |= {field: float(f"{self._rest(field, op_class):.4g}"), f"{field}_by": own}
        return found

    def rereads(self, op_class: OpClass) -> dict[str, float | dict[str, float]]:
        """Shares of reading again as fields of a `ClassEfficiency`, rounded. Kernels without a row take the mean."""
        own = {k: round(v, 3) for k, v in self.by_kernel("reread_share", op_class).items() if k}
        return {"reread_share": round(sum(own.values()) / len(own), 3), "reread_share_by": own} if own else {}


def residual_sigma(residuals: Floats, *, clipped_share: float) -> float:
    """Standard deviation of logs of measured / predicted.

    clipped_share: of the residuals at either end, drawn in to the quantile before (0: none is).
    """
    return float(np.std(np.clip(residuals, *np.quantile(residuals, (clipped_share, 1 - clipped_share)))))


def fitted_class(
    parameters: Parameters,
    op_class: OpClass,
    before: ClassEfficiency,
    *,
    network_fraction: float,
    sigma: float,
    source: str,
) -> ClassEfficiency:
    """`before` with what was fitted. sigma: of `residual_sigma`; network_fraction: fitted, in as many digits as the
    profile holds."""
    return before.model_copy(
        update={
            **parameters.fractions(op_class, before),
            "network_fraction": network_fraction,
            **parameters.floors(op_class),
            **parameters.rereads(op_class),
            "exponent": round(parameters.value("exponent", op_class), 3),
            "tile_rows": round(parameters.value("tile_rows", op_class), 2),
            "short_row_factor": round(parameters.value("short_row_factor", op_class), 2),
            "residual_sigma": round(sigma, 3),
            "source": source,
            "assumed": False,
        }
    )
