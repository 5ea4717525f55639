"""Tables as TOML text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def toml_text(tables: Mapping[str, Any]) -> str:
    """Keys first, then a table of each mapping; None is left out.

    >>> print(toml_text({"b": {"c": 2.0, "d": [1, 2]}, "a": "x"}), end="")
    a = "x"
    <BLANKLINE>
    [b]
    c = 2.0
    d = [1, 2]
    """
    return "\n".join(_lines(tables, "")).lstrip("\n") + "\n"


def _lines(table: Mapping[str, Any], name: str) -> list[str]:
    kept = {key: value for key, value in table.items() if value is not None}
    plain = {key: value for key, value in kept.items() if not _is_table(value) and not _are_tables(value)}
    lines = ["", f"[{name}]"] if name and (plain or not kept) else []
    lines += [f"{key} = {_value(value)}" for key, value in plain.items()]
    for key, value in kept.items():
        inner = f"{name}.{key}" if name else key
        if _is_table(value):
            lines += _lines(value, inner)
        elif _are_tables(value):
            for each in value:
                lines += ["", f"[[{inner}]]", *_lines(each, inner)[2:]]
    return lines


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping)


def _are_tables(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(each, Mapping) for each in value)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_value(each) for each in value) + "]"
    return json.dumps(str(value), ensure_ascii=False)  # JSON's strings are basic strings of TOML
