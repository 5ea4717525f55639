"""From a measured file to a profile: what is fitted, what it predicts, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from calibration.microbench import models
from calibration.microbench.fit.base_profile import base_profile
from calibration.microbench.fit.op_fit import class_of, fit_ops, gated, shape_of
from calibration.microbench.fit.profile_fit import fit_machine, refit
from calibration.microbench.fit.step_fit import StepRow, classes_of, columns_of, fit_steps
from calibration.microbench.measurement import EngineStep, FitError, Measurement, Measurements
from calibration.microbench.step_ops import StepPricer
from calibration.microbench.timer import TimeSample
from calibration.replay.twin import profiled_times
from calibration.roofline_fit import FOLDS, Work
from hw_profiles import catalog
from hw_profiles.efficiency import OpClass
from hw_profiles.efficiency_files import read_fit
from hw_profiles.profile import profile_of
from simulator.model.roofline import op_seconds


def remeasured(measured: Measurements, hardware, host_s: float, noise: float = 0.0) -> Measurements:
    """The same work with times made by the simulator's own roofline on `hardware`."""
    rng = np.random.default_rng(0)
    pricers: dict[int, StepPricer] = {}

    def seconds(row: Measurement) -> float:
        if row.step is not None:
            if row.layers not in pricers:
                config = models.cut_to(measured.configs[row.model], row.layers)
                pricers[row.layers] = StepPricer(models.model_spec(config, measured.machine, row.model), hardware)
            return host_s + sum(op_seconds(op, hardware) for op in pricers[row.layers].ops(row.step))
        if row.ops:
            return sum(op_seconds(op, hardware) for op in row.ops)
        return row.seconds

    def again(row: Measurement) -> Measurement:
        s = seconds(row) * float(np.exp(noise * rng.standard_normal()))
        return dataclasses.replace(row, sample=TimeSample(s, s, s, 1))

    return dataclasses.replace(measured, rows=tuple(again(row) for row in measured.usable))


def test_times_of_a_known_machine_give_its_profile_back(measured: Measurements) -> None:
    """Self-consistency: H100 times under the assumed efficiency are predicted again, shapes held out included."""
    machine = dataclasses.replace(measured.machine, name="h100_sxm")
    hardware = catalog.load("h100_sxm")
    known = remeasured(dataclasses.replace(measured, machine=machine), hardware, host_s=2e-3, noise=0.01)
    result = fit_machine(known)
    assert result.efficiency.part is None
    assert result.efficiency.step_overhead_s == pytest.approx(2e-3, rel=0.1)
    assert result.step_error < 0.03
    assert result.step_sum_ratio == pytest.approx(1, abs=0.02)
    for point in result.points:
        assert abs(point.predicted_s / point.measured_s - 1) < 0.15, point.label
    assert np.median([abs(point.held_out_error) for point in result.points]) < 0.05
    depth = result.depth
    assert depth is not None
    assert (depth.layers, depth.fitted_on) == (4, (2,))
    assert depth.median_error < 0.03


@pytest.fixture(scope="module")
def h100_steps(measured: Measurements) -> list[StepRow]:
    """Steps of the nano model on an H100 under the assumed efficiency, 5 ms of host time each."""
    hardware = catalog.load("h100_sxm")
    config = measured.configs[next(iter(measured.configs))]
    pricer = StepPricer(models.model_spec(config, measured.machine, "nano"), hardware)
    rng = np.random.default_rng(1)
    rows = []
    for _ in range(200):
        contexts = (int(rng.integers(1, 900)),) * int(rng.integers(1, 300))
        ops = pricer.ops(EngineStep(((int(rng.integers(1, 4000)), 0),), contexts))
        rows.append(StepRow(ops, 5e-3 + sum(op_seconds(op, hardware) for op in ops), 4))
    return rows


def test_whole_steps_find_the_factors_they_were_made_with(h100_steps: list[StepRow]) -> None:
    classes = classes_of(h100_steps)
    columns = columns_of(h100_steps, catalog.load("h100_sxm"), classes)
    seconds = np.array([row.seconds for row in h100_steps])
    found = fit_steps(columns, seconds, classes)
    assert found.host_s == pytest.approx(5e-3, rel=0.02)
    np.testing.assert_allclose(found.seconds(columns, classes), seconds, rtol=0.01)


