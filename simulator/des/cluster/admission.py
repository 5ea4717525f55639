"""Requests that can never be served, whatever happens: they are refused as they arrive."""

from __future__ import annotations

import numpy as np

from simulator.des.cluster.spec import ClusterSpec
from simulator.des.records.request_log import RequestLog


def hopeless(spec: ClusterSpec, log: RequestLog) -> tuple[list[int], list[str]]:
    """Per request the index of the reason why it can never be served (0: it can), and the reasons."""
    prompts = np.array(log.prompt_tokens)
    total = prompts + np.array(log.output_tokens)
    reasons = [""]
    verdict = np.zeros(len(prompts), dtype=np.int64)

    def refuse(where: np.ndarray, reason: str) -> None:
        reasons.append(reason)
        verdict[where & (verdict == 0)] = len(reasons) - 1

    if spec.max_positions is not None:
        refuse(total > spec.max_positions, f"prompt and output exceed the model's {spec.max_positions:,} positions")
    for pool in spec.pools:
        needed = total if pool is spec.pools[-1] else prompts + 1
        beyond = np.ones(len(prompts), dtype=np.bool_)
        tokens = 0
        for kv in {group.instance.kv for group in pool}:
            beyond &= kv.bytes_per_sequence + needed * kv.bytes_per_token > kv.capacity_bytes
            room = kv.capacity_bytes - kv.bytes_per_sequence
            tokens = max(tokens, int(min(room / kv.bytes_per_token, 1e18) if kv.bytes_per_token else 0))
        refuse(
            beyond,
            f"its KV never fits on one attention rank of the {pool[0].pool} pool, which has room for {tokens:,} tokens",
        )
    return verdict.tolist(), reasons
