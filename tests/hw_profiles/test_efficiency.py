"""Default fractions: complete, explained, inside what kernels reach; fitted stacks take their place."""

import json
import tomllib
from pathlib import Path

import pytest

from hw_profiles import catalog
from hw_profiles.efficiency import OpClass
from hw_profiles.efficiency_files import load_efficiency, stacks

DEFAULTS = tomllib.loads((catalog.DATA / "efficiency" / "default.toml").read_text())
NAMES = catalog.names()


@pytest.mark.parametrize("name", NAMES)
def test_every_part_has_every_class_explained_and_assumed(name):
    efficiency = catalog.load(name).efficiency
    assert set(efficiency.classes) == set(OpClass)
    assert efficiency.assumed
    for op_class, parameters in efficiency.classes.items():
        assert parameters.assumed, op_class
        assert len(parameters.source) > 20, op_class
    assert 0 < efficiency.step_overhead_s < 0.02
    assert 0.8 <= efficiency.memory_utilisation < 1


def test_tables_belong_to_generations_and_parts_of_the_catalogue_and_say_why():
    generations = {catalog.load(name).accelerator.generation for name in NAMES}
    for table in set(DEFAULTS) - {"base"}:
        assert table in generations | set(NAMES)
        own = DEFAULTS[table]
        for op_class, parameters in own.get("classes", {}).items():
            assert "source" in parameters, f"{table}.{op_class} overrides without a reason"
        if "step_overhead_s" in own:
            assert "overhead_source" in own


# Best measured fractions of peak: bf16 or fp8 GEMM medians, weight streaming p95, NCCL at 512 MB.
MEASURED = {
    "a100_sxm": (0.91, 0.868, 0.74),
    "h100_sxm": (0.673, 0.928, 0.989),
    "h200_sxm": (0.684, 0.933, 1.022),
    "b200_sxm": (0.594, 0.863, 0.782),
    "b300_sxm": (0.64, 0.85, 0.781),
    "gb200": (0.565, 0.895, 0.698),
    "gb300": (0.64, 0.849, 0.706),
}


@pytest.mark.parametrize("name", MEASURED)
def test_assumptions_stay_below_what_kernels_reach_alone(name):
    matrix, memory, network = MEASURED[name]
    classes = catalog.load(name).efficiency.classes
    assert classes[OpClass.DENSE_GEMM].matrix_fraction <= matrix
    assert classes[OpClass.GROUPED_GEMM].matrix_fraction <= classes[OpClass.DENSE_GEMM].matrix_fraction
    assert all(
        classes[c].memory_fraction <= memory
        for c in OpClass
        if c.value not in ("all_reduce", "all_to_all", "point_to_point")
    )
    assert classes[OpClass.ALL_REDUCE].network_fraction <= network


def test_a_generation_may_be_like_another():
    rubin, blackwell = catalog.load("rubin").efficiency, catalog.load("b200").efficiency
    assert rubin.classes == blackwell.classes
    assert rubin.accelerator == "rubin_vr200"


def test_unknown_stack_names_those_that_exist(tmp_path):
    with pytest.raises(catalog.CatalogError, match="no efficiency of stack 'sglang2' on h100_sxm; there is default"):
        catalog.load("h100", stack="sglang2")


def fit_of(name, stack):
    fit = catalog.load(name).efficiency.model_dump(mode="json")
    return fit | {"accelerator": name, "stack": stack, "step_overhead_s": 0.00123}


def test_a_fit_in_the_folder_is_picked_up(tmp_path):
    (tmp_path / "h100_sxm@sglang.json").write_text(json.dumps(fit_of("h100_sxm", "sglang")))
    assert stacks("h100_sxm", tmp_path) == ["default", "sglang"]
    assert stacks("h200_sxm", tmp_path) == ["default"]
    assert load_efficiency("h100_sxm", "hopper", "sglang", tmp_path).step_overhead_s == 0.00123
    with pytest.raises(catalog.CatalogError, match="'vllm' on h100_sxm; there is default, sglang"):
        load_efficiency("h100_sxm", "hopper", "vllm", tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stack": "vllm"}, "it describes h100_sxm@vllm, not h100_sxm@sglang"),
        ({"step_overhead_s": -1}, "step_overhead_s = -1 must be a finite number of at least 0"),
        ({"memory_utilisation": 1.2}, "memory_utilisation = 1.2"),
        ({"speed": 9}, "unknown key speed"),
        ({"classes": {}}, "classes lacks dense_gemm, "),
    ],
)
def test_a_bad_fit_is_refused(tmp_path, change, said):
    (tmp_path / "h100_sxm@sglang.json").write_text(json.dumps(fit_of("h100_sxm", "sglang") | change))
    with pytest.raises(catalog.CatalogError) as error:
        load_efficiency("h100_sxm", "hopper", "sglang", tmp_path)
    assert str(error.value).startswith("h100_sxm@sglang.json: ")
    assert said in str(error.value)


