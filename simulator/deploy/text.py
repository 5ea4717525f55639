"""Plain data as YAML and as TOML, in the small part of both that deployment files need."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def yaml_text(value: Any, indent: int = 0) -> str:
    """Block style; strings in double quotes, which YAML reads as JSON does.

    >>> print(yaml_text({"a": 1, "b": ["x", {"c": True}], "d": {}}), end="")
    a: 1
    b:
    - "x"
    - c: true
    d: {}
    """
    pad = " " * indent
    if isinstance(value, Mapping) and value:
        return "".join(f"{pad}{_key(key)}:{_below(item, indent)}" for key, item in value.items())
    if isinstance(value, (list, tuple)) and value:
        return "".join(f"{pad}-{_item(item, indent)}" for item in value)
    return f"{pad}{_scalar(value)}\n"


def _below(item: Any, indent: int) -> str:
    """What follows a key."""
    if isinstance(item, str) and "\n" in item:
        return " |\n" + "".join(f"{' ' * (indent + 2)}{line}\n" for line in item.splitlines())
    if isinstance(item, Mapping) and item:
        return "\n" + yaml_text(item, indent + 2)
    if isinstance(item, (list, tuple)) and item:
        return "\n" + yaml_text(item, indent)
    return f" {_scalar(item)}\n"


def _item(item: Any, indent: int) -> str:
    """What follows a dash."""
    if isinstance(item, (Mapping, list, tuple)) and item:
        return " " + yaml_text(item, indent + 2).lstrip(" ")
    return f" {_scalar(item)}\n"


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() else json.dumps(key)


def _scalar(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def toml_text(data: Mapping[str, Any], path: tuple[str, ...] = ()) -> str:
    """Tables of plain data; keys whose value is None are left out.

    >>> print(toml_text({"a": 1.5, "t": {"b": "x", "c": None}, "l": [1, 2]}), end="")
    a = 1.5
    l = [1, 2]
    <BLANKLINE>
    [t]
    b = "x"
    """
    lines, tables = [], []
    for key, value in data.items():
        if value is None:
            continue
        if isinstance(value, Mapping):
            tables.append((key, value))
        elif isinstance(value, (list, tuple)) and value and all(isinstance(one, Mapping) for one in value):
            tables += [(key, one) for one in value]
        else:
            lines.append(f"{key} = {_toml(value)}\n")
    text = "".join(lines)
    for key, table in tables:
        several = isinstance(data[key], (list, tuple))
        name = ".".join((*path, key))
        text += f"\n{'[[' if several else '['}{name}{']]' if several else ']'}\n" + toml_text(table, (*path, key))
    return text


def _toml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)
