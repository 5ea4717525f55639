"""Files of measurements: resumed, broken, of another machine, short of memory; and what is timed."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import signal
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from calibration.microbench import collectives, layer_ops, models, raw_rates, sweep, whole_steps
from calibration.microbench.bench import Bench
from calibration.microbench.capture import Captured
from calibration.microbench.collectives import KINDS, rank_count
from calibration.microbench.device import DeviceError, Machine, detect, detect_for
from calibration.microbench.fit.profile_fit import fit_machine
from calibration.microbench.measure import measure
from calibration.microbench.measurement import MeasurementError, MeasurementFile, Measurements, read
from calibration.microbench.preset import PRESETS, Preset, PresetError, preset_of
from calibration.microbench.timer import FLUSH_BYTES, CallTimer, TimingLimits
from simulator.model import kv
from simulator.model import parameter_counts as counts
from simulator.model.architecture import AttentionSpec, ModelSpec
from simulator.model.families import ModelError


def test_every_op_class_of_the_model_is_measured(measured: Measurements) -> None:
    classes = {row.ops[0].op_class.value for row in measured.usable if row.ops}
    assert classes == {
        "dense_gemm", "grouped_gemm", "sparse_prefill", "sparse_decode", "indexer", "selection",
        "elementwise", "mixing",
        "all_reduce", "all_to_all", "point_to_point",
    }  # fmt: skip
    families = {row.family for row in measured.usable}
    assert families >= {
        "copy",
        "gemm",
        "launch",
        "handover",
        "step",
        "sampling",
        "compress",
        "mhc_pre",
        "router_gate",
    } | set(KINDS)
    for row in measured.usable:
        assert row.sample is not None
        assert 0 < row.sample.p20_s <= row.sample.median_s <= row.sample.p80_s


def test_a_captured_product_counts_its_own_shape(measured: Measurements) -> None:
    """Query projection of the nano model on 4 rows: [4, 32] by [128, 32]."""
    flops = {
        op.flops["tf32"] for row in measured.family("linear") if row.key.startswith("decode of 4") for op in row.ops
    }
    assert 2.0 * 4 * 32 * 128 in flops


def test_a_finished_file_is_left_as_it_is(
    measured_file: Path, tiny_preset: Preset, this_machine: Machine, tmp_path
) -> None:
    copy = tmp_path / "copy.jsonl"
    shutil.copy(measured_file, copy)
    outcome = measure(this_machine, tiny_preset, copy)
    assert outcome.measured == 0
    assert outcome.resumed > 10
    assert copy.read_bytes() == measured_file.read_bytes()


def test_a_killed_run_goes_on(measured_file: Path, tiny_preset: Preset, this_machine: Machine, tmp_path: Path) -> None:
    """The file ends in the middle of a line; what was whole is kept, the rest measured."""
    whole = measured_file.read_text().splitlines(keepends=True)
    cut = tmp_path / "cut.jsonl"
    cut.write_text("".join(whole[:-30]) + whole[-30][:40])
    outcome = measure(this_machine, tiny_preset, cut)
    assert outcome.resumed > 0
    assert outcome.measured > 0
    again = read(cut)
    assert [str(line) for line in outcome.broken] == [f"line {len(whole) - 29} left out: not a whole JSON object"]
    assert again.broken == outcome.broken
    assert {row.key for row in again.rows} == {row.key for row in read(measured_file).rows}


def test_a_run_killed_in_its_first_line_begins_anew(this_machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    MeasurementFile.open(file, this_machine, {"x": {}})
    whole = file.read_bytes()
    for kept in (5, 40, len(whole) - 1):
        file.write_bytes(whole[:kept])
        MeasurementFile.open(file, this_machine, {"x": {}})
        assert file.read_bytes() == whole
    file.write_bytes(b"my notes")
    with pytest.raises(MeasurementError, match="its first line does not tell the machine"):
        MeasurementFile.open(file, this_machine, {"x": {}})
    assert file.read_bytes() == b"my notes"


def test_broken_lines_are_left_out_and_named(measured_file: Path, tmp_path: Path) -> None:
    """Truncated, of another kind, without a field or with one of the wrong kind: each told by number."""
    lines = measured_file.read_bytes().splitlines()
    copy = next(line for line in lines if b'"family": "copy"' in line)
    step = next(line for line in lines if b'"family": "step"' in line)
    op = next(line for line in lines if b"dense_gemm" in line)
    wrong = {
        b"{not json": "not a whole JSON object",
        b"\xff\x00": "not a whole JSON object",
        step[:70]: "not a whole JSON object",
        b"[1, 2]": "the line = [1, 2]: should be an object",
        b'{"key": "no family"}': "lacks family",
        b'{"key": "x", "family": "y", "unknown": 1}': "unknown key unknown",
        re.sub(rb'"repeats": \d+', b'"repeats": "a"', copy): "sample.repeats = 'a'",
        copy.replace(b'"median_s": ', b'"median_s": -'): "no ascending row of times",
        copy.replace(b'"num_bytes"', b'"flops"'): "copy without num_bytes",
        step.replace(b'"layers": ', b'"layers": "two", "note": '): "layers = 'two': should be a valid integer",
        step.replace(b'"model": "', b'"model": "no/such'): "without its shape, its layers or a model",
        op.replace(b"dense_gemm", b"dense"): "ops.0.op_class = 'dense'",
        op.replace(b'"tf32": ', b'"tf64": '): "dtype 'tf64' is not known",
        op.replace(b'"hbm_bytes": ', b'"hbm_bytes": -'): "an amount of work is negative",
    }
    path = tmp_path / "broken.jsonl"
    path.write_bytes(b"\n".join([*lines[:3], *wrong, *lines[3:], b"", b"  "]) + b"\n")
    found = read(path)
    assert found.rows == read(measured_file).rows
    assert [line.number for line in found.broken] == list(range(4, 4 + len(wrong)))
    for line, why in zip(found.broken, wrong.values(), strict=True):
        assert why in line.why


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("format", "other", "its first line does not tell the machine"),
        ("machine", None, "line 1: .* should be an object"),
        ("configs", [], "line 1: .* should be a valid dictionary"),
        ("time", "noon", "line 1: time 'noon' is no date and time"),
        ("threads", "one", "line 1: threads = 'one'"),
        ("name", "My Box", "line 1: name 'My Box' is not lower-case"),
    ],
)
def test_a_wrong_first_line_is_one_sentence(key, value, said, measured_file: Path, tmp_path: Path) -> None:
    first, *rest = measured_file.read_text().splitlines()
    header = json.loads(first)
    (header if key in header else header["machine"])[key] = value
    path = tmp_path / "wrong.jsonl"
    path.write_text("\n".join([json.dumps(header), *rest]))
    with pytest.raises(MeasurementError, match=said):
        read(path)


def test_a_file_without_its_first_line_is_refused(measured_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "headless.jsonl"
    path.write_text("\n".join(measured_file.read_text().splitlines()[1:]))
    with pytest.raises(MeasurementError, match="does not tell the machine"):
        read(path)
    with pytest.raises(MeasurementError, match="does not exist"):
        read(tmp_path / "nowhere.jsonl")


def test_a_larger_preset_goes_on_with_the_file_of_a_smaller_one(
    measured_file: Path, this_machine: Machine, measured: Measurements, tmp_path: Path
) -> None:
    """Whose models are more; a smaller one afterwards finds its own in it. A model that changed is refused."""
    file = tmp_path / "m.jsonl"
    shutil.copy(measured_file, file)
    (name,) = measured.configs
    more = measured.configs | {"other": {"hidden_size": 8}}
    assert MeasurementFile.open(file, this_machine, more).done
    assert read(file).configs == more
    assert read(file).rows == measured.rows
    assert MeasurementFile.open(file, this_machine, measured.configs).done
    with pytest.raises(MeasurementError, match="or of other models"):
        MeasurementFile.open(file, this_machine, {name: measured.configs[name] | {"hidden_size": 8}})
    assert list(tmp_path.iterdir()) == [file]


def test_progress_counts_what_is_left_to_do(
    measured_file: Path, tiny_preset: Preset, this_machine: Machine, tmp_path: Path
) -> None:
    """By weight, so that the time left is no guess from quick items; what is on file does not count."""
    lines = measured_file.read_text().splitlines(keepends=True)
    cut = tmp_path / "cut.jsonl"
    cut.write_text("".join(lines[:-2]))  # without the last of the whole steps
    seen: list[tuple[str, int, int]] = []
    measure(this_machine, tiny_preset, cut, lambda *now: seen.append(now))
    assert seen == [
        ("whole steps of 4 layers", 0, whole_steps.WEIGHT),
        ("done", whole_steps.WEIGHT, whole_steps.WEIGHT),
    ]


def test_another_machines_file_is_not_continued(measured_file: Path, this_machine: Machine, measured) -> None:
    other = dataclasses.replace(this_machine, name="h100_sxm")
    with pytest.raises(MeasurementError, match="give another --output"):
        MeasurementFile.open(measured_file, other, measured.configs)


def test_a_run_killed_outright_goes_on_and_measures_no_point_twice(
    measured_file: Path, tiny_preset: Preset, this_machine: Machine, tmp_path: Path
) -> None:
    """SIGKILL in the middle of the sweep of a real process."""
    file = tmp_path / "killed.jsonl"
    process = multiprocessing.get_context("spawn").Process(target=measure, args=(this_machine, tiny_preset, file))
    process.start()
    while process.is_alive() and (not file.exists() or file.read_bytes().count(b"\n") < 30):
        process.join(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the sweep ended before it was killed"
    before = file.read_bytes()
    outcome = measure(this_machine, tiny_preset, file)
    assert outcome.resumed > 0
    assert outcome.measured > 0
    assert file.read_bytes().startswith(before)
    keys = [json.loads(line)["key"] for line in file.read_text().splitlines()[1:] if line.endswith("}")]
    assert len(keys) == len(set(keys))
    assert set(keys) == {row.key for row in read(measured_file).rows}


def only(monkeypatch: pytest.MonkeyPatch, part: ModuleType, name: str) -> None:
    """Of the sweep, the items of `part` whose key holds `name`."""
    monkeypatch.setattr(sweep, "items", lambda bench: [item for item in part.items(bench) if name in item.key])


def test_what_does_not_fit_in_memory_is_recorded(
    tiny_preset: Preset, this_machine: Machine, tmp_path: Path, monkeypatch
) -> None:
    """The largest copy asks for more than any machine has; the sweep goes on, and a later run tries it again."""
    only(monkeypatch, raw_rates, "copy")
    preset = dataclasses.replace(tiny_preset, copy_bytes=(1 << 50, *tiny_preset.copy_bytes))
    outcome = measure(this_machine, preset, tmp_path / "m.jsonl")
    assert outcome.measured == 1
    assert [(row.key, row.status) for row in outcome.without] == [(f"copy of {1 << 50} bytes", "out of memory")]
    rows = read(tmp_path / "m.jsonl").rows
    assert [row.status for row in rows] == ["out of memory", "ok"]
    assert "memory" in rows[0].note
    again = measure(this_machine, preset, tmp_path / "m.jsonl")
    assert (again.resumed, len(again.without)) == (1, 1)


def test_a_step_whose_cache_does_not_fit_is_recorded_and_the_others_are_measured(
    tiny_preset: Preset, this_machine: Machine, tmp_path: Path, monkeypatch
) -> None:
    only(monkeypatch, layer_ops, "decode of 4")
    preset = dataclasses.replace(tiny_preset, contexts=(1 << 44, 40))
    outcome = measure(this_machine, preset, tmp_path / "m.jsonl")
    assert [(row.key, row.status) for row in outcome.without] == [(f"decode of 4 at {1 << 44}", "out of memory")]
    assert outcome.measured == 1
    assert read(tmp_path / "m.jsonl").family("window_attention_decode")


def test_collectives_that_fail_are_recorded(
    tiny_preset: Preset, this_machine: Machine, tmp_path: Path, monkeypatch
) -> None:
    """Two bytes are one number, which two ranks cannot share: the ranks fail, the sweep does not."""
    if rank_count("cpu") < 2:
        pytest.skip("one core: there is nobody to talk to")
    only(monkeypatch, collectives, "collectives")
    outcome = measure(this_machine, dataclasses.replace(tiny_preset, message_bytes=(2,)), tmp_path / "m.jsonl")
    assert [(row.key, row.status) for row in outcome.without] == [("collectives of 2 ranks", "failed")]
    assert outcome.without[0].note


def test_no_cuda_is_one_sentence() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(DeviceError, match="has no CUDA device; use --device cpu"):
        detect("cuda")
    with pytest.raises(DeviceError, match="'tpu' is not known"):
        detect("tpu")
    with pytest.raises(DeviceError, match="the profile is of h100_sxm, and this machine has no CUDA device; make one"):
        detect_for("h100_sxm")


def test_a_profile_tells_how_many_threads_compute(this_machine: Machine) -> None:
    assert detect_for(this_machine.name).threads == 1
    two = dataclasses.replace(this_machine, name=this_machine.name.replace("_1t", "_2t"))
    if len(os.sched_getaffinity(0)) >= 2:
        found = detect_for(two.name)
        assert (found.threads, found.name) == (2, two.name)
    with pytest.raises(DeviceError, match="the profile is of cpu_other_1t, and this machine is cpu_"):
        detect_for("cpu_other_1t")
    with pytest.raises(DeviceError, match="100000 threads are more than the"):
        detect("cpu", 100_000)


def test_unknown_preset_names_the_known(this_machine: Machine) -> None:
    with pytest.raises(PresetError, match="use quick or full"):
        preset_of(this_machine, "tiny")


def test_calls_take_turns_and_repeats_are_bounded() -> None:
    made: list[int] = []
    timer = CallTimer(torch.device("cpu"), TimingLimits(limit_s=10.0, most=9))
    sample = timer.sample([lambda: made.append(0), lambda: made.append(1)], flush=False)
    assert 5 <= sample.repeats <= 9
    assert made[:2] == [0, 1]  # warm-up
    assert made[2:] == [i % 2 for i in range(sample.repeats)]


def test_a_slow_call_is_timed_once_and_not_five_times() -> None:
    made: list[int] = []

    def slow(number: int) -> None:
        made.append(number)
        time.sleep(0.05)

    sample = CallTimer(torch.device("cpu"), TimingLimits(0.01, 50)).sample(
        [lambda i=i: slow(i) for i in range(4)], flush=False
    )
    assert made[0] == 0
    assert len(made) <= 8
    one_thread = torch.get_num_threads() == 1  # then sleep counts as nothing, but the warm-up ends all the same
    assert made.count(1) <= 2 if one_thread else made == [0, 0]
    assert sample.repeats <= 5


@pytest.mark.parametrize(
    ("seconds", "spent_s", "enough"),
    [
        ([], 9.0, False),
        ([0.2] * 2, 0.4, False),  # too few, though the limit is over
        ([0.4], 0.4, True),  # one call takes more than its due
        ([0.01] * 5, 0.05, True),  # no spread
        ([0.01, 0.02, 0.03, 0.04, 0.05], 0.09, False),
        ([0.01, 0.02, 0.03, 0.04, 0.05], 0.11, True),  # spread, but the limit is over
        ([0.001, 0.002] * 5, 0.05, True),  # the most that is allowed
    ],
)
def test_repeats_end_by_spread_time_or_number(seconds: list[float], spent_s: float, enough: bool) -> None:
    assert TimingLimits(limit_s=0.15 if len(seconds) == 2 else 0.1, most=10).enough(seconds, spent_s) is enough


def test_ops_that_time_does_not_allow_are_recorded_and_measured_by_the_next_run(
    tiny_preset: Preset, this_machine: Machine, tmp_path: Path, monkeypatch
) -> None:
    only(monkeypatch, raw_rates, "copy")
    real = sweep.items
    monkeypatch.setattr(
        sweep, "items", lambda bench: [dataclasses.replace(i, within_s=bench.preset.ops_s) for i in real(bench)]
    )
    hasty = dataclasses.replace(tiny_preset, ops_s=-1.0)
    outcome = measure(this_machine, hasty, tmp_path / "m.jsonl")
    assert [row.status for row in outcome.without] == ["out of time"]
    assert measure(this_machine, tiny_preset, tmp_path / "m.jsonl").measured == 1


def test_whole_steps_are_bounded_by_time_but_for_the_fewest(
    tiny_preset: Preset, this_machine: Machine, tmp_path: Path, monkeypatch
) -> None:
    only(monkeypatch, whole_steps, "of 2 layers")
    measure(this_machine, dataclasses.replace(tiny_preset, steps_s=0.0), tmp_path / "m.jsonl")
    assert len(read(tmp_path / "m.jsonl").family("step")) == whole_steps.FEWEST


def test_gpu_presets_fit_into_80_gb() -> None:
    """Weights of eight layers at true shapes, KV of the largest step and the workspace of its widest ops, by design."""
    gpu = dataclasses.replace(detect("cpu"), device="cuda", name="h100_sxm")
    for preset in (PRESETS["cuda", "quick"], PRESETS["cuda", "full"], *PRESETS["cuda", "full"].companions):
        spec = models.model_spec(models.cut_to(models.config_of(preset), preset.layers), gpu, preset.model)
        whole = models.model_spec(models.read_config(preset.model), gpu, preset.model)
        assert spec.layers[-1].attention == whole.layers[preset.layers - 1].attention
        mine, true = spec.layers[-1].ffn, whole.layers[preset.layers - 1].ffn
        router = {
            "linears": mine.linears,
            "other_params": mine.other_params,
            "other_param_bytes": mine.other_param_bytes,
        }
        assert mine == dataclasses.replace(true, experts=preset.experts, **router)
        assert mine.linears[1:] == true.linears[1:]
        tokens = max(sum(shape.contexts) for shape in preset.decode_shapes)
        tokens = max(tokens, preset.max_sequences * (preset.longest_prompt + preset.longest_output))
        longest = max(new + past for shape in preset.prefill_shapes for new, past in shape.prefills)
        scores = 4 * preset.max_step_tokens * longest / min(a.ratio for a in attentions(spec) if a.ratio)
        workspace = 3 * scores + 2 * max(preset.copy_bytes) + FLUSH_BYTES["cuda"]
        assert counts.weight_bytes(spec) + tokens * kv.kv_bytes_per_token(spec) + workspace < 76e9
        assert (preset.depths, preset.layers) == ((2, 4, 6, 8), 8)
    assert {"deepseek-v4-flash", "deepseek-v4-pro"} == {p.model for p in with_companions(PRESETS["cuda", "full"])}


def attentions(spec: ModelSpec) -> list[AttentionSpec]:
    return [layer.attention for layer in spec.layers]


def with_companions(preset: Preset) -> tuple[Preset, ...]:
    return preset, *preset.companions


def test_a_ranks_share_of_experts_is_refused_beyond_the_model(tiny_preset: Preset) -> None:
    assert models.config_of(dataclasses.replace(tiny_preset, experts=4))["n_routed_experts"] == 4
    for experts in (1, 9):
        with pytest.raises(ModelError, match=f"experts={experts} is out of range; .* has 8 a layer"):
            models.config_of(dataclasses.replace(tiny_preset, experts=experts))


def test_a_companion_is_measured_under_its_name(
    measured: Measurements, nano_model: str, tiny_preset: Preset, this_machine: Machine, tmp_path: Path, monkeypatch
) -> None:
    """Ops of layers and whole steps of a second model; one model is in memory at a time, and both are fitted."""
    other = tmp_path / "other-v4.json"
    other.write_text(json.dumps({**json.loads(Path(nano_model).read_text()), "hidden_size": 96}))
    companion = dataclasses.replace(tiny_preset, model=str(other), experts=4, contexts=(40,), pasts=(0,), steps=20)
    file = tmp_path / "m.jsonl"
    real = sweep.items
    monkeypatch.setattr(sweep, "items", lambda *benches: [i for i in real(*benches) if str(other) in i.key])
    outcome = measure(this_machine, dataclasses.replace(tiny_preset, companions=(companion,)), file)
    assert (outcome.measured, outcome.without) == (5, ())  # a decode step, a prefill step, sampling, two depths
    found = read(file)
    assert all(row.key.startswith(f"{other}: ") for row in found.rows)
    assert {"captured", "steps"} < {row.family for row in found.rows}
    assert found.configs[str(other)]["n_routed_experts"] == 4
    both = dataclasses.replace(measured, rows=measured.rows + found.rows, configs=measured.configs | found.configs)
    result = fit_machine(both)
    assert sum(str(other) in point.label for point in result.points) > 10
    assert result.depth is not None


def test_caches_are_full_of_random_numbers_and_calls_take_turns_on_them(
    tiny_preset: Preset, this_machine: Machine, monkeypatch
) -> None:
    """What attention reads in a timed call is no row of zeros, and two layers of a kind do not read the same."""
    seen: list[Captured] = []
    plain = layer_ops.capture

    def spy(*arguments: Any) -> list[Captured]:
        seen.extend(plain(*arguments))
        return seen

    monkeypatch.setattr(layer_ops, "capture", spy)
    bench = Bench(this_machine, tiny_preset, models.config_of(tiny_preset))
    decode = next(item for item in layer_ops.items(bench) if item.key == "decode of 4 at 200")
    list(decode.run())
    cores = [call for call in seen if call.name == "window_attention_decode"]
    assert cores
    for core in cores:
        caches = [x for x in core.arguments if isinstance(x, torch.Tensor) and x.is_floating_point()]
        assert all(0.5 < float(x.std()) < 2 for x in caches if x.numel() > 1000)
    assert max(len(core.calls) for core in cores) == 2, "layers 2 and 4 are of a kind"


def test_presets_keep_their_time() -> None:
    """By design: quick below 3 minutes, full below 10, with some to spare for the last op and for building models."""
    for (_, size), preset in PRESETS.items():
        assert preset.limit_s <= {"quick": 160, "full": 540}[size]
        assert len(preset.depths) * whole_steps.FEWEST >= 30
