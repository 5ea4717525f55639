"""Reading a Hugging Face `config.json` with errors in the reader's words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

NEAREST_SHOWN = 3  # words close to an unknown one that a message names; assumed
SIMILAR = 0.6  # of such words (difflib's ratio, its own default) [-]
LONGEST_SHOWN = 60  # characters of a wrong value in a message; assumed: it stays on one line


class ModelError(ValueError):
    """A model name or configuration that cannot be used. One sentence, naming the way out."""


def close_matches(word: str, known: Iterable[str], instead: str = "did you mean") -> str:
    """Half a sentence with the known words nearest to `word`, or "".

    >>> close_matches("hiden_size", ["hidden_size", "vocab_size"])
    '; did you mean hidden_size?'
    """
    near = difflib.get_close_matches(word, list(known), n=NEAREST_SHOWN, cutoff=SIMILAR)
    return f"; {instead} {' or '.join(near)}?" if near else ""


class ConfigReader:
    """Typed look-ups in one configuration; every failure names the file and the key.

    where: how messages call the configuration (a path or a preset's name).
    """

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.config = config
        self.where = where

    def fail(self, sentence: str) -> ModelError:
        return ModelError(f"{self.where}: {sentence}")

    def has(self, key: str) -> bool:
        """Whether `key` is there with something in it (null counts as absent, as transformers writes it)."""
        return self.config.get(key) is not None

    def first_of(self, *keys: str) -> str:
        """The first of `keys` that is there; the first of all where none is."""
        return next((key for key in keys if self.has(key)), keys[0])

    def _get(self, key: str, expected: str) -> Any:
        if not self.has(key):
            raise self.fail(
                f"key {key!r} ({expected}) is missing"
                + close_matches(key, (k for k in self.config if k != key), "is it misspelt as")
            )
        return self.config[key]

    def _wrong(self, key: str, value: object, expected: str) -> ModelError:
        return self.fail(f"key {key!r} is {value!r:.{LONGEST_SHOWN}}, expected {expected}")

    def integer(self, key: str, default: int | None = None, minimum: int = 1) -> int:
        """A whole number of at least `minimum`; `default` where the key is absent."""
        expected = f"a whole number of at least {minimum}"
        if default is not None and not self.has(key):
            return default
        value = self._get(key, expected)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self._wrong(key, value, expected)
        return value

    def flag(self, key: str, default: bool) -> bool:
        if not self.has(key):
            return default
        value = self.config[key]
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        if not self.has(key):
            return default
        value = self.config[key]
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def choices(self, key: str, allowed: Iterable[Any], least: int) -> list[Any]:
        """A list of at least `least` items, each one of `allowed`; returned whole."""
        names = list(allowed)
        expected = f"a list of at least {least} items, each one of {', '.join(map(str, names))}"
        value = self._get(key, expected)
        if not isinstance(value, list):
            raise self._wrong(key, value, expected)
        for i, item in enumerate(value):
            if isinstance(item, bool) or item not in names:
                raise self._wrong(f"{key}[{i}]", item, f"one of {', '.join(map(str, names))}")
        if len(value) < least:
            raise self.fail(f"key {key!r} has {len(value)} items, expected {least} (one per layer)")
        return value

    def numbers(self, key: str) -> list[int]:
        """A list of whole numbers of at least 0; empty where absent."""
        value = self.config.get(key) or []
        if not isinstance(value, list) or any(
            isinstance(item, bool) or not isinstance(item, int) or item < 0 for item in value
        ):
            raise self._wrong(key, value, "a list of whole numbers")
        return value

    def strings(self, key: str) -> list[str]:
        """A list of strings; empty where absent."""
        value = self.config.get(key) or []
        if not isinstance(value, list) or any(not isinstance(item, str) for item in value):
            raise self._wrong(key, value, "a list of strings")
        return value

    def section(self, key: str) -> ConfigReader:
        """A nested object, read with its path in every message."""
        value = self._get(key, "an object")
        if not isinstance(value, dict):
            raise self._wrong(key, value, "an object")
        return ConfigReader(value, f"{self.where}, {key}")
