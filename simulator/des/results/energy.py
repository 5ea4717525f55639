"""Energy of the accelerators of a run, by the time that they idle and are in steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

JOULE_PER_KWH = 3.6e6  # by definition


@dataclass(frozen=True)
class GroupEnergy:
    """joules: of a group over the whole run; watts: its mean draw over the measured span."""

    group: str
    joules: float
    watts: float


def energy_report(
    groups: Sequence[GroupEnergy], input_tok_s: float, output_tok_s: float, requests_per_s: float
) -> dict[str, Any]:
    """Energy of the whole run; per token and request at the measured draw and rates, None where nothing was served."""
    watts = sum(group.watts for group in groups)

    def per(rate: float) -> float | None:
        return watts / rate if rate > 0 else None

    return {
        "kwh": sum(group.joules for group in groups) / JOULE_PER_KWH,
        "power_kw": watts / 1e3,
        "joule_per_token": per(input_tok_s + output_tok_s),
        "joule_per_output_token": per(output_tok_s),
        "joule_per_request": per(requests_per_s),
        "pools": {each.group: {"kwh": each.joules / JOULE_PER_KWH, "power_kw": each.watts / 1e3} for each in groups},
    }
