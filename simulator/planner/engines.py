"""One cut of a model on an accelerator under a stack: what pools are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

from hw_profiles.catalog import CatalogError, load
from hw_profiles.profile import HardwareProfile
from hw_profiles.schema import Convention
from simulator.model.architecture import ModelSpec
from simulator.model.engine import Form, in_service
from simulator.model.memory import MemoryPlan, plan_memory
from simulator.model.parallelism import Parallelism
from simulator.model.step import StepOps
from simulator.scenario import Knobs, Pool, with_knobs
from simulator.steady_state.step_table import Batching

# Running at once on an attention rank, however much KV would fit. [sequences; assumed: twice what a scenario that names
# no max_sequences gets, which is simulator.model.limits.SEQUENCES_PER_RANK]
MAX_SEQUENCES_PER_RANK = 1024


@dataclass(frozen=True)
class Offer:
    """An accelerator under a stack, as a scenario names both. drafts: tokens drafted in a decode step, and mean tokens
    that one emits; knobs: as its operator sets it."""

    gpu: str
    stack: str
    draft_tokens: int = 0
    acceptance_length: float = 1.0
    knobs: Knobs = field(default_factory=Knobs)

    @cached_property
    def profile(self) -> HardwareProfile:
        return with_knobs(load(self.gpu, self.stack), self.knobs)


@dataclass(frozen=True, eq=False)
class ServingEngine:
    """One cut of the model on one accelerator, as its stack drives it in one form of serving. Equal only to itself."""

    model: ModelSpec
    offer: Offer
    cut: Parallelism
    form: Form

    @cached_property
    def hardware(self) -> HardwareProfile:
        """Raises CatalogError."""
        return in_service(self.offer.profile, self.model, self.form)

    @cached_property
    def ops(self) -> StepOps:
        """Raises ParallelismError or LoadError."""
        return StepOps(self.model, self.hardware, self.cut, self.offer.draft_tokens)

    @property
    def ranks(self) -> int:
        """Attention ranks, each with sequences and KV of its own."""
        return self.cut.dp

    @property
    def gpus(self) -> int:
        """Accelerators of an instance."""
        return self.cut.gpus

    def memory(self, budget: int) -> MemoryPlan:
        """With steps of so many tokens a rank. Raises DoesNotFitError."""
        return plan_memory(self.model, self.hardware, self.cut, budget, self.offer.draft_tokens)

    def usd_per_hour(self, convention: Convention) -> float:
        """Of an instance; infinite where the accelerator has no price."""
        try:
            return self.gpus * self.hardware.usd_per_hour(convention).usd_per_hour.value
        except CatalogError:
            return math.inf

    def __str__(self) -> str:
        return f"{self.offer.gpu} {self.cut}"


@dataclass(frozen=True)
class Choice:
    """An engine with the sizes of its steps: all of a pool but the number of instances and of running sequences.

    budget: tokens of a step on each attention rank.
    """

    engine: ServingEngine
    role: str  # prefill, decode or colocated
    budget: int
    batching: Batching

    def pool(self, instances: int, sequences: int) -> Pool:
        cut, offer = self.engine.cut, self.engine.offer
        return Pool(
            gpu=offer.gpu,
            stack=offer.stack,
            instances=instances,
            tp=cut.tp,
            dp=cut.dp,
            ep=cut.ep,
            pp=cut.pp,
            cp=cut.cp,
            max_tokens_per_step=self.budget,
            max_sequences=max(1, sequences),
            batching=self.batching,
            draft_tokens=offer.draft_tokens,
            acceptance_length=offer.acceptance_length,
            **offer.knobs.knobs,
        )
