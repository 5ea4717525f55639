"""Reading hardware files: whatever is wrong becomes one sentence naming file and key."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

LONGEST_SHOWN = 60  # characters of a wrong value in a message; assumed: it stays on one line
Model = TypeVar("Model", bound=BaseModel)


class CatalogError(ValueError):
    """A part, file or figure that cannot be used; the message names it and the way out."""


def read_toml(path: Path) -> dict[str, Any]:
    """Parse one TOML file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CatalogError(f"{path}: no such file; give an existing .toml file or a catalogue name") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise CatalogError(f"{path}: cannot be read ({reason})") from None
    except tomllib.TOMLDecodeError as error:
        raise CatalogError(f"{path}: not valid TOML: {error}") from None


def build(model: type[Model], data: Any, path: Path) -> Model:
    """Validate `data` from `path`; the first problem becomes a CatalogError."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise CatalogError(f"{path.name}: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    problems = error.errors()
    first = problems[0]
    # pydantic marks a wrong dictionary key with "[key]", which is no part of the file's own path
    key = ".".join(str(part) for part in first["loc"] if part != "[key]")
    value = first["input"]
    kind = first["type"]
    if kind == "missing":
        text = f"{key} is missing"
        if first["loc"][-1] in ("value", "unit", "source", "accessed"):
            text += "; every figure needs value, unit, source and accessed"
    elif kind == "extra_forbidden":
        text = f"unknown key {key}; check its spelling or remove it"
    elif kind in ("greater_than_equal", "finite_number"):
        limit = first.get("ctx", {}).get("ge", 0)
        text = f"{key} = {_short(value)} must be a finite number of at least {limit:g}"
    elif kind == "string_too_short":
        text = f"{key} = {value!r} is empty or too short"
        if first["loc"][-1] == "source":
            text += "; write where the figure comes from"
    elif kind == "value_error":
        text = f"{key}: {first['ctx']['error']}" if key else str(first["ctx"]["error"])
    elif kind in ("model_type", "dict_type"):
        text = f"{key} = {_short(value)} must be a table such as {{ value, unit, source, accessed }}"
    elif kind == "tuple_type":
        text = f"{key} = {_short(value)} must be a list"
    elif kind == "string_pattern_mismatch":
        text = f"{key} = {_short(value)} must be lower-case letters, digits and _ only"
    else:
        text = f"{key} = {_short(value)} {first['msg'].removeprefix('Input ')}"
    more = len(problems) - 1
    return text + (f" (and {more} more problem{'s' if more > 1 else ''})" if more else "")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "..."
