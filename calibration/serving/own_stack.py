"""Serving stacks of one's own: the fit that ships, moved by measured points of these stacks.

Only levels of a model under an engine on an accelerator move. They are of no other stack, so that what is known of
others stays, and stacks can be fitted one after the other in any order.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from calibration.serving.engine_fit import SCORED_METRICS, fit_stack, observed
from calibration.serving.engine_parameters import FILE, NAMES, StackFit, assumed, family_of, shipped
from calibration.serving.export_profiles import engines_of, in_engine
from calibration.serving.points import Point
from calibration.serving.predict import PreparedPoints, predictions, some
from hw_profiles.efficiency import Efficiency
from hw_profiles.efficiency_files import read_json
from hw_profiles.loading import CatalogError
from simulator.model.engine import Form, form_of

RENEWAL = "renewal"
FEWEST = 3  # rows that say something beside the priors (assumed)
FEWEST_IN_HALVES = 8  # rows of which half predict the other half (assumed)


class TooFewPointsError(ValueError):
    """Nothing to fit; the message says what is missing."""


@dataclass(frozen=True)
class OwnServing:
    """fit: of all stacks, with one's own moved. profiles: of each pair of accelerator and stack. before, held_out:
    lines of `predictions` for the points that count, by the fit that ships and by one of the other half of the
    points (None: too few to halve). left_out: why rows were not fitted, and how many."""

    fit: StackFit
    profiles: dict[str, Efficiency]
    before: pd.DataFrame
    held_out: pd.DataFrame | None
    left_out: dict[str, int]

    def write(self, folder: Path) -> list[Path]:
        """The fit, for `validate`, and the profiles, for `plan` and `simulate`. CatalogError where another file there
        describes one of the pairs."""
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("*.json")):
            if path.name == FILE or path.stem in self.profiles:
                continue
            data = read_json(path)
            pair = f"{data.get('accelerator')}@{data.get('stack')}" if isinstance(data, dict) else ""
            if pair in self.profiles:
                raise CatalogError(f"{path} already describes {pair}; remove it, or name another folder")
        texts = {FILE: json.dumps(self.fit.to_json(), indent=1)}
        texts |= {f"{pair}.json": profile.model_dump_json(indent=1) for pair, profile in self.profiles.items()}
        for name, text in texts.items():
            (folder / name).write_text(text + "\n", encoding="utf-8")
        return [folder / name for name in texts]


def fit_own(prepared: PreparedPoints, source: str, before: StackFit | None = None) -> OwnServing:
    """Raises TooFewPointsError. source: of the points, in words. before: fits of other stacks of one's own; what it
    says of these is forgotten."""
    left_out: Counter[str] = Counter(why for _, _, why in prepared.unpredicted)
    rows: list[int] = []
    for i, one in enumerate(prepared.steps):
        measured = np.isfinite(observed([one.point])).any()
        why = one.point.distrusted or ("" if measured else f"none of {', '.join(SCORED_METRICS)}")
        if why:
            left_out[why] += 1
        else:
            rows.append(i)
    if len(rows) < FEWEST:
        reasons = "".join(f"; left out: {n} with {why}" for why, n in left_out.items())
        raise TooFewPointsError(f"{len(rows)} of the rows can be fitted, {FEWEST} are needed{reasons}")
    kept = some(prepared, rows)
    start = shipped()
    fit = moved(kept, start, source)
    if before is not None:
        mine = {level for levels in kept.levels for level in levels if level.startswith("gpu+engine")}
        others = {level: effect for level, effect in before.effects.items() if level not in mine}
        added = "" if source in before.source.split("; ") else f"; {source}"
        fit = replace(fit, effects={**fit.effects, **others}, source=f"{before.source}{added}")
    profiles = _profiles(kept, fit, source)
    return OwnServing(fit, profiles, predictions(kept, start), _held_out(kept, start), dict(left_out))


def moved(prepared: PreparedPoints, before: StackFit, source: str) -> StackFit:
    """`before` with the own levels of these points fitted to them."""
    assert prepared.loop is not None
    none = np.zeros(len(NAMES))
    start = _of_one_release(before, prepared.levels)
    found = fit_stack(
        prepared.loop,
        [tuple(level for level in levels if _own(level)) for levels in prepared.levels],
        observed([s.point for s in prepared.steps]),
        np.ones(len(prepared.steps)),
        source,
        frozen=(RENEWAL,),
        start=start.theta(prepared.levels),
    )
    moves = {level: start.effects.get(level, none) + effect for level, effect in found.effects.items()}
    return replace(before, effects={**start.effects, **moves}, source=f"{before.source}; {source}")


def _of_one_release(fit: StackFit, levels: Sequence[tuple[str, ...]]) -> StackFit:
    """One's own software is of one release: what the fit says of other releases of its engine, and of its renewal from
    month to month, is taken back for these stacks."""
    effects = dict(fit.effects)
    none = np.zeros(len(NAMES))
    named = [{level.partition("=")[0]: level for level in mine} for mine in levels]
    for by_name in named:
        effects[by_name["gpu+engine+release"]] = -fit.effects.get(by_name["engine+release"], none)
    place = NAMES.index(RENEWAL)
    renewed = replace(fit, effects=effects).theta(levels)[:, place] - assumed()[place]
    for by_name, change in zip(named, renewed, strict=True):
        own = by_name["gpu+engine+model"]
        effects[own] = fit.effects.get(own, none) - change * (np.arange(len(NAMES)) == place)
    return replace(fit, effects=effects)


def _own(level: str) -> bool:
    """A label of precision that a row lacks names nothing that a plan could ask for."""
    return level.startswith("gpu+engine+model") and not level.endswith("+unknown")


def _held_out(prepared: PreparedPoints, before: StackFit) -> pd.DataFrame | None:
    """Each half of the points, drawn at random, as a fit of the other half predicts it."""
    count = len(prepared.steps)
    if count < FEWEST_IN_HALVES:
        return None
    half = np.random.default_rng(0).permutation(count) % 2
    one, other = (some(prepared, np.flatnonzero(half == side).tolist()) for side in (0, 1))
    lines = [predictions(test, moved(train, before, "half of them")) for train, test in ((one, other), (other, one))]
    return pd.concat(lines, ignore_index=True)


def _profiles(prepared: PreparedPoints, fit: StackFit, source: str) -> dict[str, Efficiency]:
    """Of each pair; where engines share a stack, that of most points stands for it in each form of serving."""
    pairs: dict[tuple[str, str], list[Point]] = {}
    for one in prepared.steps:
        pairs.setdefault((one.hardware.name, family_of(one.point.engine)), []).append(one.point)
    found = {}
    for (gpu, family), points in pairs.items():
        ran: dict[Form, Counter[str]] = {}
        for point in points:
            ran.setdefault(form_of(point.disaggregated), Counter())[point.engine] += 1
        most = {form: engines.most_common(1)[0][0] for form, engines in ran.items()}
        origin = f"fit to {len(points)} serving points of {' and '.join(sorted(set(most.values())))} in {source}"
        profile = in_engine(gpu, family, fit, {**engines_of(gpu, family, fit), **most}, origin)
        stack = re.sub(r"[^a-z0-9.]+", "-", family).strip("-.") or "own"
        update = {"stack": stack, "origin": "served", "served": tuple(sorted(most))}
        found[f"{gpu}@{stack}"] = profile.model_copy(update=update)
    return found
