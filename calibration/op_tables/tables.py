"""Measured op tables as data frames: CSV files of a folder, or the parquet files of the aiconfigurator-core wheel.

Columns are the wheel's own (`system`, `db_framework`, `db_version`, shape columns, `latency`); values are untouched.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pandas as pd

WHEEL = "aiconfigurator_core"

# Families that `calibration.op_tables.table_ops` can turn into ops: file names in the wheel and of CSV samples.
FAMILIES = (
    "gemm",
    "moe",
    "context_mla",
    "generation_mla",
    "context_attention",
    "generation_attention",
    "dsv4_csa_context_module",
    "dsv4_csa_generation_module",
    "dsv4_hca_context_module",
    "dsv4_hca_generation_module",
    "dsv4_megamoe",
    "mhc_module",
    "gdn",
    "nccl",
    "custom_allreduce",
    "deepep_low_latency",
)
# Accelerators whose tables are compared for copies.
SCREENED = ("h100_sxm", "h200_sxm", "b200_sxm", "b300_sxm", "gb200", "gb300")
# Tables of a library that every stack uses.
SHARED = ("nccl", "dsv4_megamoe", "deepep_low_latency")


class TableError(ValueError):
    """No measured tables to read; the message says where they are looked for."""


@dataclass(frozen=True)
class Tables:
    """Frames by family, of one accelerator and one stack."""

    system: str
    stack: str
    frames: dict[str, pd.DataFrame]
    origin: str


def read_tables(system: str, stack: str, folder: Path | None = None, families: Collection[str] = FAMILIES) -> Tables:
    """Tables of `folder` (one CSV per family), or of the installed wheel where no folder is given."""
    if folder is not None:
        return _from_csv(system, stack, folder, families)
    return _from_wheel(system, stack, families)


def systems(folder: Path | None, stack: str) -> list[str]:
    """Accelerators with tables of `stack`."""
    if folder is not None:
        found = [pd.read_csv(path, usecols=["system", "db_framework"]) for path in folder.glob("gemm.csv")]
        return sorted({name for f in found for name in f.loc[f["db_framework"].eq(stack), "system"]})
    root = _wheel_root()
    return sorted(
        path.name
        for path in root.iterdir()
        if path.is_dir() and any(_paths(path, "gemm", stack)) and path.name in SCREENED
    )


def _from_csv(system: str, stack: str, folder: Path, families: Collection[str]) -> Tables:
    if not folder.is_dir():
        raise TableError(f"{folder} is not a folder of op tables; give one with files such as gemm.csv, moe.csv")
    frames = {}
    for family in families:
        path = folder / f"{family}.csv"
        if not path.is_file():
            continue
        frame = pd.read_csv(path, low_memory=False)
        wanted = frame["system"].eq(system)
        if family not in SHARED:
            wanted &= frame["db_framework"].eq(stack)
        if wanted.any():
            frames[family] = frame[wanted].reset_index(drop=True)
    if not frames:
        raise TableError(f"{folder} has no row of system {system!r} and stack {stack!r}")
    return Tables(system, stack, frames, "op tables of aiconfigurator-core (sample)")


def _wheel_root() -> Path:
    spec = find_spec(WHEEL)
    if spec is None or not spec.submodule_search_locations:
        raise TableError(
            "the measured op tables are not installed; install the extra `vendor-data`, or give a folder of CSV tables"
        )
    return Path(spec.submodule_search_locations[0]) / "systems" / "data"


def _from_wheel(system: str, stack: str, families: Collection[str]) -> Tables:
    root = _wheel_root() / system
    if not root.is_dir():
        known = sorted(path.name for path in root.parent.iterdir() if path.is_dir())
        raise TableError(f"the wheel has no tables of system {system!r}; it has {', '.join(known)}")
    frames = {}
    for family in families:
        found = [
            _newest(root, family, owner) for owner in ((stack, "nccl", "sglang") if family in SHARED else (stack,))
        ]
        frame = next((frame for frame in found if frame is not None), None)
        if frame is not None:
            frames[family] = frame
    if not frames:
        raise TableError(f"the wheel has no tables of stack {stack!r} on {system}")
    return Tables(system, stack, frames, "op tables of aiconfigurator-core")


def _newest(root: Path, family: str, owner: str) -> pd.DataFrame | None:
    """The table of the newest version of `owner` that has one."""
    paths = _paths(root, family, owner)
    if not paths:
        return None
    newest = max(paths, key=lambda p: _version(p.parent.name))
    frame = pd.read_parquet(newest).reset_index(drop=True)
    frame = frame.drop(columns=[c for c in ("framework", "version", "device") if c in frame])
    return frame.assign(system=root.name, db_framework=owner, db_version=newest.parent.name)


def _paths(root: Path, family: str, owner: str) -> list[Path]:
    """Parquet files of a family under the stack or library `owner`, empty markers left out."""
    return [
        path
        for path in root.rglob(f"{family}*.parquet")
        if owner in path.relative_to(root).parts and path.stem in (family, f"{family}_perf")
    ]


def _version(text: str) -> tuple[int, ...]:
    """
    >>> _version("1.3.0rc20") < _version("1.3.0rc23")
    True
    """
    digits = "".join(c if c.isdigit() else " " for c in text).split()
    return tuple(int(d) for d in digits)
