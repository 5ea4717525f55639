"""Energy of the accelerators of a run, by the time that they idle and are in steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

JOULE_PER_KWH = 3.6e6  # by definition


@dataclass(frozen=True)
class GroupEnergy:
    """joules: of a group over the whole run; watts: its mean draw over the measured span."""

    group: str
    joules: float
    watts: float


@dataclass(frozen=True)
class PoolEnergy:
    """Of one group: over the whole run, and its mean draw over the measured span."""

    kwh: float
    power_kw: float


@dataclass(frozen=True)
class EnergyReport:
    """Of the whole run; per token and request at the measured draw and rates, None where nothing was served."""

    kwh: float
    power_kw: float
    joule_per_token: float | None
    joule_per_output_token: float | None
    joule_per_request: float | None
    pools: Mapping[str, PoolEnergy]


def energy_report(
    groups: Sequence[GroupEnergy], input_tok_s: float, output_tok_s: float, requests_per_s: float
) -> EnergyReport:
    watts = sum(group.watts for group in groups)

    def per(rate: float) -> float | None:
        return watts / rate if rate > 0 else None

    return EnergyReport(
        sum(group.joules for group in groups) / JOULE_PER_KWH,
        watts / 1e3,
        per(input_tok_s + output_tok_s),
        per(output_tok_s),
        per(requests_per_s),
        {each.group: PoolEnergy(each.joules / JOULE_PER_KWH, each.watts / 1e3) for each in groups},
    )
