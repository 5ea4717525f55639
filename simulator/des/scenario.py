"""The scenario: model, traffic, limits, deployment. What CLI, dashboard, notebooks and tests pass about.

One TOML file serves `simulate` (needs [deployment]) and `plan` (uses [search]).
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from simulator.model.parallelism import Parallelism

# strict: true and "20" are not numbers
Positive = Annotated[FiniteFloat, Field(gt=0, strict=True)]
NonNegative = Annotated[FiniteFloat, Field(ge=0, strict=True)]
Rate = Annotated[FiniteFloat, Field(ge=1e-6, strict=True)]  # requests per second; a few a month at least
Count = Annotated[int, Field(ge=1, le=10**9, strict=True)]  # far above any real count, far below int64
Instances = Annotated[int, Field(ge=1, le=10**5, strict=True)]
SEQUENCES_PER_RANK = 512


class ScenarioError(ValueError):
    """A scenario that cannot be understood; the message names the key, the value and the way out."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Lengths(Strict):
    """Token counts of one side of a request. A bare number in TOML means `constant`.

    constant: value. uniform: low..high inclusive. exponential: mean. lognormal: median and sigma of the log.
    Draws are whole numbers of at least 1 (`low` at least 1), cut at `maximum` where given.
    """

    kind: Literal["constant", "uniform", "exponential", "lognormal"] = "constant"
    value: Count | None = None
    low: Count | None = None
    high: Count | None = None
    mean: Positive | None = None
    median: Positive | None = None
    sigma: Positive | None = None
    maximum: Count | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare_number(cls, data: Any) -> Any:
        return {"kind": "constant", "value": data} if isinstance(data, (int, float, str)) else data

    @model_validator(mode="after")
    def _complete(self) -> Lengths:
        needs = {
            "constant": ("value",),
            "uniform": ("low", "high"),
            "exponential": ("mean",),
            "lognormal": ("median", "sigma"),
        }[self.kind]
        missing = [key for key in needs if getattr(self, key) is None]
        if missing:
            raise ValueError(f"{self.kind} lengths need {' and '.join(missing)}")
        if self.kind == "uniform" and self.high < self.low:  # type: ignore[operator]
            raise ValueError(f"high={self.high} is below low={self.low}")
        return self


class SharedPrefix(Strict):
    """Prompts that begin alike: each starts with the first `tokens` of one of `groups` prefixes, drawn at random."""

    tokens: Count
    groups: Count = 1


class Diurnal(Strict):
    """A day's curve of the arrival rate: a cosine from `rate` at its peak to trough * rate half a period later."""

    trough: Annotated[FiniteFloat, Field(gt=0, le=1)] = 0.4
    period_s: Positive = 86_400.0
    peak_s: NonNegative = 43_200.0  # when the first peak comes
    growth_per_day: NonNegative = 0.0  # 0.01: the whole curve rises by 1% a day


class Bursts(Strict):
    """Spells of `rate` between spells of quiet * rate, exponential in length (a Markov-modulated Poisson process)."""

    quiet: Annotated[FiniteFloat, Field(gt=0, lt=1)] = 0.25
    burst_s: Positive = 10.0  # mean length of a burst
    quiet_s: Positive = 60.0  # mean time between bursts


class OpenLoop(Strict):
    """Arrivals that do not wait for answers: Poisson, or Gamma with `burstiness` (squared variation) above 1.

    With `diurnal` or `bursts` the rate changes, and `rate` is the highest of it.
    """

    kind: Literal["open_loop"] = "open_loop"
    rate: Rate  # requests per second
    requests: Count = 2000
    burstiness: Positive = 1.0
    diurnal: Diurnal | None = None
    bursts: Bursts | None = None
    prompt: Lengths
    output: Lengths
    shared_prefix: SharedPrefix | None = None  # counted in the prompt's length; matters to a prefix cache


class ClosedLoop(Strict):
    """A fixed number of clients, each sending its next request when the last one ends (public benchmarks)."""

    kind: Literal["closed_loop"] = "closed_loop"
    concurrency: Count
    requests: Count
    prompt: Lengths
    output: Lengths


