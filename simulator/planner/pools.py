"""Choices of pools as arrays: priced once, in any number of instances and with any bound on running sequences.

A pool of one role is looked at with the other role standing beside it free of charge (`free_prefill`, `free_decode`):
what the two do to each other, the hand-over, is left to the estimate of pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hw_profiles.schema import Convention
from simulator.model.architecture import ModelSpec
from simulator.model.arrays import Floats
from simulator.model.engine import Form
from simulator.model.kv import transfer_bytes
from simulator.model.memory import DoesNotFitError, MemoryPlan
from simulator.model.parallelism import Parallelism
from simulator.planner.engines import MAX_SEQUENCES_PER_RANK, Choice, Offer, ServingEngine
from simulator.planner.traffic import Traffic
from simulator.scenario import Knobs, Pool, Transfer
from simulator.steady_state.cluster import ClusterArrays, PoolArrays
from simulator.steady_state.parameters import EngineParameters, constant
from simulator.steady_state.stations import DemandArrays, HandoverArrays, KvArrays
from simulator.steady_state.step_table import BINS, EngineSteps, StepSeconds, StepTable, price

NOTHING_S = 1e-12  # of a step that stands beside free of charge [s]
NODES = {"prefill": 9, "decode": 9, "colocated": 7}  # over decoding sequences, at which steps are priced [assumed]
ENDLESS = 1e15  # sequences, prompts or bytes, in place of room without end


@dataclass(frozen=True)
class PoolTable:
    """Choices of one role and layout. Arrays are [choices, 1].

    most: sequences that fit on an instance. overhead_s: before a request is queued. usd: per hour and instance.
    """

    choices: tuple[Choice, ...]
    steps: StepSeconds
    kv: KvArrays
    most: Floats
    overhead_s: Floats
    acceptance: Floats
    ranks: Floats
    gpus: Floats
    usd: Floats

    def __len__(self) -> int:
        return len(self.choices)

    def take(self, rows: NDArray[np.intp]) -> PoolTable:
        return PoolTable(
            tuple(self.choices[row] for row in rows.tolist()),
            self.steps.take(rows),
            KvArrays(self.kv.capacity[rows], self.kv.per_token[rows], self.kv.per_sequence[rows]),
            *(getattr(self, name)[rows] for name in ("most", "overhead_s", "acceptance", "ranks", "gpus", "usd")),
        )

    def pool(self, instances: Floats, sequences: Floats) -> PoolArrays:
        return PoolArrays(self.steps, instances, sequences, self.kv)


def column(values: Sequence[float]) -> Floats:
    return np.array(values, dtype=float)[:, None]


class Pricing:
    """Prices steps of choices under one traffic, each once."""

    def __init__(self, model: ModelSpec, traffic: Traffic, convention: Convention, transfer: Transfer) -> None:
        self.model, self.traffic, self.convention, self.transfer = model, traffic, convention, transfer
        self.sample = traffic.sample
        self.demand = DemandArrays.of([self.sample])
        self.priced: dict[Choice, EngineSteps] = {}
        self._engines: dict[tuple[Offer, Parallelism, Form], ServingEngine] = {}
        self._plans: dict[Choice, MemoryPlan] = {}
        sizes = [transfer_bytes(model, max(1, prompt)) for prompt in traffic.prompts]
        self._transfer_bytes = float(np.mean(sizes)) + transfer.half_rate_bytes

    def at(self, rate: float) -> Pricing:
        """The same under another rate; what was priced is shared."""
        found = copy(self)
        found.traffic = replace(self.traffic, rate=rate)
        return found

    def engine(self, offer: Offer, cut: Parallelism, form: Form) -> ServingEngine:
        key = (offer, cut, form)
        found = self._engines.get(key)
        if found is None:
            found = self._engines[key] = ServingEngine(self.model, offer, cut, form)
        return found

    def choice_of(self, role: str, pool: Pool) -> Choice:
        """The choice that a pool is made of."""
        knobs = Knobs(**pool.knobs)
        offer = Offer(pool.gpu, pool.stack, pool.draft_tokens, pool.acceptance_length, knobs)
        form: Form = "colocated" if role == "colocated" else "disaggregated"
        engine = self.engine(offer, pool.parallelism, form)
        return Choice(engine, role, pool.max_tokens_per_step, pool.batching)

    def memory(self, choice: Choice) -> MemoryPlan:
        """Raises DoesNotFitError."""
        found = self._plans.get(choice)
        if found is None:
            found = self._plans[choice] = choice.engine.memory(choice.budget)
        return found

    def most_sequences(self, choice: Choice) -> int:
        """Sequences of the mean context whose KV fits on an instance. Raises DoesNotFitError."""
        fits = self.memory(choice).max_sequences(math.ceil(self.sample.context[0]))
        return min(fits, MAX_SEQUENCES_PER_RANK) * choice.engine.ranks

    def holds(self, choice: Choice) -> bool:
        """Whether memory holds it with room for a request."""
        try:
            return self.most_sequences(choice) > 0
        except DoesNotFitError:
            return False

    def steps(self, choice: Choice) -> EngineSteps:
        found = self.priced.get(choice)
        if found is None:
            decodes, prefills = choice.role != "prefill", choice.role != "decode"
            found = self.priced[choice] = price(
                choice.engine.ops, self.sample, choice.budget, choice.batching, float(self.most_sequences(choice)),
                decodes=decodes, prefills=prefills, own_rates=True, nodes=NODES[choice.role],
            )  # fmt: skip
        return found

    def table(self, choices: Sequence[Choice]) -> PoolTable:
        """Of choices with one layout, see `layout`."""
        engines = [choice.engine for choice in choices]
        seconds = StepTable.of([self.steps(choice) for choice in choices]).seconds(
            EngineParameters.of([engine.hardware for engine in engines])
        )
        plans = [self.memory(choice) for choice in choices]
        return PoolTable(
            tuple(choices),
            seconds,
            KvArrays(
                column([plan.kv_capacity_bytes for plan in plans]),
                column([plan.kv_bytes_per_token for plan in plans]),
                column([plan.kv_bytes_per_sequence for plan in plans]),
            ),
            column([self.most_sequences(choice) for choice in choices]),
            column([engine.hardware.efficiency.request_overhead_s for engine in engines]),
            column([engine.offer.acceptance_length for engine in engines]),
            column([engine.ranks for engine in engines]),
            column([engine.gpus for engine in engines]),
            column([engine.usd_per_hour(self.convention) for engine in engines]),
        )

    def alone(self, table: PoolTable, instances: Floats, sequences: Floats) -> ClusterArrays:
        """Each choice as a cluster: colocated, or with the other role beside it free of charge."""
        pool = table.pool(instances, sequences)
        role = table.choices[0].role
        if role == "colocated":
            return ClusterArrays(pool, self.demand, table.acceptance, table.overhead_s)
        if role == "prefill":
            return ClusterArrays(
                pool, self.demand, constant(1.0), table.overhead_s, free_decode(), self._handover(table, None)
            )
        handover = self._handover(None, table)
        return ClusterArrays(free_prefill(), self.demand, table.acceptance, constant(0.0), pool, handover)

    def joined(
        self, prefill: PoolTable, p_instances: Floats, decode: PoolTable, d_instances: Floats, sequences: Floats
    ) -> ClusterArrays:
        """Row by row a prefill and a decode pool."""
        return ClusterArrays(
            prefill.pool(p_instances, prefill.most), self.demand, decode.acceptance, prefill.overhead_s,
            decode.pool(d_instances, sequences), self._handover(prefill, decode),
        )  # fmt: skip

    def _handover(self, prefill: PoolTable | None, decode: PoolTable | None) -> HandoverArrays:
        """The links of a side that is left out are never busy."""
        held = constant(ENDLESS) if prefill is None else prefill.kv.sequences(self.demand.prompt) * prefill.ranks
        return HandoverArrays(
            constant(self.transfer.handshake_s),
            constant(0.0) if prefill is None else self._link_s(prefill),
            constant(0.0) if decode is None else self._link_s(decode),
            constant(float(self.transfer.overlap == "layerwise")),
            constant(float(len(self.model.layers))),
            held,
        )

    def _link_s(self, table: PoolTable) -> Floats:
        """One prompt's KV over the links of an attention rank, alone. [s]"""
        rate = [self.transfer.bandwidth(choice.engine.hardware) for choice in table.choices]
        return np.asarray(self._transfer_bytes / (self.transfer.achieved * column(rate) * table.gpus / table.ranks))


