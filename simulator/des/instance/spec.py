"""What an instance is made of, as a run needs to know it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from simulator.des.instance.drawn_times import DrawnTimes
from simulator.des.instance.kv_room import KvRoom
from simulator.des.instance.prefix_cache import StatePolicy, Tier
from simulator.model.acceptance import class_rates
from simulator.model.latency import Chunk, DecodeLoad, StepLatency
from simulator.model.limits import SEQUENCES_PER_RANK, TOKENS_PER_STEP
from simulator.traces.columns import BLOCK_TOKENS


class StepTimes(Protocol):
    """Where durations come from: `simulator.model.latency.StepLatency`, or a stand-in of queueing theory."""

    @property
    def caps(self) -> tuple[int, ...]: ...
    @property
    def first_token_extra_s(self) -> float: ...
    def decode_s(self, load: DecodeLoad) -> float: ...
    def prefill_s(self, chunks: Sequence[Chunk], total_tokens: int | None = None) -> float: ...
    def mixed_s(self, chunks: Sequence[Chunk], load: DecodeLoad, total_tokens: int | None = None) -> float: ...


@dataclass(frozen=True)
class InstanceSpec:
    """What every instance of a pool is.

    ranks: attention (data-parallel) ranks; each has the KV room `kv` and the token budget `max_tokens_per_step`.
    max_sequences: sequences in prefill, in transfer to the instance or running, over all ranks.
    acceptance_length: mean tokens that a decode step emits to a sequence. All sequences of one pace emit the same
        number in a step: the fraction is accumulated from step to step, so the mean is exact.
    acceptance_spread: standard deviation over requests of the chance that a draft is accepted; 0: one pace for all.
    long_prefill_token_threshold: tokens of one prompt in a step at most; none: what the budget leaves.
    max_long_partial_prefills: prompts under way on a rank with more than that left, at most; none: any number.
    nic_bandwidth: one way, of one accelerator, over the network that KV takes. [B/s]
    speed: what the instance is predicted to get done in a second at full load, in any unit that its pool shares;
        routers look at it where instances are unlike.
    cache_tiers: where KV of past prompts is kept, fastest first; none keeps nothing. Blocks in the first take
        cache_block_bytes each of what requests leave of `kv`, over all ranks; a block is cache_block_tokens of a
        prompt.
    """

    times: StepTimes
    kv: KvRoom
    ranks: int = 1
    gpus: int = 1
    max_tokens_per_step: int = TOKENS_PER_STEP
    max_sequences: int = SEQUENCES_PER_RANK
    draft_tokens: int = 0
    acceptance_length: float = 1.0
    acceptance_spread: float = 0.0
    nic_bandwidth: float = float("inf")
    speed: float = 1.0
    batching: str = "chunked"
    long_prefill_token_threshold: int | None = None
    max_long_partial_prefills: int | None = None
    cache_tiers: tuple[Tier, ...] = ()
    cache_block_bytes: float = 0.0
    cache_block_tokens: int = BLOCK_TOKENS
    cache_policy: StatePolicy = field(default_factory=StatePolicy)

    def times_of_one(self, rng: np.random.Generator) -> StepTimes:
        """Step times of one instance, which draws its experts' loads where routing is skewed."""
        if isinstance(self.times, StepLatency) and self.times.draws_experts:
            return DrawnTimes(self.times, rng.spawn(1)[0])
        return self.times

    @cached_property
    def rates(self) -> tuple[float, ...]:
        """Mean tokens that a decode step emits to the sequences of each pace; paces are equally likely."""
        return class_rates(self.acceptance_length, self.draft_tokens, self.acceptance_spread)

    @cached_property
    def rank_bandwidth(self) -> float:
        """Link rate of the accelerators of one attention rank, one way. [B/s]"""
        return self.nic_bandwidth * self.gpus / self.ranks
