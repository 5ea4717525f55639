"""What an accelerator draws by phase and load, and what a power cap does to its rates.

Decoding draws more the more rows a step has: share of the TDP = at_one + per_doubling log2(rows of one accelerator),
between idling and all of it. Fitted by `python -m benchmarks.energy` to measured joules per output token of
colocated serving points on six accelerators (InferenceX); prefill reaches the TDP in that fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# The cap acts on the clock: power above the static part falls with its cube (voltage follows the clock). Assumed, from
# dynamic power ~ f V^2; static part: what decode of one sequence draws is mostly that and memory.
STATIC_SHARE = 0.3  # of the TDP [-]; assumed
CLOCK_EXPONENT = 3.0
LOWEST_CAP = 0.4  # of the TDP that a driver lets one set; assumed: 200 of 700 W on an H100, 400 of 1000 on a B200


@dataclass(frozen=True)
class PowerLaw:
    """Draw of an accelerator as shares of its TDP. decode_at_one: with one row of decode on each accelerator."""

    idle: float
    prefill: float
    decode_at_one: float
    decode_per_doubling: float
    source: str
    assumed: bool = False

    def decode(self, rows: float) -> float:
        """Share of the TDP in decode steps of `rows` tokens (sequences times queries of each) on each accelerator."""
        if rows <= 0:
            return self.idle
        return min(1.0, max(self.idle, self.decode_at_one + self.decode_per_doubling * math.log2(rows)))


FIT = "fitted to measured joules per output token (benchmarks/results/energy.json)"
IDLE = 0.15  # assumed: accelerators with a model loaded draw 80 to 150 W of 700 to 1000
PREFILL = 1.0
PER_DOUBLING = 0.042
BY_ACCELERATOR: dict[str, float] = {  # decode_at_one
    "h200_sxm": 0.504,
    "b200_sxm": 0.436,
    "b300_sxm": 0.378,
    "mi300x": 0.725,
    "mi325x": 0.589,
    "mi355x": 0.356,
}
BY_GENERATION: dict[str, str] = {
    "hopper": "h200_sxm",
    "blackwell": "b200_sxm",
    "rubin": "b300_sxm",
    "cdna3": "mi325x",
    "cdna4": "mi355x",
    "cdna5": "mi355x",
}
STAND_IN = "b200_sxm"  # for generations without measurements


def power_law(accelerator: str, generation: str) -> PowerLaw:
    """Of an accelerator; one that nobody measured is taken for a measured one of its generation."""
    measured = accelerator if accelerator in BY_ACCELERATOR else BY_GENERATION.get(generation, STAND_IN)
    own = measured == accelerator
    source = FIT if own else f"assumed: as {measured}, which is {FIT}"
    return PowerLaw(IDLE, PREFILL, BY_ACCELERATOR[measured], PER_DOUBLING, source, assumed=not own)


def clock_under_cap(cap_w: float, tdp_w: float) -> float:
    """Clock under a cap, as a share of that at the TDP.

    >>> clock_under_cap(700.0, 700.0), round(clock_under_cap(400.0, 700.0), 3)
    (1.0, 0.729)
    """
    dynamic = (cap_w / tdp_w - STATIC_SHARE) / (1 - STATIC_SHARE)
    return float(min(1.0, max(0.0, dynamic)) ** (1 / CLOCK_EXPONENT))
