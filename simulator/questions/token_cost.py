"""What tokens cost by kind: input that is computed, input found in the prefix cache, output."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from simulator.des.instance.spec import StepTimes
from simulator.des.results.cost import MTOK, SECONDS_PER_HOUR, Cost, usd_per_mtok
from simulator.des.results.reports import Throughput
from simulator.model.latency import Chunk

RULE = (
    "input bears the prefill pool (or prefill's share of busy time), output the rest; a cached input token bears what "
    "attending to it takes of a prompt's time, one that is computed the rest"
)


@dataclass(frozen=True)
class TokenCost:
    """USD per million tokens of each kind; of output infinite where none was served.

    usd_per_hour = sum over kinds of USD/Mtok x tokens/s x 3600 / 1e6, where input is served.
    Rates are tokens/s; input_tok_s is of tokens that were computed.
    """

    usd_per_hour: float
    usd_per_mtok_input: float
    usd_per_mtok_cached: float
    usd_per_mtok_output: float
    usd_per_mtok_blended: float
    input_tok_s: float
    cached_tok_s: float
    output_tok_s: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"rule": RULE}


def token_cost(cost: Cost | None, rates: Throughput, cached_share: float, weight: float) -> TokenCost | None:
    """Split the cost of a run. cached_share: of its prompt tokens. weight: as of `split`.

    None where accelerators have no price.
    """
    if cost is None:
        return None
    cached = cached_share * rates.input_tok_s
    return split(
        cost.usd_per_hour, _input_share(cost, rates), rates.input_tok_s - cached, cached, rates.output_tok_s, weight
    )


def _input_share(cost: Cost, rates: Throughput) -> float:
    """Of the hourly cost, what input bears."""
    if not rates.input_tok_s or not cost.usd_per_hour:
        return 0.0
    return cost.usd_per_mtok_input * rates.input_tok_s * SECONDS_PER_HOUR / MTOK / cost.usd_per_hour


def split(
    usd_per_hour: float, input_share: float, computed: float, cached: float, output: float, weight: float
) -> TokenCost:
    """The three costs from a cluster's hourly cost and its tokens/s of each kind.

    weight: cost of a cached input token over that of a computed one. With c USD for a computed token, input costs
    c (computed + weight x cached).

    >>> one = split(3.6, 0.5, 50.0, 500.0, 100.0, 0.1)
    >>> one.usd_per_mtok_input, one.usd_per_mtok_cached, one.usd_per_mtok_output
    (5.0, 0.5, 5.0)
    """
    per_input = usd_per_mtok(usd_per_hour * input_share, computed + weight * cached)
    return TokenCost(
        usd_per_hour,
        per_input,
        per_input * weight,
        usd_per_mtok(usd_per_hour * (1 - input_share), output),
        usd_per_mtok(usd_per_hour, computed + cached + output),
        computed,
        cached,
        output,
    )


def cached_weight(times: StepTimes, prompt: float, cached: float, ranks: int) -> float:
    """Cost of a cached input token over that of a computed one, by an instance's step times.

    prompt, cached: mean tokens of a prompt, and how many of them are found in the cache (where none are, half a prompt
    stands for them). With t(new, past) of one prompt a rank, and h cached of n tokens:
    weight = ((t(n - h, h) - t(n - h, 0)) / h) / (t(n - h, 0) / (n - h)).
    """
    past = round(cached) if cached >= 1 else round(prompt / 2)
    new = max(1, round(prompt) - past)
    if past < 1:
        return 0.0
    alone = times.prefill_s([Chunk(new, 0)], new * ranks)
    behind = times.prefill_s([Chunk(new, past)], new * ranks)
    return max(0.0, (behind - alone) / past) / (alone / new)
