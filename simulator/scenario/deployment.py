"""[deployment]: pools of instances, the hand-over between them, routing and caches."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, FiniteFloat, Tag, model_validator

from hw_profiles.power import IDLE, PREFILL
from hw_profiles.profile import HardwareProfile
from simulator.model.acceptance import class_rates
from simulator.model.expert_load import ExpertSkew
from simulator.model.limits import SEQUENCES_PER_RANK, TOKENS_PER_STEP
from simulator.model.parallelism import Parallelism
from simulator.scenario.faults_and_scaling import Autoscale, Faults, Startup
from simulator.scenario.keys import (
    MOST,
    MOST_INSTANCES,
    Bandwidth,
    Count,
    Drafts,
    Duration,
    Instances,
    Keys,
    NonNegative,
)
from simulator.scenario.knobs import Knobs, one_kv_dtype

Share = Annotated[FiniteFloat, Field(ge=0, le=1, strict=True)]
FirstToken = Literal["prefill", "decode"]
# Share of the link's rate that KV transfers reach. NICs: eight transfers of 20 MB to 12.6 GB between nodes (Mooncake
# under vLLM and SGLang, github.com/kvcache-ai/Mooncake). NVLink: point-to-point copies, 376 of 450 GB/s on H100 and
# 747 of 900 on GB200 (github.com/stas00/ml-engineering, network).
ACHIEVED = {"scale_out": 0.73, "scale_up": 0.83}


class ExpertSkewKeys(Keys):
    """How unevenly tokens choose experts; see ExpertSkew."""

    kind: Literal["uniform", "power_law", "dirichlet"]
    # power_law; assumed, as published kernel tables draw loads
    alpha: Annotated[FiniteFloat, Field(gt=1, strict=True)] = 1.2
    # dirichlet; assumed. Far below 0.05 fewer experts than a token chooses would have any share
    concentration: Annotated[FiniteFloat, Field(ge=0.05, strict=True)] = 10.0
    # further copies of experts in each layer, over all ranks
    redundant_experts: Annotated[int, Field(ge=0, le=MOST_INSTANCES, strict=True)] = 0


class Pool(Knobs):
    """Identical instances of one accelerator and one cut: a pool, or one of its groups."""

    name: Annotated[str, Field(min_length=1)] | None = None  # of a group in reports; none: its accelerator
    gpu: str
    stack: str = "default"
    instances: Instances = 1
    tp: Count = 1
    dp: Count = 1
    ep: Count = 1
    pp: Count = 1
    cp: Count = 1
    max_tokens_per_step: Count = TOKENS_PER_STEP  # token budget of a step on each dp rank; the prefill chunk size
    # Sequences that an instance works on at once, over its dp ranks; left out: SEQUENCES_PER_RANK for each rank.
    max_sequences: Count | None = None
    # chunked: token budget shared by decode and prompt chunks (vLLM V1); prefill_first: prompts hold up decode
    # (SGLang); inflight: prompts whole beside decode (TensorRT-LLM)
    batching: Literal["chunked", "prefill_first", "inflight"] = "chunked"
    # chunked only: tokens of one prompt in a step at most, and prompts under way on a dp rank with more than that left;
    # while so many are, shorter prompts pass the long ones in the queue. None: no such limits
    long_prefill_token_threshold: Count | None = None
    max_long_partial_prefills: Count | None = None
    draft_tokens: Drafts = 0
    acceptance_length: Annotated[FiniteFloat, Field(ge=1, strict=True)] = 1.0  # mean tokens emitted per step
    # standard deviation over requests of the chance that a draft is accepted; no law on 0..1 has more than 0.5
    acceptance_spread: Annotated[FiniteFloat, Field(ge=0, le=0.5, strict=True)] = 0.0
    autoscale: Autoscale | None = None  # none: always `instances`; with it they are what a run begins with

    # none: every expert rank gets what uniform routing gives in the mean, in every step
    expert_skew: ExpertSkewKeys | None = None

    @property
    def skew(self) -> ExpertSkew | None:
        return ExpertSkew(**self.expert_skew.model_dump()) if self.expert_skew else None

    @property
    def redundant_experts(self) -> int:
        return self.expert_skew.redundant_experts if self.expert_skew else 0

    @property
    def parallelism(self) -> Parallelism:
        return Parallelism(tp=self.tp, dp=self.dp, ep=self.ep, pp=self.pp, cp=self.cp)

    @property
    def sequence_limit(self) -> int:
        """Sequences that an instance works on at once."""
        return self.max_sequences or SEQUENCES_PER_RANK * self.dp

    @property
    def sequences_per_rank(self) -> int | None:
        """The same on each attention rank, where the scenario says so."""
        return None if self.max_sequences is None else -(-self.max_sequences // self.dp)

    @property
    def gpus_per_instance(self) -> int:
        return self.parallelism.gpus

    @property
    def gpus(self) -> int:
        return self.instances * self.gpus_per_instance

    @property
    def most_instances(self) -> int:
        """Instances that the pool may come to have."""
        return self.instances if self.autoscale is None else max(self.instances, self.autoscale.most)

    @model_validator(mode="after")
    def _long_prompts(self) -> Pool:
        threshold, most = self.long_prefill_token_threshold, self.max_long_partial_prefills
        if threshold is not None and self.batching != "chunked":
            raise ValueError(
                f"long_prefill_token_threshold={threshold} is of batching=chunked, but batching={self.batching}; "
                "leave one of them out"
            )
        if most is not None and threshold is None:
            raise ValueError(
                f"max_long_partial_prefills={most} needs long_prefill_token_threshold, which says what long is"
            )
        return self

    @model_validator(mode="after")
    def _acceptance(self) -> Pool:
        if self.acceptance_length > 1 + self.draft_tokens:
            raise ValueError(
                f"acceptance_length={self.acceptance_length:g} exceeds 1 + draft_tokens={1 + self.draft_tokens}"
            )
        class_rates(self.acceptance_length, self.draft_tokens, self.acceptance_spread)  # refuses what cannot be
        _ = self.parallelism  # refuses an ep that does not divide
        scale = self.autoscale
        if scale is not None and scale.maximum is not None and not scale.minimum <= self.instances <= scale.maximum:
            raise ValueError(
                f"instances={self.instances}, which a run begins with, is not between autoscale.minimum="
                f"{scale.minimum} and autoscale.maximum={scale.maximum}"
            )
        return self


def _spelling(value: Any) -> str:
    return "groups" if isinstance(value, (list, tuple)) else "pool"


# [deployment.decode], or [[deployment.decode]] for each of several unlike groups.
SPELLINGS = ("pool", "groups")
Groups = Annotated[
    Annotated[Pool, Tag("pool")] | Annotated[tuple[Pool, ...], Field(min_length=1), Tag("groups")],
    Discriminator(_spelling),
]


class Transfer(Keys):
    """Hand-over of KV from prefill to decode over the links of each instance's accelerators.

    Defaults are fitted to published transfers between nodes, see docs/simulation.md.
    """

    network: Literal["scale_out", "scale_up"] = "scale_out"  # NICs, or the fabric of a domain that holds both pools
    # achieved share of the link's rate
    efficiency: Annotated[FiniteFloat, Field(ge=1e-3, le=1, strict=True)] | None = None
    handshake_s: Duration = 0.00075
    # messages of this size reach half of that rate
    half_rate_bytes: Annotated[FiniteFloat, Field(ge=0, le=1e12, strict=True)] = 140e3
    overlap: Literal["none", "layerwise"] = "none"  # layerwise: a layer's KV leaves while later layers compute
    staged: bool = False  # KV leaves at once for host memory at the decode instance, before there is room for it
    # link rate of the prefill pool over that of the spine
    oversubscription: Annotated[FiniteFloat, Field(ge=1, le=1000, strict=True)] = 1.0
    # spines side by side: accelerator i of the prefill pool has its NIC on rail i modulo this
    rails: Annotated[int, Field(ge=1, le=1000, strict=True)] = 1

    @model_validator(mode="after")
    def _no_spine_inside_a_domain(self) -> Transfer:
        if self.network == "scale_up" and self.oversubscription > 1:
            raise ValueError(
                f"oversubscription={self.oversubscription:g} is of a spine between NICs; remove it, or use "
                "network='scale_out'"
            )
        return self

    @model_validator(mode="after")
    def _rails_share_a_spine(self) -> Transfer:
        if self.rails > 1 and self.oversubscription == 1:
            raise ValueError(
                f"rails={self.rails} divide a spine that never limits anything; set oversubscription, or remove rails"
            )
        return self

    @property
    def achieved(self) -> float:
        """Share of the link's rate that large messages reach."""
        return self.efficiency or ACHIEVED[self.network]

    def bandwidth(self, profile: HardwareProfile) -> float:
        """One way, of one accelerator, over the network that KV takes. [B/s]"""
        return profile.scale_out_bandwidth if self.network == "scale_out" else profile.scale_up_bandwidth


