"""A model of a few milliseconds a step, its sweep, and one measured file of it for all tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from calibration.microbench.device import Machine, detect
from calibration.microbench.measure import measure
from calibration.microbench.measurement import Measurements, read
from calibration.microbench.preset import Preset
from calibration.microbench.timer import TimingLimits
from calibration.op_tables.table_ops import measurements
from hw_profiles.efficiency import OpClass
from hw_profiles.profile import HardwareProfile
from simulator.model.roofline import op_seconds

NANO_V4: dict[str, Any] = {
    "model_type": "deepseek_v4",
    "vocab_size": 300,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "qk_rope_head_dim": 8,
    "q_lora_rank": 32,
    "o_groups": 2,
    "o_lora_rank": 16,
    "sliding_window": 16,
    "compress_ratios": [0, 4, 128, 4],
    "rope_theta": 10000,
    "compress_rope_theta": 160000,
    "max_position_embeddings": 1024,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 6,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "num_hash_layers": 1,
    "moe_intermediate_size": 32,
    "routed_scaling_factor": 1.5,
    "scoring_func": "sqrtsoftplus",
    "swiglu_limit": 10.0,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 3,
    "hc_eps": 1e-6,
    "rms_norm_eps": 1e-6,
}
MIB = 1 << 20


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process takes all tests of the measurement below, so that it is made once."""
    for item in items:
        if "measured_file" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("measured"))


@pytest.fixture(scope="session")
def nano_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "nano-v4.json"
    path.write_text(json.dumps(NANO_V4))
    return str(path)


@pytest.fixture(scope="session")
def tiny_preset(nano_model: str) -> Preset:
    return Preset(
        nano_model,
        layers=4,
        depths=(2, 4),
        batches=(4,),
        contexts=(40, 200),
        chunks=(48,),
        pasts=(0, 64),
        steps=40,
        limits=TimingLimits(0.01, 5),
        gemm_sizes=(128,),
        copy_bytes=(4 * MIB,),
        message_bytes=(4096, MIB),
        max_sequences=4,
        max_step_tokens=48,
        longest_prompt=60,
        longest_output=8,
    )


@pytest.fixture(scope="session")
def this_machine() -> Machine:
    return detect("cpu")


@pytest.fixture(scope="session")
def measured_file(tmp_path_factory: pytest.TempPathFactory, tiny_preset: Preset, this_machine: Machine) -> Path:
    path = tmp_path_factory.mktemp("measured") / "tiny.jsonl"
    outcome = measure(this_machine, tiny_preset, path)
    assert outcome.resumed == 0
    assert outcome.without == ()
    return path


@pytest.fixture(scope="session")
def measured(measured_file: Path) -> Measurements:
    return read(measured_file)


@pytest.fixture(scope="session")
def with_rates() -> Callable[..., HardwareProfile]:
    """(hardware, op_class, **changes): the part with other rates of one class."""

    def changed(hardware: HardwareProfile, op_class: OpClass, **changes: object) -> HardwareProfile:
        efficiency = hardware.efficiency
        classes = {**efficiency.classes, op_class: efficiency.classes[op_class].model_copy(update=changes)}
        return replace(hardware, efficiency=efficiency.model_copy(update={"classes": classes}))

    return changed


@pytest.fixture(scope="session")
def timed() -> Callable[[str, pd.DataFrame, HardwareProfile], pd.DataFrame]:
    """(family, frame, truth): an op table with the times that `truth` gives its rows, each of which is used."""

    def table(family: str, frame: pd.DataFrame, truth: HardwareProfile) -> pd.DataFrame:
        rows = measurements(family, frame.assign(latency=1.0), truth)
        seconds = [sum(op.count * op_seconds(op, truth) for op in one.ops) for one in rows]
        return frame.assign(latency=np.array(seconds) * 1e3)

    return table
