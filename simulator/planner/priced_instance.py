"""One instance of a pool with its step times and its memory: what estimates and sizes of pools are made of."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

from hw_profiles.catalog import load
from hw_profiles.profile import HardwareProfile
from simulator.model.architecture import ModelSpec
from simulator.model.engine import Form, in_service
from simulator.model.expert_load import ExpertSkew
from simulator.model.latency import DecodeLoad, StepLatency
from simulator.model.memory import MemoryPlan, plan_memory
from simulator.model.parallelism import Parallelism
from simulator.planner.traffic import Traffic
from simulator.scenario import Pool

# Running at once on an attention rank, however much KV would fit. [sequences; assumed: twice what a scenario that names
# no max_sequences gets, which is simulator.model.limits.SEQUENCES_PER_RANK]
MAX_SEQUENCES_PER_RANK = 1024
REMEMBERED = 512  # [cuts on accelerators; assumed: more than a search tries]


@dataclass(frozen=True)
class PricedInstance:
    """One cut of the model on one accelerator."""

    model: ModelSpec
    hardware: HardwareProfile
    parallelism: Parallelism
    latency: StepLatency
    memory: MemoryPlan
    acceptance_length: float = 1.0

    @property
    def ranks(self) -> int:
        """Attention ranks, each with sequences and KV of its own."""
        return self.parallelism.dp

    def load(self, traffic: Traffic, sequences: int) -> DecodeLoad:
        """`sequences` running on the instance, spread over its ranks; contexts as the traffic has them on average."""
        busiest = math.ceil(sequences / self.ranks)
        return DecodeLoad(
            sequences=busiest,
            context=round(busiest * traffic.mean_context),
            capped=tuple(round(busiest * traffic.mean_of_context(cap)) for cap in self.latency.caps),
            total_sequences=sequences,
        )

    def tpot_s(self, traffic: Traffic, sequences: int) -> float:
        """Seconds per output token with `sequences` running and no prefill beside them."""
        return self.latency.decode_s(self.load(traffic, sequences)) / self.acceptance_length

    def sequence_limit(self, traffic: Traffic) -> int:
        """Sequences whose KV fits on the instance, at the traffic's mean context."""
        fits = self.memory.max_sequences(math.ceil(traffic.mean_context))
        return min(fits, MAX_SEQUENCES_PER_RANK) * self.ranks


def price_instance(model: ModelSpec, pool: Pool, form: Form) -> PricedInstance:
    """An instance of the pool, priced. Raises DoesNotFitError, ParallelismError or CatalogError."""
    cut = pool.parallelism
    hardware = in_service(load(pool.gpu, pool.stack), model, form)
    memory = plan_memory(model, hardware, cut, pool.max_tokens_per_step, pool.draft_tokens, pool.redundant_experts)
    latency = _latency(model, hardware, cut, pool.draft_tokens, pool.skew)
    return PricedInstance(model, hardware, cut, latency, memory, pool.acceptance_length)


def in_form(priced: PricedInstance, form: Form) -> PricedInstance:
    """The same instance as it runs in that form of serving."""
    drafts = priced.latency.draft_tokens
    plain = load(priced.hardware.name, priced.hardware.stack)
    hardware = in_service(plain, priced.model, form)
    return replace(
        priced, hardware=hardware, latency=_latency(priced.model, hardware, priced.parallelism, drafts, None)
    )


@functools.lru_cache(maxsize=REMEMBERED)
def _latency(
    model: ModelSpec, hardware: HardwareProfile, cut: Parallelism, draft_tokens: int, skew: ExpertSkew | None
) -> StepLatency:
    """Step times are remembered inside, so pools that differ only in size share them."""
    return StepLatency(model, hardware, cut, draft_tokens, skew)
