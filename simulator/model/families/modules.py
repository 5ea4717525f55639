"""Lists of modules in quantised checkpoints: names, globs, and regular expressions after `re:`."""

from __future__ import annotations

import fnmatch
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from simulator.model.families.module_names import DRAFT_PREFIXES, PREFIXES, layer_of

_ONE_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_CLASS_NAME = re.compile(r"(?:nn\.|torch\.nn\.)?[A-Z]\w*$")  # "Linear": every projection


class Modules:
    """A checkpoint's list of modules, asked for one projection of one layer at a time.

    A name covers what stands below it; a glob the whole name or some dotted components of it, as modelopt and
    transformers read theirs; a regular expression the beginning of a name. Raises re.error for a bad one.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._exact: defaultdict[int, set[str]] = defaultdict(set)
        self._of_layer: defaultdict[int, list[re.Pattern[str]]] = defaultdict(list)
        self._general: list[re.Pattern[str]] = []
        self.outside: set[str] = set()  # names of modules that are in no layer, as "lm_head"
        self.everything = False
        for pattern in patterns:
            self._add(pattern)

    def _add(self, pattern: str) -> None:
        if pattern.startswith("re:"):
            self._general.append(re.compile(pattern[3:]))
        elif _CLASS_NAME.fullmatch(pattern):
            self.everything = True
        elif "*" not in pattern:
            place = layer_of(pattern)
            if place is not None:
                self._exact[place[0]].add(place[1])
            else:
                self.outside.add(pattern)
                self._general.append(re.compile(rf"(?:.*\.)?{re.escape(pattern)}(?:\.|$)"))
        else:
            one = _ONE_LAYER.search(pattern)
            into = self._of_layer[int(one[1])] if one else self._general
            into.append(re.compile(fnmatch.translate(pattern)))
            components = re.escape(pattern).replace(r"\*", r"[^.]*")
            into.append(re.compile(rf"(?:.*\.)?{components}(?:\.|$)"))

    @property
    def tells_layers_apart(self) -> bool:
        """Whether any pattern may treat layers of one kind unlike one another."""
        return bool(self._exact or self._of_layer) or any(
            "layers" in pattern.pattern or r"\d" in pattern.pattern for pattern in self._general
        )

    def cover(self, layer: int, names: Sequence[str], draft: bool = False) -> bool:
        """Whether the projection with these names below its layer is on the list. draft: layers of the draft head
        follow those of the model, and have names of their own besides."""
        if self.everything:
            return True
        exact = self._exact.get(layer)
        if exact and any(part in exact for name in names for part in _ancestors(name)):
            return True
        patterns = self._general + self._of_layer.get(layer, [])
        if not patterns:
            return False
        return any(pattern.match(name) for name in _full_names(layer, names, draft) for pattern in patterns)


def _ancestors(name: str) -> list[str]:
    """The name and the modules that it stands in, down to the layer itself.

    >>> _ancestors("mlp.experts.0")
    ['mlp.experts.0', 'mlp.experts', 'mlp', '']
    """
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts), -1, -1)]


def _full_names(layer: int, names: Sequence[str], draft: bool) -> list[str]:
    full = [f"{prefix}.{layer}.{name}" for prefix in PREFIXES for name in names]
    if draft:
        full += [f"{prefix}.0.{name}" for prefix in DRAFT_PREFIXES for name in names]
    return full
