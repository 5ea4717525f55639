"""Money and energy of a deployment that serves a known stream of tokens."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

SECONDS_PER_HOUR = 3600.0
MTOK = 1e6  # tokens


@dataclass(frozen=True)
class PoolCost:
    """What a pool costs and draws.

    gpus: accelerators, on average over time where their number changes.
    prefill_share: the part of the pool's cost that is charged to input tokens: 1 for a prefill pool, 0 for a
        decode pool; in a colocated pool the share of busy time spent on prefill, idle time following suit.
    all_in_w: power of one accelerator with its share of node, network and cooling; None if not known. [W]
    """

    gpus: float
    usd_per_gpu_hour: float
    prefill_share: float
    all_in_w: float | None = None

    @property
    def usd_per_hour(self) -> float:
        return self.gpus * self.usd_per_gpu_hour


@dataclass(frozen=True)
class Cost:
    """USD per hour and per million tokens; energy at full all-in power, whatever the load. None: not known.

    usd_per_hour: while it is paid for; what tokens and requests cost counts paid hours without this traffic too.
    """

    usd_per_hour: float
    usd_per_mtok_input: float
    usd_per_mtok_output: float
    usd_per_mtok_blended: float
    usd_per_request: float
    power_kw: float | None
    kwh_per_mtok: float | None  # input and output tokens
    joule_per_token: float | None
    joule_per_output_token: float | None
    split_rule: str

    def to_json(self) -> dict[str, float | str | None]:
        """Numbers that JSON can hold: what is infinite (nothing was served) becomes None."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }


def cost_of(
    pools: tuple[PoolCost, ...],
    input_tok_s: float,
    output_tok_s: float,
    requests_per_s: float,
    utilisation: float = 1.0,
) -> Cost:
    """Cost of `pools` while they take in `input_tok_s` and emit `output_tok_s`. [tokens/s]

    input share = sum over pools of usd/hour * prefill_share; output share = the rest;
    USD/Mtok = USD/hour / 3600 / (tokens/s) * 1e6; J/token = W / (tokens/s). utilisation: share of the paid hours in
    which they do.
    """
    usd_per_hour = sum(pool.usd_per_hour for pool in pools)
    for_input = sum(pool.usd_per_hour * pool.prefill_share for pool in pools) / utilisation
    for_all = usd_per_hour / utilisation
    by_pool = all(pool.prefill_share in (0.0, 1.0) for pool in pools) and len(pools) > 1
    known = [pool.gpus * pool.all_in_w for pool in pools if pool.all_in_w is not None]
    watts = sum(known) if len(known) == len(pools) else None
    return Cost(
        usd_per_hour,
        usd_per_mtok(for_input, input_tok_s),
        usd_per_mtok(for_all - for_input, output_tok_s),
        usd_per_mtok(for_all, input_tok_s + output_tok_s),
        _per(for_all / SECONDS_PER_HOUR, requests_per_s),
        None if watts is None else watts / 1e3,
        None if watts is None else _per(watts / 1e3 / SECONDS_PER_HOUR * MTOK, input_tok_s + output_tok_s),
        None if watts is None else _per(watts, input_tok_s + output_tok_s),
        None if watts is None else _per(watts, output_tok_s),
        "prefill pool to input tokens, decode pool to output tokens"
        if by_pool
        else "by share of busy time; in a mixed step decode pays what it would take alone",
    )


def usd_per_mtok(usd_per_hour: float, tok_s: float) -> float:
    """
    >>> usd_per_mtok(3.6, 1000.0)
    1.0
    """
    return _per(usd_per_hour / SECONDS_PER_HOUR * MTOK, tok_s)


def _per(amount: float, rate: float) -> float:
    """amount / rate; infinite where nothing was served.

    >>> _per(6.0, 2.0), _per(6.0, 0.0)
    (3.0, inf)
    """
    return amount / rate if rate > 0 else math.inf
