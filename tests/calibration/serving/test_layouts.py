"""Labels of layouts: what they say, and which are refused."""

from __future__ import annotations

import pytest

from calibration.serving.layouts import LayoutError, WorkerLayout, parse_worker, read_label
from calibration.serving.point_engines import parallelism_of
from simulator.model.parallelism import Parallelism


@pytest.mark.parametrize(
    ("label", "gpus", "worker"),
    [
        ("TP8 EP1", 8, WorkerLayout(1, 8, False, False)),
        ("TP8 EP8", 8, WorkerLayout(1, 8, False, True)),
        ("TP4 EP4 DPattn", 4, WorkerLayout(1, 4, True, True)),
        ("TP4/DP4 dp-attention, DeepEP EP4", 4, WorkerLayout(1, 4, True, True)),
        ("DEP8", 8, WorkerLayout(1, 8, True, True)),
        ("2x(TP8 EP8 DPattn)", 16, WorkerLayout(2, 8, True, True)),
        ("4x(TP1 DP4 EP4)", 16, WorkerLayout(4, 4, True, True)),
        ("6x(TP1 EP1 DPattn)", 48, WorkerLayout(6, 8, True, True)),
        ("1x(TP32 EP32 DPattn)", 32, WorkerLayout(1, 32, True, True)),
        ("", 8, WorkerLayout(1, 8, False, False)),
        ("TP4", 8, WorkerLayout(2, 4, False, False)),
        ("TP1", 1, WorkerLayout(1, 1, False, False)),
        ("DP32 attention, EP32", 32, WorkerLayout(1, 32, True, True)),
        ("TP8/DP8 dp-attention, DeepEP", 8, WorkerLayout(1, 8, True, True)),
        ("2x(TP4 EP)", 8, WorkerLayout(2, 4, False, True)),
        ("TP8 (2 trays)", 8, WorkerLayout(1, 8, False, False)),
        ("TP4 Marlin", 4, WorkerLayout(1, 4, False, False)),
        ("PP2 x TP8 (attention and MoE)", 16, WorkerLayout(1, 16, False, False, stages=2)),
        ("PP4 x attention-CP8 / MoE-TP8", 32, WorkerLayout(1, 32, False, False, stages=4, context_ranks=8)),
        ("1x(TP1 PCP8)", 8, WorkerLayout(1, 8, False, False, context_ranks=8)),
        ("--tp-size=8 --dp-size=8 --enable-dp-attention", 8, WorkerLayout(1, 8, True, False)),
        ("--tp-size=8 --enable-dp-attention", 8, WorkerLayout(1, 8, False, False)),
        ("--tp-size=8 --moe-a2a-backend=deepep --dp-size=8 --enable-dp-attention", 8, WorkerLayout(1, 8, True, True)),
        ("--tensor-parallel-size=8", 8, WorkerLayout(1, 8, False, False)),
    ],
)
def test_labels(label: str, gpus: int, worker: WorkerLayout) -> None:
    assert parse_worker(read_label(label), gpus) == worker


@pytest.mark.parametrize(
    ("label", "gpus", "said"),
    [
        ("8 GPU, TP8 (as printed)", 8, "as printed"),
        ("TP72 EP1 (workers not recorded)", 48, "recorded in part"),
        ("2x(8 GPUs)", 16, "not understood at '8 GPUs'"),
        ("4 instances x 2 GPU", 8, "not understood"),
        ("TP8 --surprise=3", 8, "flag --surprise"),
        ("", 16, "no label says how 16 accelerators are cut"),
        ("1x(TP8 EP8 DPattn)", 16, "not one of 8"),
        ("2x(TP8 CP8)", 16, "not one of 64"),
        ("3x(TP8)", 16, "do not divide"),
    ],
)
def test_what_a_label_does_not_say_is_refused(label: str, gpus: int, said: str) -> None:
    with pytest.raises(LayoutError, match=said):
        parse_worker(read_label(label), gpus)


@pytest.mark.parametrize(
    ("worker", "parallelism"),
    [
        (WorkerLayout(2, 8, True, True), Parallelism(dp=8, ep=8)),
        (WorkerLayout(1, 16, False, False, stages=2), Parallelism(tp=8, pp=2)),
        (WorkerLayout(1, 32, False, True, stages=2, context_ranks=8), Parallelism(tp=2, cp=8, pp=2, ep=16)),
    ],
)
def test_a_worker_is_cut_as_its_layout_says(worker: WorkerLayout, parallelism: Parallelism) -> None:
    assert parallelism_of(worker) == parallelism
    assert parallelism.gpus == worker.gpus
