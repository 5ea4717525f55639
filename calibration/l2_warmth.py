"""Launches timed over and over find their working set in the L2 cache; those of a model do not.

Tables of grouped decode attention and of mHC repeat one launch on the same operands. What they stream comes from L2 as
far as it fits: measured times bend where the bytes of a launch pass half the cache (25 MB on H100 and H200, 63 MB on
B200), probably because the other half is far from an SM and holds copies. Fitted rates are those of memory, so a
simulated step reads its KV cold.
"""

from __future__ import annotations

# By generation: Hopper's by the NVIDIA H100 white paper (2022), Blackwell's as device properties of B200 are reported,
# whose dies B300, GB200 and GB300 are taken to share; from memory on 2026-11-28, read on no device here. [B]
L2_BYTES = {"hopper": 50e6, "blackwell": 126e6}
NEAR = 0.5  # share of the cache that holds a working set: where measured times bend
SAVED = 0.7  # of the time of bytes found there: L2 streams about three times as fast as memory in the tables
SHARPNESS = 4.0  # of the bend (assumed)


def share_of_time(num_bytes: float, generation: str) -> float:
    """Time to stream `num_bytes` again over that from memory.

    >>> round(share_of_time(2e6, "hopper"), 3), round(share_of_time(25e6, "hopper"), 3), share_of_time(2e6, "cdna4")
    (0.3, 0.65, 1.0)
    """
    cache = L2_BYTES.get(generation)
    if cache is None:
        return 1.0
    return 1.0 - SAVED / (1.0 + (num_bytes / (NEAR * cache)) ** SHARPNESS)
