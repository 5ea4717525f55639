"""What each group of a deployment served, where a pool has several."""

from __future__ import annotations

import numpy as np

from simulator.des.results.cost import usd_per_mtok
from simulator.des.results.measured import Measured
from simulator.des.results.reports import GroupReport, percentiles_of
from simulator.model.arrays import Mask


def served_by(result: Measured, name: str) -> Mask:
    """Requests that a group took last: to prefill them in a prefill pool, else to decode them."""
    group = result.groups[name].group
    log = result.run.log
    column = log.prefill_instance if result.spec.decode and result.spec.is_entry(group) else log.decode_instance
    numbers = {change.instance for change in result.run.changes[name]}
    return np.isin(np.array(column), list(numbers))


def group_results(result: Measured) -> dict[str, GroupReport]:
    """By group: requests, their share of the pool's, tokens per second, latencies, USD; empty where no pool has two.

    Requests that left in the window of throughput count, their prompt tokens at the group that computed them, their
    output tokens at the one that decoded them; a latency is that of the measured requests. USD per million tokens are
    of those tokens alone.
    """
    spec = result.spec
    if all(len(pool) == 1 for pool in spec.pools):
        return {}
    table: dict[str, GroupReport] = {}
    for pool in spec.pools:
        masks = {group.name: served_by(result, group.name) for group in pool}
        windows = {name: result.window_of(mask) for name, mask in masks.items()}
        whole = sum(window.requests for window in windows.values())
        for group in pool:
            w = windows[group.name]
            computes, decodes = spec.is_entry(group), group.pool == spec.pools[-1][0].pool
            tokens = computes * w.tokens_in + decodes * w.tokens_out
            gpus = result.mean_gpus(group.name)
            usd = None if result.prices is None else gpus * result.prices[group.name].usd_per_gpu_hour
            kept = masks[group.name] & result.measured & result.finished
            table[group.name] = GroupReport(
                group.pool,
                w.requests,
                w.requests / whole if whole else 0.0,
                w.rate(w.tokens_in) if computes else None,
                w.rate(w.tokens_out) if decodes else None,
                w.rate(tokens) / gpus if gpus else 0.0,
                None if usd is None or not w.rate(tokens) else usd_per_mtok(usd, w.rate(tokens)),
                percentiles_of(result.ttft_s[kept]) if computes else None,
                percentiles_of(result.tpot_s[kept]) if decodes else None,
            )
    return table
