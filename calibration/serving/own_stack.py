"""Serving stacks of one's own: the fit that ships, moved by measured points of these stacks.

Only levels of a model under an engine on an accelerator move. They are of no other stack, so that what is known of
others stays, and stacks can be fitted one after the other in any order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from calibration.serving import effects
from calibration.serving.effects import FILE, ServingFit, own_level, shipped
from calibration.serving.export_profiles import as_text, engines_of, in_engine
from calibration.serving.fit import SCORED_METRICS, fit_effects, observed
from calibration.serving.parameters import NAMES, OWN, RELEASE, assumed, family_of, kind_of
from calibration.serving.points import Point
from calibration.serving.predict import PreparedPoints, equilibria, predictions, some
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

    fit: ServingFit
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
        effects.write(self.fit, folder / FILE)
        for pair, profile in self.profiles.items():
            (folder / f"{pair}.json").write_text(as_text(profile), encoding="utf-8")
        return [folder / FILE, *(folder / f"{pair}.json" for pair in self.profiles)]


def fit_own(prepared: PreparedPoints, source: str, before: ServingFit | None = None) -> OwnServing:
    """Raises TooFewPointsError. source: of the points, in words. before: fits of other stacks of one's own; what it
    says of these is forgotten."""
    left_out: Counter[str] = Counter(why for _, _, why in prepared.unpredicted)
    rows: list[int] = []
    for i, one in enumerate(prepared.points):
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
        mine = {own_level(levels) for levels in kept.levels}
        others = {level for level in before.own if level not in mine}
        added = "" if source in before.source.split("; ") else f"; {source}"
        fit = replace(
            fit,
            effects={**fit.effects, **{level: before.effects[level] for level in others}},
            draws={**fit.draws, **{level: before.draws[level] for level in others}},
            source=f"{before.source}{added}",
            own=fit.own | others,
        )
    profiles = _profiles(kept, fit, source)
    return OwnServing(fit, profiles, predictions(kept, start), _held_out(kept, start), dict(left_out))


def moved(prepared: PreparedPoints, before: ServingFit, source: str) -> ServingFit:
    """`before` with the own levels of these points fitted to them: an engine of one's own may be as far from others as
    those are from each other. What is not known of the stack is drawn, and the points take it back as far as they
    tell."""
    mine = [own_level(levels) for levels in prepared.levels]
    start = _of_one_release(before, prepared.levels)
    found = fit_effects(
        equilibria(prepared), [(level,) for level in mine], observed([p.point for p in prepared.points]),
        np.ones(len(prepared.points)), source, (RENEWAL,), (start.theta(prepared.levels), start.drawn(prepared.levels)),
        {OWN: 1.0}, robust=False,
    )  # fmt: skip
    none = np.zeros(len(NAMES))
    return ServingFit(
        {**start.effects, **{level: start.effects.get(level, none) + found.effects[level] for level in found.effects}},
        {**start.draws, **{level: start.draw(level) + found.draws[level] for level in found.draws}},
        f"{before.source}; {source}",
        start.own,
        start.noise,
    )


def _of_one_release(fit: ServingFit, levels: Sequence[tuple[str, ...]]) -> ServingFit:
    """One's own software is of one release: it has no renewal from month to month, and what the fit says of releases of
    its engine is not said of it."""
    effects, draws = dict(fit.effects), dict(fit.draws)
    place = NAMES.index(RENEWAL)
    renewal = np.arange(len(NAMES)) == place
    named = {own_level(mine): mine for mine in levels}
    for own, mine in named.items():
        others = [tuple(level for level in mine if kind_of(level) not in (OWN, RELEASE))]
        effects[own] = np.where(renewal, (assumed() - fit.theta(others)[0]), fit.effects.get(own, np.zeros(len(NAMES))))
        draws[own] = np.where(renewal, assumed() - fit.drawn(others)[0], fit.draw(own))
    return replace(fit, effects=effects, draws=draws, own=fit.own | frozenset(named))


def _held_out(prepared: PreparedPoints, before: ServingFit) -> pd.DataFrame | None:
    """Each half of the points, drawn at random, as a fit of the other half predicts it."""
    count = len(prepared.points)
    if count < FEWEST_IN_HALVES:
        return None
    half = np.random.default_rng(0).permutation(count) % 2
    one, other = (some(prepared, np.flatnonzero(half == side).tolist()) for side in (0, 1))
    lines = [predictions(test, moved(train, before, "half of them")) for train, test in ((one, other), (other, one))]
    return pd.concat(lines, ignore_index=True)


def _profiles(prepared: PreparedPoints, fit: ServingFit, source: str) -> dict[str, Efficiency]:
    """Of each pair; where engines share a stack, that of most points stands for it in each form of serving."""
    pairs: dict[tuple[str, str], list[Point]] = {}
    for one in prepared.points:
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
