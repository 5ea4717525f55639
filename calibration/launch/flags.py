"""Words of a command line as flags; nothing is run."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from calibration.launch.launch import LaunchError

FLAG = re.compile(r"-{1,2}[A-Za-z]")
MOST_CHARACTERS = 1_000_000  # of a file that a command names: engine files are far smaller (assumed)


@dataclass(frozen=True)
class Flags:
    """values: by name without dashes and with `-` for `_`; all values of a flag that is given more than once.
    A switch has the value "". words: what belongs to no flag."""

    command: str
    words: tuple[str, ...]
    values: Mapping[str, tuple[str, ...]]

    def has(self, *names: str) -> bool:
        return any(name in self.values for name in names)

    def text(self, *names: str) -> str | None:
        """The last value of the first of the names that is given."""
        return next((self.values[name][-1] for name in names if name in self.values), None)

    def switch(self, *names: str) -> bool:
        """A switch that is on; `--no-...` and 'false' are off."""
        value = self.text(*names)
        return value is not None and value.lower() not in ("false", "0", "no", "off")

    def whole(self, *names: str) -> int | None:
        value = self.text(*names)
        if value is None:
            return None
        return whole(value, f"--{names[0]}")

    def share(self, *names: str) -> float | None:
        value = self.text(*names)
        if value is None:
            return None
        try:
            return float(value)
        except ValueError:
            raise LaunchError(f"--{names[0]}={value} is not a number; correct it") from None

    def table(self, name: str) -> dict[str, Any]:
        """A flag whose value is JSON, and its keys given one by one as `--name.key value`."""
        found: dict[str, Any] = {}
        text = self.text(name)
        if text:
            try:
                value = json.loads(text)
            except ValueError as error:
                raise LaunchError(f"--{name} is not JSON ({error}); give it in single quotes") from None
            found |= value if isinstance(value, dict) else {}
        for known, values in self.values.items():
            if known.startswith(f"{name}."):
                found[known.removeprefix(f"{name}.").replace("-", "_")] = values[-1]
        return found


def whole(value: Any, name: str) -> int:
    """A whole number; engines also take 8k, 1M and 2e3. Raises LaunchError."""
    text = str(value).strip()
    if "$" in text or "{" in text:
        raise LaunchError(f"{name}={text} is filled in by a shell; put the number there")
    scale = {"k": 1000, "K": 1024, "m": 10**6, "M": 2**20}.get(text[-1:], 1)
    digits = text[:-1] if scale != 1 else text
    try:
        number = float(digits) * scale
    except ValueError:
        number = 0.5
    if not number.is_integer():
        raise LaunchError(f"{name}={text} is not a whole number; correct it")
    return int(number)


def split_commands(text: str) -> list[list[str]]:
    """The words of each command of a script: comments left out, lines that go on joined."""
    commands = []
    joined = re.sub(r"\\\s*\n", " ", text)
    for line in joined.splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise LaunchError(f"command {line.strip()[:60]!r} cannot be split into words ({error})") from None
        for part in _parts(words):
            if part:
                commands.append(part)
    return commands


def _parts(words: Sequence[str]) -> list[list[str]]:
    """Commands of one line, after `&&`, `;` and `&`."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word in ("&&", ";", "&", "||", "|"):
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def read_flags(command: str, words: Sequence[str]) -> Flags:
    """Flags after the words that name the program; each takes the word after it, unless that is a flag."""
    before: list[str] = []
    values: dict[str, list[str]] = {}
    name: str | None = None
    for word in words:
        if FLAG.match(word):
            flag, equals, value = word.partition("=")
            name = flag.lstrip("-").replace("_", "-")
            values.setdefault(name, []).append(value if equals else "")
        elif name is None or values[name][-1]:
            before.append(word)
        else:
            values[name][-1] = word
    return Flags(command, tuple(before), {key: tuple(found) for key, found in values.items()})


def engine_file(path: Path) -> dict[str, Any]:
    """A YAML or JSON file that a command names. Raises LaunchError."""
    try:
        text = path.read_text(encoding="utf-8")
        if len(text) > MOST_CHARACTERS:
            raise LaunchError(f"{path} is too large for an engine file; give the file that the command names")
        found = yaml.safe_load(text)
    except FileNotFoundError:
        raise LaunchError(
            f"the command names {path}, which does not exist; put it there, or give its keys as flags"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise LaunchError(f"{path} is not YAML that can be read ({' '.join(str(error).split())})") from None
    if not isinstance(found, dict):
        raise LaunchError(f"{path} holds no keys; give the engine's options as 'name: value'")
    return {str(key): value for key, value in found.items()}