class Trace(Strict):
    """Recorded arrivals: Azure CSV (TIMESTAMP, ContextTokens, GeneratedTokens) or Mooncake JSONL."""

    kind: Literal["trace"] = "trace"
    path: Path
    format: Literal["auto", "azure_csv", "mooncake_jsonl"] = "auto"
    speed: Positive = 1.0  # 2 replays twice as fast
    limit: Count | None = None


Workload = Annotated[OpenLoop | ClosedLoop | Trace, Field(discriminator="kind")]


class Slo(Strict):
    """Latency limits that the given share of requests must meet."""

    ttft_s: Positive | None = None
    tpot_s: Positive | None = None
    e2e_s: Positive | None = None
    percentile: Annotated[FiniteFloat, Field(gt=0, lt=100)] = 90.0


class Pool(Strict):
    """Identical instances of one accelerator and one cut."""

    gpu: str
    stack: str = "default"
    instances: Instances = 1
    tp: Count = 1
    dp: Count = 1
    ep: Count = 1
    pp: Count = 1
    cp: Count = 1
    max_tokens_per_step: Count = 8192  # token budget of a step on each dp rank; the prefill chunk size
    # Sequences that an instance works on at once, over its dp ranks; left out: 512 for each rank.
    max_sequences: Count | None = None
    # chunked: token budget shared by decode and prompt chunks (vLLM V1); prefill_first: prompts hold up decode
    # (SGLang); inflight: prompts whole beside decode (TensorRT-LLM)
    batching: Literal["chunked", "prefill_first", "inflight"] = "chunked"
    draft_tokens: Annotated[int, Field(ge=0)] = 0
    acceptance_length: Annotated[FiniteFloat, Field(ge=1)] = 1.0  # mean tokens emitted per step

    @property
    def parallelism(self) -> Parallelism:
        return Parallelism(tp=self.tp, dp=self.dp, ep=self.ep, pp=self.pp, cp=self.cp)

    @property
    def sequence_limit(self) -> int:
        """Sequences that an instance works on at once."""
        return self.max_sequences or SEQUENCES_PER_RANK * self.dp

    @property
    def gpus_per_instance(self) -> int:
        return self.parallelism.gpus

    @property
    def gpus(self) -> int:
        return self.instances * self.gpus_per_instance

    @model_validator(mode="after")
    def _acceptance(self) -> Pool:
        if self.acceptance_length > 1 + self.draft_tokens:
            raise ValueError(
                f"acceptance_length={self.acceptance_length:g} exceeds 1 + draft_tokens={1 + self.draft_tokens}"
            )
        _ = self.parallelism  # refuses an ep that does not divide
        return self


class Transfer(Strict):
    """Hand-over of KV from prefill to decode over the NICs of each instance's accelerators."""

    efficiency: Annotated[FiniteFloat, Field(gt=0, le=1)] = 0.7  # achieved share of NIC rate; assumed
    handshake_s: NonNegative = 0.002  # assumed
    half_rate_bytes: NonNegative = 0.0  # messages of this size reach half of that rate; 0: size does not matter
    overlap: Literal["none", "layerwise"] = "none"  # layerwise: a layer's KV leaves while later layers compute
    oversubscription: Annotated[FiniteFloat, Field(ge=1)] = 1.0  # NIC rate of the prefill pool over that of the spine


class PrefixCacheKeys(Strict):
    """KV of past prompts kept by each instance that computes prompts, for prompts that begin alike.

    Needs a workload whose prompts name their blocks: a Mooncake trace, or an open loop with shared_prefix.
    """

    share: Annotated[FiniteFloat, Field(gt=0, lt=1)] = 0.3  # of the KV room, set apart for it; assumed
    host_bytes: NonNegative = 0.0  # host memory per accelerator as second tier, over the host link
    storage_bytes: NonNegative = 0.0  # storage per accelerator as third tier
    storage_bandwidth: Positive = 2e9  # one way, per accelerator; assumed
    # windows and state of a model that has them: kept with every block, or every `state_interval` tokens, or not at
    # all, so that the last `tail_tokens` of a hit are computed again
    state: Literal["keep_all", "checkpoint", "recompute"] = "keep_all"
    state_interval: Count = 4096
    tail_tokens: Count = 256