def layout(choice: Choice) -> tuple[str, bool]:
    """Choices with one layout fit into one table."""
    return choice.role, choice.batching != "prefill_first"


def free_prefill() -> PoolArrays:
    """A prefill pool without queues or cost."""
    nothing = np.full((1, 1, 1, BINS), NOTHING_S)
    steps = StepSeconds(
        np.zeros((1, 1, 1)), np.array([[[1.0, 2.0]]]), np.ones((1, 1, 1)), np.zeros((1, 1, 1)), nothing[..., :2],
        np.ones((1, 1, 1, 2)), nothing, np.ones((1, 1, 1, BINS)), nothing[..., 0] / ENDLESS,
        np.full((1, 1, 1), ENDLESS),
    )  # fmt: skip
    return PoolArrays(steps, constant(1.0), constant(ENDLESS), _endless_kv())


def free_decode() -> PoolArrays:
    """A decode pool in which nobody waits."""
    none = np.zeros((1, 1, 1, 0))
    steps = StepSeconds(
        np.array([[[0.0, 1.0, 2.0]]]), none[..., 0, :], np.ones((1, 1, 1)), np.array([[[0.0, NOTHING_S, NOTHING_S]]]),
        none, none, none, none, none[..., 0:0].sum(-1), np.ones((1, 1, 1)),
    )  # fmt: skip
    return PoolArrays(steps, constant(1.0), constant(ENDLESS), _endless_kv())


def _endless_kv() -> KvArrays:
    return KvArrays(constant(ENDLESS**2), constant(1.0), constant(1.0))


def most_at(table: PoolTable, tpot_s: Floats) -> Floats:
    """Largest number of sequences on an instance up to `most` at which a decode step alone keeps the limit.

    tpot_s: [choices, 1]. 0 where not even one does. Linear between the nodes of the steps.
    """
    grid, step = table.steps.batches[:, 0, 1:], table.steps.decode_s[:, 0, 1:]
    allowed = tpot_s * table.acceptance
    fits = np.maximum.accumulate(step, axis=1) <= allowed
    count = fits.sum(axis=1)
    rows = np.arange(len(grid))
    low, high = np.clip(count - 1, 0, None), np.clip(count, 0, grid.shape[1] - 1)
    rise = np.maximum(step[rows, high] - step[rows, low], 1e-15)
    share = np.clip((allowed[:, 0] - step[rows, low]) / rise, 0.0, 1.0)
    found = grid[rows, low] + share * (grid[rows, high] - grid[rows, low])
    return np.where(count > 0, np.minimum(found, table.most[:, 0]), 0.0)[:, None]


def whole(values: Floats) -> Floats:
    """Rounded up, at least one."""
    return np.maximum(1.0, np.ceil(values - 1e-9))
