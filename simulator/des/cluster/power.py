"""What an accelerator draws: a level for each of idling, prefill and decode, so that energy is a sum of times.

Computing prompts draws the TDP; decoding draws more the more rows a step has (`hw_profiles.power`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hw_profiles.profile import HardwareProfile
from simulator.scenario import PowerKeys


@dataclass(frozen=True)
class PowerDraw:
    """One accelerator: between steps, and in steps while they do prefill or decode; the latter with one row on each
    accelerator, and what each doubling of rows adds, up to most_w. [W]"""

    idle_w: float
    prefill_w: float
    decode_w: float
    per_doubling_w: float = 0.0
    most_w: float = math.inf

    @classmethod
    def of(cls, profile: HardwareProfile, keys: PowerKeys) -> PowerDraw | None:
        """None where the TDP is not known."""
        tdp_w = profile.tdp_w
        if tdp_w is None:
            return None
        law = profile.power_law
        most_w = profile.power_limit_w or tdp_w
        idle_w, prefill_w = keys.idle * tdp_w, min(most_w, keys.prefill * tdp_w)
        if keys.decode is not None:
            return cls(idle_w, prefill_w, min(most_w, keys.decode * tdp_w))
        return cls(idle_w, prefill_w, law.decode_at_one * tdp_w, law.decode_per_doubling * tdp_w, most_w)

    def at(self, rows: float) -> PowerDraw:
        """Levels with `rows` tokens in the decode steps of each accelerator on average.

        >>> PowerDraw(100.0, 700.0, 300.0, 50.0, 700.0).at(4.0).decode_w
        400.0
        """
        if not self.per_doubling_w:
            return self
        grown = self.decode_w + self.per_doubling_w * math.log2(rows) if rows > 0 else self.idle_w
        return PowerDraw(self.idle_w, self.prefill_w, min(self.most_w, max(self.idle_w, grown)))

    def joules(self, powered_s: Any, prefill_s: Any, decode_s: Any) -> Any:
        """Energy of one accelerator, or of many from sums of their times; numbers or arrays. [J]

        powered_s: whole time that it is there, steps included.

        >>> PowerDraw(100.0, 700.0, 400.0).joules(10.0, 2.0, 3.0)
        3100.0
        """
        rest_s = powered_s - prefill_s - decode_s
        return self.idle_w * rest_s + self.prefill_w * prefill_s + self.decode_w * decode_s
