"""The machine in front of us: what it is called, what runs on it, and its entry in the catalogue or one made for it."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from hw_profiles import catalog

DeviceKind = Literal["cpu", "cuda"]


class DeviceError(ValueError):
    """A device that is not there or cannot be measured; the message names the way out."""


@dataclass(frozen=True)
class Machine:
    """Where figures were measured. `name` is the accelerator's name in profiles.

    clocks: of the GPU, as the driver tells them when measuring starts; empty on a CPU.
    """

    device: DeviceKind
    name: str
    display_name: str
    memory_bytes: int
    threads: int
    driver: str
    clocks: str
    torch: str
    triton: str
    commit: str
    time: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def same_as(self, other: Machine) -> bool:
        """Whether measurements of both may stand in one file: same part, same libraries."""
        keys = ("device", "name", "threads", "driver", "torch", "triton")
        return all(getattr(self, key) == getattr(other, key) for key in keys)


def detect(device: str = "auto", threads: int = 1) -> Machine:
    """The machine that `device` ("auto", "cpu", "cuda") names."""
    import torch

    from runtime.machine import machine_facts

    if device not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"--device {device!r} is not known; use auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("--device cuda: this machine has no CUDA device; use --device cpu")
    cores = len(os.sched_getaffinity(0))
    if threads > cores:
        raise DeviceError(f"{threads} threads are more than the {cores} cores of this machine; use {cores} or less")
    facts = machine_facts()
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if cuda:
        display, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
        name, threads = _gpu_name(display), 1
    else:
        display, memory = f"{facts['processor']}, {threads} thread{'s' if threads > 1 else ''}", _memory_bytes()
        name = slug(f"cpu {facts['processor']} {threads}t")
    return Machine(
        "cuda" if cuda else "cpu",
        name,
        display,
        memory,
        threads,
        _query_gpu("driver_version") if cuda else "",
        _query_gpu("clocks.sm,clocks.mem") if cuda else "",
        torch.__version__,
        _triton_version(),
        facts["commit"] or "unknown",
        datetime.now(UTC).isoformat(timespec="seconds"),
    )


def detect_for(accelerator: str) -> Machine:
    """This machine as a profile of `accelerator` needs it: its device, with as many threads as were measured."""
    import torch

    measured = re.fullmatch(r"cpu_\w+_(\d+)t", accelerator)
    way_out = "make one here with `moeplan calibrate measure` and `fit`"
    if measured is None and not torch.cuda.is_available():
        raise DeviceError(f"the profile is of {accelerator}, and this machine has no CUDA device; {way_out}")
    machine = detect("cuda") if measured is None else detect("cpu", int(measured[1]))
    if machine.name != accelerator:
        raise DeviceError(f"the profile is of {accelerator}, and this machine is {machine.name}; {way_out}")
    return machine


def slug(text: str) -> str:
    """
    >>> slug("cpu Intel(R) Xeon(R) CPU @ 2.20GHz 1t")
    'cpu_intel_xeon_cpu_2_20ghz_1t'
    """
    text = re.sub(r"\((r|tm|c)\)", " ", text.lower())
    return re.sub(r"[^a-z0-9]+", "_", text).strip("_")


def _gpu_name(display: str) -> str:
    """The catalogue's name for what the driver calls its GPU, or a name of its own.

    The driver's words hold the model ("NVIDIA H100 80GB HBM3"); forms that differ in it (PCIe, NVL) are others.
    """
    words = display.replace("NVIDIA", "").split()
    plain = [word for word in words if not re.fullmatch(r"\d+GB|HBM\d\w*|SXM\d?", word)]
    try:
        return catalog.load(" ".join(plain)).name
    except catalog.CatalogError:
        return slug(display)


def _query_gpu(fields: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.splitlines()[0].strip() if done.stdout else "unknown"


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return ""
    return str(triton.__version__)


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
