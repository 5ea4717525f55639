"""What an accelerator draws: a level for each of idling, prefill and decode, so that energy is a sum of times.

Computing prompts draws about the TDP, decoding less, for it waits on memory (Patel et al., Splitwise, ISCA 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hw_profiles.profile import HardwareProfile
from simulator.scenario import PowerKeys


@dataclass(frozen=True)
class PowerDraw:
    """One accelerator: between steps, and in steps while they do prefill or decode. [W]"""

    idle_w: float
    prefill_w: float
    decode_w: float

    @classmethod
    def of(cls, profile: HardwareProfile, keys: PowerKeys) -> PowerDraw | None:
        """None where the TDP is not known."""
        tdp_w = profile.tdp_w
        return None if tdp_w is None else cls(keys.idle * tdp_w, keys.prefill * tdp_w, keys.decode * tdp_w)

    def joules(self, powered_s: Any, prefill_s: Any, decode_s: Any) -> Any:
        """Energy of one accelerator, or of many from sums of their times; numbers or arrays. [J]

        powered_s: whole time that it is there, steps included.

        >>> PowerDraw(100.0, 700.0, 400.0).joules(10.0, 2.0, 3.0)
        3100.0
        """
        rest_s = powered_s - prefill_s - decode_s
        return self.idle_w * rest_s + self.prefill_w * prefill_s + self.decode_w * decode_s