class PowerKeys(Keys):
    """What an accelerator draws, as shares of its TDP, see docs/simulation.md."""

    idle: Share = IDLE  # between steps, and while an instance starts or is broken
    prefill: Share = PREFILL
    decode: Share | None = None  # none: as fitted, by the rows of a step


class PrefixCacheKeys(Keys):
    """KV of past prompts kept by each instance that computes prompts, for prompts that begin alike.

    Needs a workload whose prompts name their blocks: a Mooncake trace, or an open loop with shared_prefix.
    """

    share: Annotated[FiniteFloat, Field(gt=0, le=1, strict=True)] = 1.0  # of the KV room that it may fill at most
    host_bytes: NonNegative = 0.0  # host memory per accelerator as second tier, over the host link
    storage_bytes: NonNegative = 0.0  # storage per accelerator as third tier
    storage_bandwidth: Bandwidth = 2e9  # one way, per accelerator; assumed
    # windows and state of a model that has them: kept with every block, or every `state_interval` tokens, or not at
    # all, so that the last `tail_tokens` of a hit are computed again
    state: Literal["keep_all", "checkpoint", "recompute"] = "keep_all"
    state_interval: Count = 4096
    tail_tokens: Count = 256


class Deployment(Keys):
    """Either `prefill` and `decode` pools, or one `colocated` pool; each is one group of instances or several."""

    prefill: Groups | None = None
    decode: Groups | None = None
    colocated: Groups | None = None
    transfer: Transfer = Transfer()
    # shared_queue: the instances that take arrivals pull from one queue; decode instances are picked as least_loaded
    router: Literal[
        "round_robin", "least_loaded", "power_of_two", "shared_queue", "prefix_aware", "session_affinity"
    ] = "least_loaded"
    # picks where a prompt is decoded; none: as `router`, or least_loaded where that looks at queues or caches
    decode_router: Literal["round_robin", "least_loaded", "power_of_two", "kv_aware"] | None = None
    # Who sends a request's first token to the client. decode: its instance, with the end of its first step of the
    # request, so that hand-over and waiting for room there count in TTFT (SGLang, vLLM, TensorRT-LLM, Dynamo, llm-d).
    # prefill: at the end of the prompt. None: decode, or the one pool that there is
    first_token: FirstToken | None = None
    # requests that may wait at each instance that takes arrivals (in all, under shared_queue); one that comes to a full
    # queue is refused. None: any number
    max_queue: Annotated[int, Field(ge=0, le=MOST, strict=True)] | None = None
    prefix_cache: PrefixCacheKeys | None = None  # none: every prompt is computed whole
    startup: Startup = Startup()
    faults: Faults | None = None  # none: nothing breaks
    power: PowerKeys = PowerKeys()

    @model_validator(mode="after")
    def _one_form(self) -> Deployment:
        disaggregated = self.prefill is not None and self.decode is not None
        partial = (self.prefill is None) != (self.decode is None)
        if partial or disaggregated == (self.colocated is not None):
            raise ValueError("give either both [deployment.prefill] and [deployment.decode], or [deployment.colocated]")
        if self.router == "prefix_aware" and self.prefix_cache is None:
            raise ValueError("router=prefix_aware needs a cache to look at; add [deployment.prefix_cache]")
        if self.decode_router is not None and not disaggregated:
            raise ValueError(
                f"decode_router={self.decode_router} has no pool to pick from; leave it out, or give "
                "[deployment.prefill] and [deployment.decode]"
            )
        if self.first_token is not None and not disaggregated:
            raise ValueError(
                f"first_token={self.first_token} says which of two pools sends it, and a colocated pool is one; leave "
                "it out, or give [deployment.prefill] and [deployment.decode]"
            )
        return self

    @model_validator(mode="after")
    def _faults_hit_something(self) -> Deployment:
        faults = self.faults
        if faults is None:
            return self
        if self.colocated is not None and (faults.link or any(event.kind == "link" for event in faults.events)):
            raise ValueError("faults of links need transfers; a colocated pool has none, so leave them out")
        for i, event in enumerate(faults.events):
            if event.pool not in self.pools:
                raise ValueError(f"faults.events.{i}.pool={event.pool} is not a pool of this deployment")
            most = sum(group.most_instances for group in self.pools[event.pool])
            if event.index >= most:
                raise ValueError(
                    f"faults.events.{i}.index={event.index} is beyond the {most} instances of the "
                    f"{event.pool} pool; count from 0"
                )
        return self

    @model_validator(mode="after")
    def _groups_have_names(self) -> Deployment:
        for name, groups in self.pools.items():
            labels = [group.name or group.gpu for group in groups]
            twice = next((label for label in labels if labels.count(label) > 1), None)
            if twice is not None:
                raise ValueError(f"two groups of {name} are called '{twice}'; give each a name of its own")
            if len(groups) == 1 and groups[0].name is not None:
                raise ValueError(f"{name}.name='{labels[0]}' tells groups apart, and there is one; leave it out")
        return self

    @model_validator(mode="after")
    def _one_kv_dtype(self) -> Deployment:
        one_kv_dtype(self.groups)
        return self

    @property
    def kv_dtype(self) -> str | None:
        """Storage of KV in all pools; None for the model's usual one."""
        return one_kv_dtype(self.groups)

    @property
    def pools(self) -> dict[str, tuple[Pool, ...]]:
        """The groups of each pool by the pool's name, prefill before decode."""
        named = {"prefill": self.prefill, "decode": self.decode, "colocated": self.colocated}
        return {
            name: (groups,) if isinstance(groups, Pool) else groups
            for name, groups in named.items()
            if groups is not None
        }

    @property
    def first_token_from(self) -> FirstToken:
        """The pool whose token a client sees first; of a colocated one, that which computes prompts."""
        return self.first_token or ("prefill" if self.colocated is not None else "decode")

    @property
    def lone_pools(self) -> dict[str, Pool]:
        """As `pools`, where each is one group, as in all that the planner makes."""
        return {name: group for name, (group,) in self.pools.items()}

    @property
    def groups(self) -> tuple[Pool, ...]:
        """Of all pools."""
        return tuple(group for pool in self.pools.values() for group in pool)

    @property
    def gpus(self) -> int:
        return sum(group.gpus for group in self.groups)
