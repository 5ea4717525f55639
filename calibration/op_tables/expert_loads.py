"""How the tables' collector spreads tokens over experts."""

from __future__ import annotations

from functools import cache

import numpy as np

from simulator.model.arrays import Floats

# (experts, chosen, hidden size) of models that choose within groups of experts -> (groups, groups of a token):
# n_group and topk_group of DeepSeek-R1's config.json.
GROUPED = {(256, 8, 7168): (8, 4)}
ROUTED_IN_GROUPS = ("sglang", "vllm")  # frameworks whose tables do; balanced rows of TensorRT-LLM touch all experts
DRAWS = 8  # places of the experts that `touched_in_groups` takes the mean of (assumed)
ALPHA = 1.2  # of the tables' `power_law_1.2`
MOST_OF_ONE = 0.8  # of the tokens, that the most loaded expert gets at most (inferred from the tables)
# Loads between which the density is drawn, where there are fewer choices than experts; and the least upper end where
# there are more, for the density needs some width. As the collector has them.
SPARSE = (0.01, 2.0)
LEAST_WIDTH = 1.001


def power_law_counts(choices: int, experts: int, alpha: float, most: float) -> Floats:
    """Whole tokens of each expert where loads follow a density x^-alpha, `choices` in all, as the tables' collector
    draws them: on [1, most], where there are fewer choices than experts on [0.01, 2]; rounded, and the difference
    taken from the most loaded experts or given to those without a token.

    Quantiles at even steps stand for its sample. That what is missing goes to idle experts is inferred: with it, the
    times of 16 to 256 tokens lie on one rate of reading weights for 4, 6 and 8 choices of 128, 256 and 384 experts.
    """
    u = (np.arange(experts) + 0.5) / experts  # middles of even steps
    low, high = (1.0, max(most, LEAST_WIDTH)) if choices > experts else SPARSE
    power = 1.0 - alpha
    loads = (low**power + u * (high**power - low**power)) ** (1 / power)
    counts = np.round(loads / loads.sum() * choices)
    missing = int(choices - counts.sum())
    order = np.argsort(-loads)
    idle = order[counts[order] == 0]
    if missing < 0:
        order = order[counts[order] > 0]
    elif len(idle):
        order = idle
    for i in range(abs(missing)):
        counts[order[i % len(order)]] += np.sign(missing)
    return np.maximum(counts, 0.0)


@cache
def touched_in_groups(tokens: int, chosen: int, counts: tuple[int, ...], groups: int, kept: int) -> float:
    """Experts touched where a token may only use the `kept` groups with most of the experts that `counts` (tokens of
    each expert) meant for it, and fills up its choice with the first experts of these groups. Mean over random places
    of the experts.

    In the tables balanced rows of DeepSeek-R1's shape read half the experts, and rows of 16 and 64 tokens by power law
    0.83 of what loads without groups would; here the latter come to 0.9.
    """
    experts = len(counts)
    order = np.argsort(counts)[::-1]
    meant = np.repeat(order, np.array(counts)[order])[: tokens * chosen].reshape(chosen, tokens)
    row = np.broadcast_to(np.arange(tokens), meant.shape)
    found = []
    for seed in range(DRAWS):
        place = np.random.default_rng(seed).permutation(experts)
        wanted = np.zeros((tokens, experts), dtype=np.int32)
        np.add.at(wanted, (row, place[meant]), 1)
        members = wanted.reshape(tokens, groups, -1)
        best = np.partition(members, -2, axis=2)[:, :, -2:].sum(axis=2)
        closed = np.argsort(-best, axis=1, kind="stable")[:, kept:]
        np.put_along_axis(members, closed[:, :, None], -1, axis=1)
        ranks = np.arange(experts, dtype=np.int32) - experts * wanted  # the most wanted first, then the first experts
        found.append(len(np.unique(np.argpartition(ranks, chosen - 1, axis=1)[:, :chosen])))
    return float(np.mean(found))
