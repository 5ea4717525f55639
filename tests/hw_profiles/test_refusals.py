"""Files that must not load: one sentence, naming file and key."""

import shutil

import pytest

from hw_profiles import catalog

CAPACITY = 'memory_capacity = { value = 96, unit = "GiB", source = "its label", accessed = 2026-11-01 }'


def capacity(value="96", unit='"GiB"', source='source = "its label",', accessed="2026-11-01", more=""):
    return f"memory_capacity = {{ value = {value}, unit = {unit}, {source} accessed = {accessed}{more} }}"


BAD_CAPACITY = {
    "no source": (capacity(source=""), "memory_capacity.source is missing"),
    "empty source": (capacity(source='source = "",'), "memory_capacity.source = '' is empty"),
    "blank source": (capacity(source='source = "   ",'), "memory_capacity.source = '   ' is empty"),
    "no date": (CAPACITY.replace(", accessed = 2026-11-01", ""), "memory_capacity.accessed is missing"),
    "no unit": (CAPACITY.replace('unit = "GiB", ', ""), "memory_capacity.unit is missing"),
    "no value": (CAPACITY.replace("value = 96, ", ""), "memory_capacity.value is missing"),
    "negative": (capacity("-96"), "memory_capacity.value = -96 must be a finite number of at least 0"),
    "nan": (capacity("nan"), "memory_capacity.value = nan must be a finite number"),
    "infinite": (capacity("inf"), "memory_capacity.value = inf must be a finite number"),
    "minus infinite": (capacity("-inf"), "memory_capacity.value = -inf must be a finite number"),
    "overflow": (capacity("1e999"), "memory_capacity.value = inf must be a finite number"),
    "zero": (capacity("0"), "memory_capacity: value 0 must be above 0"),
    "boolean": (capacity("true"), "memory_capacity.value = True should be a valid number"),
    "text": (capacity('"96"'), "memory_capacity.value = '96' should be a valid number"),
    "huge integer": (capacity("1" + "0" * 400), "memory_capacity.value = 1000"),
    "bare number": ("memory_capacity = 96", "memory_capacity = 96 must be a table"),
    "unknown key": (capacity(more=", sauce = 1"), "unknown key memory_capacity.sauce"),
    "unknown unit": (capacity(unit='"gigs"'), "memory_capacity.unit: unknown unit 'gigs'; use one of"),
    "rate as capacity": (capacity(unit='"TB/s"'), "memory_capacity: unit 'TB/s' is a bandwidth"),
    "bad date": (capacity(accessed='"soon"'), "memory_capacity.accessed = 'soon'"),
    "number as date": (capacity(accessed="0"), "memory_capacity.accessed: 0 is not a date"),
    "assumed in words": (capacity(more=', assumed = "yes"'), "memory_capacity.assumed = 'yes'"),
    "missing": ("", "memory_capacity is missing"),
}


@pytest.mark.parametrize("case", BAD_CAPACITY)
def test_a_bad_figure_is_refused(own_part, case):
    line, said = BAD_CAPACITY[case]
    refused(own_part(CAPACITY, line), said)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('status = "shipping"', 'status = "shipping"\ncolour = "red"', "unknown key colour"),
        ('link = "cable"', 'link = "cable"\nhops = 2', "unknown key scale_up.hops"),
        ("bf16 = {", "fp16 = {", "matrix.fp16"),
        ("bf16 = {", "fp8 = {", "matrix.bf16 is missing"),
        ('unit = "TFLOP/s"', 'unit = "GB/s"', "matrix.bf16: unit 'GB/s' is a bandwidth"),
        ("value = 4, ", "value = 4.5, ", "scale_up.domain: value 4.5 must be a whole number"),
        ('aliases = ["my_card"]', 'aliases = "my_card"', "aliases = 'my_card' must be a list"),
        ('name = "mine"', 'name = "My Card"', "name = 'My Card' must be lower-case"),
        ('vendor = "other"', "vendor = 7", "vendor = 7"),
        ("rental_3yr", "barter", "prices.barter"),
    ],
)
def test_a_bad_key_is_refused(own_part, old, new, said):
    refused(own_part(old, new), said)


def refused(path, said):
    with pytest.raises(catalog.CatalogError) as error:
        catalog.load(path)
    sentence = str(error.value)
    assert sentence.startswith("mine.toml: ")
    assert said in sentence
    assert "\n" not in sentence
    assert len(sentence) < 300


def test_invalid_toml_missing_file_and_odd_files(own_part, tmp_path):
    with pytest.raises(catalog.CatalogError, match=r"mine.toml: not valid TOML: .*line 11"):
        catalog.load(own_part("[matrix]", "[matrix"))
    with pytest.raises(catalog.CatalogError, match=r"gone\.toml: no such file"):
        catalog.load(str(tmp_path / "gone.toml"))
    with pytest.raises(catalog.CatalogError, match="cannot be read"):
        catalog.load(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(catalog.CatalogError, match="not UTF-8"):
        catalog.load(tmp_path / "latin.toml")


def test_an_alias_stands_for_one_part_only(tmp_path):
    for name in ("h100_sxm", "h200_sxm"):
        shutil.copy(catalog.DATA / "accelerators" / f"{name}.toml", tmp_path)
    second = tmp_path / "h200_sxm.toml"
    second.write_text(second.read_text().replace('"h200"', '"H100"'))
    with pytest.raises(catalog.CatalogError, match=r"h200_sxm.toml: aliases: 'H100' already stands for h100_sxm"):
        catalog.read_folder(tmp_path)


def test_a_file_is_named_after_its_part(tmp_path):
    shutil.copy(catalog.DATA / "accelerators" / "h20.toml", tmp_path / "h21.toml")
    with pytest.raises(catalog.CatalogError, match=r"h21.toml: name = 'h20' must be the file's own name"):
        catalog.read_folder(tmp_path)


def test_unknown_parts_get_the_closest_names():
    with pytest.raises(catalog.CatalogError, match=r"unknown accelerator 'h2000'; the closest names are .*h200_sxm"):
        catalog.load("h2000")
    with pytest.raises(catalog.CatalogError, match=r"use one of a100_pcie, .*trainium3"):
        catalog.load("zzzzzz")


def test_a_part_of_ones_own_loads(own_part):
    mine = catalog.load(own_part())
    assert (mine.name, mine.memory_bytes, mine.scale_up_domain) == ("mine", 96 * 1024**3, 4)
    assert mine.efficiency.stack == "default"
    assert catalog.load(str(own_part())) == mine