def test_a_slower_hour_is_followed_by_few_steps(h100_steps: list[StepRow]) -> None:
    """Everything takes 1.6 times as long: 12 small steps tell it, and large ones are then predicted as well."""
    hardware = catalog.load("h100_sxm")
    known = profile_of(hardware.accelerator, hardware.efficiency.model_copy(update={"step_overhead_s": 5e-3}))
    slow = sorted((dataclasses.replace(row, seconds=1.6 * row.seconds) for row in h100_steps), key=lambda r: r.seconds)
    now = refit(known, slow[:12])
    largest = slow[-1]
    predicted = now.efficiency.step_overhead_s + sum(op_seconds(op, now) for op in largest.ops)
    assert predicted == pytest.approx(largest.seconds, rel=0.01)


def test_measured_profile_prices_steps_and_comes_back_from_disk(measured: Measurements, tmp_path: Path) -> None:
    result = fit_machine(measured)
    path = tmp_path / f"{result.hardware.name}@moeplan.json"
    path.write_text(result.to_json(), encoding="utf-8")
    assert read_fit(path) == result.efficiency
    hardware = catalog.load(path)
    assert hardware.name == measured.machine.name
    assert not hardware.efficiency.classes[OpClass.GROUPED_GEMM].assumed
    assert result.efficiency.origin == "measured"
    assert set(result.efficiency.held_out_error) >= {"dense_gemm", "grouped_gemm", "whole steps"}
    held_out = [abs(p.held_out_error) for p in result.points if p.op_class is OpClass.DENSE_GEMM]
    assert np.median(held_out) < 0.5, "shapes that the fit has not seen, on a busy machine"
    config = measured.configs[next(iter(measured.configs))]
    spec = models.model_spec(config, measured.machine, "nano")
    times = profiled_times(spec, hardware)
    pricer = StepPricer(spec, hardware)
    predicted, took = 0.0, 0.0
    for row in measured.family("step"):
        if row.layers == 4 and row.step is not None:
            predicted += times.mixed_s(*pricer.load(row.step))
            took += row.seconds
    assert predicted == pytest.approx(took, rel=0.15)
    assert result.step_sum_ratio == pytest.approx(1, abs=0.15), "each step predicted from its neighbours"


def test_own_profiles_are_found_by_folder(measured: Measurements, tmp_path: Path, monkeypatch) -> None:
    name = measured.machine.name
    monkeypatch.delenv("MOEPLAN_PROFILES", raising=False)
    with pytest.raises(catalog.CatalogError, match="unknown accelerator"):
        catalog.load(name, "moeplan")
    (tmp_path / f"{name}@moeplan.json").write_text(fit_machine(measured).to_json(), encoding="utf-8")
    monkeypatch.setenv("MOEPLAN_PROFILES", str(tmp_path))
    assert catalog.load(name, "moeplan").stack == "moeplan"
    assert list(catalog.fits(name)) == ["moeplan"]
    with pytest.raises(catalog.CatalogError, match="no efficiency of stack 'other'"):
        catalog.load(name, "other")
    monkeypatch.setenv("MOEPLAN_PROFILES", str(tmp_path / "none"))
    with pytest.raises(catalog.CatalogError, match="is not a folder"):
        catalog.load(name, "moeplan")


def test_too_little_is_refused_by_name(measured: Measurements) -> None:
    few = dataclasses.replace(measured, rows=tuple(row for row in measured.rows if row.family != "step"))
    with pytest.raises(FitError, match="has 0 whole steps, at least 30 are needed"):
        fit_machine(few)
    no_experts = tuple(row for row in measured.rows if not row.family.startswith("grouped"))
    with pytest.raises(FitError, match=r"too few shapes of grouped_gemm \(0\)"):
        fit_machine(dataclasses.replace(measured, rows=no_experts))
    bare = tuple(row for row in measured.rows if row.family not in ("copy", "gemm"))
    with pytest.raises(FitError, match="lacks copies"):
        fit_machine(dataclasses.replace(measured, rows=bare))