class Deployment(Strict):
    """Either `prefill` and `decode` pools, or one `colocated` pool."""

    prefill: Pool | None = None
    decode: Pool | None = None
    colocated: Pool | None = None
    transfer: Transfer = Transfer()
    # shared_queue: the instances that take arrivals pull from one queue; decode instances are picked as least_loaded
    router: Literal["round_robin", "least_loaded", "power_of_two", "shared_queue", "prefix_aware"] = "least_loaded"
    prefix_cache: PrefixCacheKeys | None = None  # none: every prompt is computed whole

    @model_validator(mode="after")
    def _one_form(self) -> Deployment:
        disaggregated = self.prefill is not None and self.decode is not None
        partial = (self.prefill is None) != (self.decode is None)
        if partial or disaggregated == (self.colocated is not None):
            raise ValueError("give either both [deployment.prefill] and [deployment.decode], or [deployment.colocated]")
        if self.router == "prefix_aware" and self.prefix_cache is None:
            raise ValueError("router=prefix_aware needs a cache to look at; add [deployment.prefix_cache]")
        return self

    @property
    def pools(self) -> tuple[Pool, ...]:
        return tuple(p for p in (self.prefill, self.decode, self.colocated) if p is not None)

    @property
    def gpus(self) -> int:
        return sum(pool.gpus for pool in self.pools)


class Search(Strict):
    """What the planner may choose from."""

    gpus: Annotated[tuple[str, ...], Field(min_length=1)] = ("h200_sxm", "b200_sxm", "b300_sxm")
    stack: str = "default"
    max_gpus: Count = 4096
    forms: Annotated[tuple[Literal["disaggregated", "colocated"], ...], Field(min_length=1)] = (
        "disaggregated",
        "colocated",
    )
    mixed_pools: bool = True  # prefill and decode may use different accelerators
    simulate_top: Annotated[int, Field(ge=0)] = 3  # designs re-run through the discrete-event model
    draft_tokens: Annotated[int, Field(ge=0)] = 0
    acceptance_length: Annotated[FiniteFloat, Field(ge=1)] = 1.0


class Scenario(Strict):
    name: str = "scenario"
    model: str  # preset name, or path of a Hugging Face config.json
    workload: Workload
    slo: Slo = Slo()
    deployment: Deployment | None = None
    search: Search = Search()
    price_convention: Literal["hyperscaler_ownership", "neocloud_ownership", "rental_3yr", "on_demand"] = (
        "neocloud_ownership"
    )
    warmup_fraction: Annotated[FiniteFloat, Field(ge=0, lt=1)] = 0.1  # first requests left out of metrics
    seed: Annotated[int, Field(ge=0)] = 0


def parse_scenario(data: dict[str, Any], where: str = "scenario") -> Scenario:
    """Build a Scenario; every problem becomes one sentence naming key and value."""
    try:
        return Scenario.model_validate(data)
    except ValidationError as error:
        raise ScenarioError(f"{where}: {_first_problem(error)}") from None


def load_scenario(path: Path) -> Scenario:
    """Read a TOML scenario. Relative trace and model paths are taken from the file's folder."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ScenarioError(f"scenario file {path} does not exist; give the path of a TOML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"scenario file {path} cannot be read ({error}); give a readable TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{path} is not valid TOML: {error}") from None
    workload = data.get("workload")
    if isinstance(workload, dict) and isinstance(workload.get("path"), str):
        workload["path"] = str(path.parent / workload["path"])
    model = data.get("model")
    if isinstance(model, str) and model.endswith(".json"):
        data["model"] = str(path.parent / model)
    return parse_scenario(data, str(path))


def _first_problem(error: ValidationError) -> str:
    """The first validation error as one sentence in the reader's words."""
    problem = error.errors()[0]
    branches = {"open_loop", "closed_loop", "trace"}
    key = ".".join(str(part) for part in problem["loc"] if part not in branches) or "the file"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{key}'; remove it or correct its spelling"
    if problem["type"] == "missing":
        return f"key '{key}' is missing; add it"
    if problem["type"] == "too_short":
        return f"key '{key}' is empty; name at least one"
    shown = problem.get("input")
    value = f"={shown!r}" if isinstance(shown, (int, float, str, bool)) else ""
    return f"{key}{value}: {message}"