def test_a_fit_that_is_not_json_is_refused(tmp_path):
    (tmp_path / "h100_sxm@sglang.json").write_text("{")
    with pytest.raises(catalog.CatalogError, match=r"h100_sxm@sglang\.json: not readable JSON"):
        load_efficiency("h100_sxm", "hopper", "sglang", tmp_path)


@pytest.mark.parametrize("file_name", ["b200_sxm@mine.json", "dgx-b200@mine.json", "tuesday.json"])
def test_profiles_of_ones_own_are_found_by_every_name_of_the_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_name: str
) -> None:
    fit = catalog.load("b200_sxm", "vllm").efficiency.model_copy(update={"stack": "mine", "step_overhead_s": 0.0321})
    (tmp_path / file_name).write_text(fit.model_dump_json(), encoding="utf-8")
    monkeypatch.setenv("MOEPLAN_PROFILES", str(tmp_path))
    for name in ("b200", "B200-SXM", "dgx_b200"):
        profile = catalog.load(name, "mine")
        assert (profile.name, profile.efficiency.step_overhead_s) == ("b200_sxm", 0.0321)
        assert catalog.fits(name)["mine"].step_overhead_s == 0.0321
        with pytest.raises(
            catalog.CatalogError, match=r"no efficiency of stack 'other' on b200_sxm; there is .*, mine$"
        ):
            catalog.load(name, "other")
    with pytest.raises(
        catalog.CatalogError, match=r"stack 'mine' on h200_sxm; there is default, sglang, trtllm, vllm$"
    ):
        catalog.load("h200", "mine")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own profiles with one in it."""
    (tmp_path / "h100_sxm@mine.json").write_text(json.dumps(fit_of("h100_sxm", "mine")))
    monkeypatch.setenv("MOEPLAN_PROFILES", str(tmp_path))
    return tmp_path


def test_other_json_beside_ones_own_profiles_is_left_alone(own: Path) -> None:
    (own / "bench.json").write_text('{"rows": []}')
    (own / "list.json").write_text("[1]")
    assert catalog.load("h100", "mine").efficiency.step_overhead_s == 0.00123


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("again.json", None, r"again\.json and h100_sxm@mine\.json in .* both describe h100_sxm@mine; remove one"),
        ("h200_sxm@mine.json", None, "it describes h100_sxm@mine, not h200_sxm@mine; rename the file"),
        ("cut.json", '{"accelerator": "h1', r"cut\.json: not readable JSON"),
        ("h200_sxm@mine.json", "[]", "it holds no classes of ops; give a profile"),
        ("less.json", "less", "less.json: classes lacks dense_gemm; fit it again"),
    ],
)
def test_profiles_of_ones_own_that_cannot_be_used_are_named(own: Path, name: str, text: str | None, said: str) -> None:
    fit = fit_of("h100_sxm", "mine")
    if text == "less":
        fit["stack"] = "less"
        del fit["classes"]["dense_gemm"]
    (own / name).write_text(json.dumps(fit) if text in (None, "less") else text)
    with pytest.raises(catalog.CatalogError, match=said):
        catalog.load("h100", "mine")


def test_a_profile_of_ones_own_that_changes_is_read_again(own: Path) -> None:
    assert catalog.load("h100", "mine").efficiency.step_overhead_s == 0.00123
    (own / "h100_sxm@mine.json").write_text(json.dumps(fit_of("h100_sxm", "mine") | {"step_overhead_s": 0.5}))
    assert catalog.load("h100", "mine").efficiency.step_overhead_s == 0.5


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: p.mkdir(), r"p\.json cannot be read \(Is a directory\); give a profile"),
        (lambda p: p.write_bytes(b"\xff\xfe{"), "not readable JSON: it is not UTF-8 text; give a profile"),
        (lambda p: p.write_text('{"a": 1}\n{"b": 2}\n'), "not readable JSON: Extra data.*; give a profile"),
        (lambda p: p.write_text("{}"), "it holds no classes of ops; give a profile"),
        (lambda p: None, "does not exist; give a profile"),
    ],
)
def test_what_is_no_profile_is_one_sentence(tmp_path: Path, make, said: str) -> None:
    make(tmp_path / "p.json")
    with pytest.raises(catalog.CatalogError, match=said):
        catalog.load(tmp_path / "p.json")