def test_repeats_of_a_shape_are_held_out_together(measured: Measurements, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each fold's two halves none has a shape of the other; the same work of other kernels is the same shape."""
    hardware = base_profile(measured)
    rows, _ = gated(measured, hardware)
    taken: list[np.ndarray] = []
    take = Work.take
    monkeypatch.setattr(Work, "take", lambda work, chosen: (taken.append(chosen), take(work, chosen))[1])
    products = [row for row in rows if class_of(row) is OpClass.DENSE_GEMM]
    fit_ops(
        [*products, *(dataclasses.replace(row, label="again", seconds=2 * row.seconds) for row in products)], hardware
    )
    assert len(taken) == 2 * FOLDS
    shapes = [shape_of(row) for row in products] * 2
    assert len(set(shapes)) < len(products)
    for fitted, held_out in zip(taken[::2], taken[1::2], strict=True):
        assert len(fitted) + len(held_out) == len(shapes)
        assert not {shapes[i] for i in fitted} & {shapes[i] for i in held_out}


def test_many_repeats_of_few_shapes_are_too_little(measured: Measurements) -> None:
    kept = [row for row in measured.rows if row.family != "grouped_gemm1" and row.family != "grouped_gemm2_combine"]
    expert = next(row for row in measured.rows if row.family == "grouped_gemm1")
    kept += [dataclasses.replace(expert, key=f"{expert.key} {i}") for i in range(20)]
    with pytest.raises(FitError, match=r"too few shapes of grouped_gemm \(1\): each class needs 4"):
        fit_machine(dataclasses.replace(measured, rows=tuple(kept)))


def test_contradicting_times_are_refused(measured: Measurements) -> None:
    def slower(row: Measurement) -> Measurement:
        sample = row.sample
        assert sample is not None
        return dataclasses.replace(row, key=row.key + " again", sample=TimeSample(sample.median_s * 9, 1.0, 1.0, 1))

    twice = measured.rows + tuple(slower(row) for row in measured.usable if row.ops)
    with pytest.raises(FitError, match="contradict themselves"):
        fit_machine(dataclasses.replace(measured, rows=twice))


def test_faster_than_the_data_sheet_is_thrown_out(measured: Measurements) -> None:
    hardware = catalog.load("h100_sxm")
    known = remeasured(
        dataclasses.replace(measured, machine=dataclasses.replace(measured.machine, name="h100_sxm")), hardware, 1e-3
    )
    first = next(row for row in known.rows if row.family == "linear")
    wrong = dataclasses.replace(first, key="impossible", sample=TimeSample(1e-15, 1e-15, 1e-15, 1))
    result = fit_machine(dataclasses.replace(known, rows=(*known.rows, wrong)))
    assert result.rejected == (("impossible", "faster than its FLOPs at peak"),)


def test_faster_than_its_bytes_is_thrown_out_where_there_is_a_data_sheet(measured: Measurements) -> None:
    """A gigabyte in a tenth of the time that the H100's memory needs; a machine that set its own peaks may."""
    one = next(row for row in measured.rows if row.family == "rms_norm")
    op = dataclasses.replace(one.ops[0], hbm_bytes=1e9)
    took = 1e8 / catalog.load("h100_sxm").memory_bandwidth
    row = dataclasses.replace(one, key="impossible", ops=(op,), sample=TimeSample(took, took, took, 1))
    alone = dataclasses.replace(measured, rows=(row,))
    kept, rejected = gated(alone, catalog.load("h100_sxm"))
    assert (kept, rejected) == ([], [("impossible", "faster than its bytes at peak")])
    kept, rejected = gated(alone, base_profile(measured))
    assert (len(kept), rejected) == (1, [])


def test_profile_is_plain_json(measured: Measurements) -> None:
    data = json.loads(fit_machine(measured).to_json())
    assert data["part"]["name"] == measured.machine.name
    assert measured.machine.commit in data["provenance"]
