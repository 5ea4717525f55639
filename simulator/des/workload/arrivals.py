"""Arrival times whose rate changes: by the hour of the day, by bursts, or both.

Arrivals are drawn on a clock that ticks once per expected arrival and carried to seconds by the inverse of the
integrated rate (time change of a point process), which keeps Poisson streams Poisson and Gamma gaps Gamma.
"""

from __future__ import annotations

import numpy as np

from simulator.model.arrays import Floats
from simulator.scenario import Bursts, Diurnal, ScenarioError

DAY_S = 86_400.0  # [s]
SPELLS_AT_ONCE = 1024  # pairs of quiet and burst drawn by one call
CELLS_PER_PERIOD = 512  # the curve is taken as constant inside a cell
MOST_CELLS = 20_000_000  # of the whole run; 160 MB


def change_time(ticks: Floats, rate: float, diurnal: Diurnal | None, bursts: Bursts | None, seed: int) -> Floats:
    """Seconds of arrivals given in expected arrivals since the start, in order. `rate` is the highest."""
    lowest = rate * (diurnal.trough if diurnal else 1.0) * (bursts.quiet if bursts else 1.0)
    horizon_s = float(ticks[-1]) / lowest
    edges = np.array([0.0, horizon_s])
    if diurnal is not None:
        cell_s = diurnal.period_s / CELLS_PER_PERIOD
        if horizon_s / cell_s > MOST_CELLS:
            raise ScenarioError(
                f"workload.diurnal.period_s={diurnal.period_s:g} is too short beside the {horizon_s:g} s that the "
                "arrivals may take; give a longer period or fewer requests"
            )
        edges = np.append(np.arange(0.0, horizon_s, cell_s), horizon_s)
    switches = np.empty(0)
    if bursts is not None:
        if 2 * horizon_s / (bursts.burst_s + bursts.quiet_s) > MOST_CELLS:
            raise ScenarioError(
                f"workload.bursts.burst_s={bursts.burst_s:g} and quiet_s={bursts.quiet_s:g} are too short beside the "
                f"{horizon_s:g} s that the arrivals may take; give longer spells or fewer requests"
            )
        switches = _switches(bursts, horizon_s, np.random.default_rng(seed))
        edges = np.union1d(edges, switches[switches < horizon_s])
    middles = (edges[1:] + edges[:-1]) / 2
    rates = np.full(len(middles), rate)
    if diurnal is not None:
        rates *= daily_share(diurnal, middles)
    if bursts is not None:
        quiet = np.searchsorted(switches, middles) % 2 == 0  # quiet first, then by turns
        rates[quiet] *= bursts.quiet
    expected = np.concatenate([[0.0], np.cumsum(rates * np.diff(edges))])
    return np.interp(ticks, expected, edges)


def daily_share(diurnal: Diurnal, time_s: Floats) -> Floats:
    """Rate over the highest rate of the first day: a cosine between trough and 1, times the growth since then."""
    middle, swing = (1 + diurnal.trough) / 2, (1 - diurnal.trough) / 2
    curve = middle + swing * np.cos(2 * np.pi * (time_s - diurnal.peak_s) / diurnal.period_s)
    grown: Floats = curve * (1 + diurnal.growth_per_day) ** (time_s / DAY_S)
    return grown


def _switches(bursts: Bursts, horizon_s: float, rng: np.random.Generator) -> Floats:
    """Moments at which bursts begin and end by turns, beyond the horizon at last. [s]"""
    parts = [np.empty(0)]
    last = 0.0
    while last <= horizon_s:
        lengths = rng.exponential((bursts.quiet_s, bursts.burst_s), (SPELLS_AT_ONCE, 2)).ravel()
        part = last + np.cumsum(lengths)
        parts.append(part)
        last = float(part[-1])
    return np.concatenate(parts)
