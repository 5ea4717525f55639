"""Fitted effects of levels, with draws of what is not known of them: the file of a serving fit.

A fit of measured points leaves a posterior, of which DRAWS effects of every level are kept. A level that no point had
is drawn from its prior, always alike for the same name, so that two designs on an unseen accelerator share its draws.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from calibration.serving.parameters import (
    DATA,
    LEVELS,
    NAMES,
    OWN,
    PARAMETERS,
    RELEASE,
    WIDTHS,
    assumed,
    kind_of,
)
from calibration.serving.points import UNKNOWN, months_of
from hw_profiles.catalog import own_folder
from hw_profiles.loading import CatalogError
from simulator.model.arrays import Floats
from simulator.model.draws import DRAWS
from simulator.model.engine import NOISE as ASSUMED_NOISE

FILE = "serving.json"  # of a fit
DIGITS = 3  # of effects: finer ones say nothing beside their deviation


def prior_draws(level: str) -> Floats:
    """[DRAWS, parameters] of a level that no point had."""
    share = LEVELS[kind_of(level)][0]
    return np.random.default_rng(zlib.crc32(level.encode())).normal(size=(DRAWS, len(NAMES))) * WIDTHS * share


@dataclass(frozen=True)
class ServingFit:
    """effects: by level, [parameters] in the units of `Given.theta`. draws: by level, [DRAWS, parameters]. own: levels
    of stacks that one's own points moved, for which their software has no other releases. noise: standard deviation of
    the log of one measurement about the model, by metric."""

    effects: Mapping[str, Floats]
    draws: Mapping[str, Floats] = field(default_factory=dict)
    source: str = "assumed values"
    own: frozenset[str] = frozenset()
    noise: Mapping[str, float] = field(default_factory=lambda: dict(ASSUMED_NOISE))

    def counted(self, mine: Sequence[str]) -> tuple[str, ...]:
        """Of the levels of a point those that say something of it."""
        one_release = any(level in self.own for level in mine)
        return tuple(level for level in mine if not (one_release and kind_of(level) == RELEASE))

    def theta(self, levels: Sequence[tuple[str, ...]]) -> Floats:
        """[points, parameters], most likely, for points of these levels."""
        base, none = assumed(), np.zeros(len(NAMES))
        return np.array(
            [base + sum((self.effects.get(one, none) for one in self.counted(mine)), none) for mine in levels]
        )

    def drawn(self, levels: Sequence[tuple[str, ...]]) -> Floats:
        """[points, DRAWS, parameters]"""
        base, none = assumed(), np.zeros((DRAWS, len(NAMES)))
        return np.array([base + sum((self.draw(one) for one in self.counted(mine)), none) for mine in levels])

    def draw(self, level: str) -> Floats:
        """[DRAWS, parameters] of one level."""
        found = self.draws.get(level)
        if found is not None:
            return found
        return prior_draws(level) * (1 + self._months_away(level)) ** 0.5

    def _months_away(self, level: str) -> int:
        """Of a release of an engine, from the nearest one that was fitted: software drifts, each month as far as the
        last (a random walk). 0 for other levels, and where nothing of that engine was fitted."""
        engine, _, month = level.rpartition("+")
        if kind_of(level) != RELEASE or month == UNKNOWN:
            return 0
        known = [other.rpartition("+")[2] for other in self.effects if other.rpartition("+")[0] == engine]
        return min((abs(months_of(month) - months_of(other)) for other in known if other != UNKNOWN), default=0)

    def to_json(self) -> dict[str, Any]:
        def rounded(value: Floats) -> Any:
            return np.round(value, DIGITS).tolist()

        return {
            "source": self.source,
            "parameters": {p.name: {"meaning": p.meaning, "assumed": p.assumed} for p in PARAMETERS},
            "own": sorted(self.own),
            "noise": {metric: round(sigma, DIGITS) for metric, sigma in self.noise.items()},
            "effects": {level: rounded(effect) for level, effect in sorted(self.effects.items())},
            "draws": {level: rounded(drawn.T) for level, drawn in sorted(self.draws.items())},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ServingFit:
        """Raises ValueError with what is wrong."""
        if list(data["parameters"]) != list(NAMES):
            raise ValueError("its parameters are those of another version of the model")
        effects = {level: np.array(effect, dtype=float) for level, effect in data["effects"].items()}
        draws = {level: np.array(drawn, dtype=float).T for level, drawn in data["draws"].items()}
        for level, shape in ((level, effect.shape) for level, effect in effects.items()):
            if kind_of(level) not in LEVELS or shape != (len(NAMES),) or not np.isfinite(effects[level]).all():
                raise ValueError(f"effect {level!r} is not {len(NAMES)} numbers of a known level")
            drawn = draws.get(level, np.zeros(0))
            if drawn.shape != (DRAWS, len(NAMES)) or not np.isfinite(drawn).all():
                raise ValueError(f"draws of {level!r} are not {DRAWS} of {len(NAMES)} numbers")
        noise = {metric: float(data["noise"][metric]) for metric in ASSUMED_NOISE}
        return cls(effects, draws, str(data["source"]), frozenset(map(str, data["own"])), noise)


def write(fit: ServingFit, path: Path) -> None:
    """A line for each level."""
    data = fit.to_json()
    tables = {name: data.pop(name) for name in ("effects", "draws")}
    text = json.dumps(data, indent=1)[:-2]
    for name, table in tables.items():
        lines = ",\n".join(
            f"  {json.dumps(level)}: {json.dumps(row, separators=(',', ':'))}" for level, row in table.items()
        )
        text += f',\n "{name}": {{\n{lines}\n }}'
    path.write_text(f"{text}\n}}\n", encoding="utf-8")


def shipped() -> ServingFit:
    """The fit that ships."""
    return ServingFit.from_json(json.loads((DATA / FILE).read_text(encoding="utf-8")))


def chosen() -> ServingFit:
    """The fit in the folder of one's own profiles, or the one that ships. CatalogError where it cannot be read."""
    folder = own_folder()
    return (fit_in(folder) if folder is not None else None) or shipped()


def fit_in(folder: Path) -> ServingFit | None:
    """The fit in a folder of one's own; None where there is none. CatalogError where it cannot be read."""
    path = folder / FILE
    if not path.is_file():
        return None
    way_out = "remove it, and write it anew with `moeplan calibrate serving`"
    try:
        return ServingFit.from_json(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise CatalogError(f"{path} cannot be read ({error.strerror}); {way_out}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        said = error if type(error) is ValueError else "it holds no fit of serving stacks"
        raise CatalogError(f"{path}: {said}; {way_out}") from None


NOTHING_FITTED = ServingFit({})


def own_level(mine: Sequence[str]) -> str:
    """Of the levels of a point, that of its own stack and model."""
    return next(level for level in mine if kind_of(level) == OWN)
