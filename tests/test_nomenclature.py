"""The words of docs/nomenclature.md are those of the code."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("hw_profiles", "simulator", "runtime", "calibration", "app")
PAGE = (ROOT / "docs" / "nomenclature.md").read_text(encoding="utf-8")
# Nouns that the house is built of, see docs/nomenclature.md for their meaning.
NOUNS = {
    *("request", "sequence", "prompt", "chunk", "step", "batch", "block", "KV", "hand-over"),
    *("instance", "rank", "pool", "group", "cluster", "stack", "profile", "engine parameters"),
    *("question", "design", "plan", "tenant", "session", "draft", "acceptance length", "TTFT", "TPOT"),
}


def table(heading: str) -> list[list[str]]:
    """Rows of the table below a heading of the page."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def quoted(cell: str) -> list[str]:
    """
    >>> quoted("`Pool`, `PoolCost`")
    ['Pool', 'PoolCost']
    """
    return re.findall(r"`([^`]+)`", cell)


def words_of(name: str) -> set[str]:
    """
    >>> sorted(words_of("KvReceiver") | words_of("request_log") | words_of("KVCache"))
    ['cache', 'kv', 'log', 'receiver', 'request']
    """
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text(encoding="utf-8"))
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


def classes() -> dict[str, set[str]]:
    """Class name -> modules of the packages that define one of that name."""
    found: dict[str, set[str]] = defaultdict(set)
    for module, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found[node.name].add(module)
    return found


CLASSES = classes()
WORDS = table("Words")


def test_every_noun_has_one_row() -> None:
    listed = [row[0] for row in WORDS]
    assert [word for word, count in Counter(listed).items() if count > 1] == []
    assert NOUNS - set(listed) == set()


@pytest.mark.parametrize("row", WORDS, ids=lambda row: row[0])
def test_a_word_has_a_sentence_a_unit_a_source_and_classes_that_exist(row: list[str]) -> None:
    _, meaning, unit, source, named = row
    assert meaning[0].isupper()
    assert meaning.endswith(".")
    assert unit
    assert source
    assert named == "-" or quoted(named)
    assert [name for name in quoted(named) if name not in CLASSES] == []


def test_a_class_stands_for_one_word() -> None:
    named = Counter(name for row in WORDS for name in quoted(row[4]))
    assert [name for name, count in named.items() if count > 1] == []


def test_names_that_stand_twice_are_those_of_the_page() -> None:
    listed = {quoted(name)[0]: set(quoted(modules)) for name, modules, _ in table("Names that stand twice")}
    assert {name: modules for name, modules in CLASSES.items() if len(modules) > 1} == listed


def test_no_module_or_class_uses_a_word_that_is_not_used() -> None:
    refused = {word for row in table("Words that names do not use") for word in row[0].split(", ")}
    assert refused
    names = {part for module in SOURCES for part in module.split(".")} | set(CLASSES)
    assert {name: words_of(name) & refused for name in sorted(names) if words_of(name) & refused} == {}
