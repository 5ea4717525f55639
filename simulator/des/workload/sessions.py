"""Conversations drawn in advance: who says how much after how long, and which KV blocks a turn shares with the last.

A conversation is one growing text. Turn k's prompt is all of it so far and the new tokens; its answer is appended.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.des.workload.draws import draw_arrivals, draw_lengths, draw_seconds
from simulator.scenario import ScenarioError, Sessions
from simulator.scenario.keys import MOST_REQUESTS
from simulator.traces.columns import BLOCK_TOKENS

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Conversations:
    """When turns are sent. Requests lie session by session, turn by turn.

    first: of each session the index of its first request, and at last the number of requests.
    begin_s: when each session begins; None: `users` people begin them in turn. [s]
    think_s: of each request the pause before it; before a first turn it counts for `users` only. [s]
    kept_blocks: of each request the KV blocks that its prompt and answer fill: the next turn begins with them.
    """

    first: list[int]
    begin_s: list[float] | None
    users: int | None
    think_s: list[float]
    kept_blocks: list[tuple[int, ...]]

    def session_of(self) -> list[int]:
        """The session of every request."""
        return [s for s, (a, b) in enumerate(zip(self.first, self.first[1:], strict=False)) for _ in range(a, b)]


def draw_sessions(
    workload: Sessions, seed: np.random.SeedSequence
) -> tuple[Integers, Integers, list[tuple[int, ...]], Conversations]:
    """Prompt and output tokens and prompt blocks of every turn, and when turns are sent."""
    begins, prompts, outputs, groups, turns, thinks = (np.random.default_rng(child) for child in seed.spawn(6))
    counts = draw_lengths(workload.turns, workload.sessions, turns)
    total = int(counts.sum())
    if total > MOST_REQUESTS:
        raise ScenarioError(
            f"workload.sessions={workload.sessions} of these turns come to {total:,} requests, more than "
            f"{MOST_REQUESTS:,}; give fewer sessions or turns"
        )
    session = np.repeat(np.arange(workload.sessions), counts)
    new = draw_lengths(workload.prompt, total, prompts)
    output = draw_lengths(workload.output, total, outputs)
    think_s = draw_seconds(workload.think_s, total, thinks)
    prefix = workload.system_prompt
    system = prefix.tokens if prefix else 0
    said = np.cumsum(new + output)
    starts = np.cumsum(counts) - counts
    before = said[starts] - (new + output)[starts]  # said in all earlier sessions
    after = system + said - before[session]
    prompt = after - output
    if workload.max_context is not None:
        held = after <= workload.max_context  # contexts grow, so that a session loses its last turns
        if not held.any():
            raise ScenarioError(
                f"workload.max_context={workload.max_context} leaves no turn of any session; raise it or shorten prompt"
            )
        session, prompt, output, after, think_s = (column[held] for column in (session, prompt, output, after, think_s))
    first = np.append(np.flatnonzero(np.diff(session, prepend=-1)), len(session))
    begin_s = None
    if workload.rate is not None:
        begin_s = draw_arrivals(workload.rate, 1.0, workload.sessions, begins)[np.unique(session)].tolist()
    group_of = groups.integers(prefix.groups if prefix else 1, size=workload.sessions)
    shared = system // BLOCK_TOKENS
    blocks: list[tuple[int, ...]] = []
    kept: list[tuple[int, ...]] = []
    fresh = shared * (prefix.groups if prefix else 1)
    # The KV of an answer's last token is never computed.
    whole = np.stack([prompt // BLOCK_TOKENS, (after - 1) // BLOCK_TOKENS]).tolist()
    for begin, end in zip(first.tolist(), first[1:].tolist(), strict=False):
        own = max(0, whole[1][end - 1] - shared)
        group = int(group_of[session[begin]])
        chain = (*range(group * shared, (group + 1) * shared), *range(fresh, fresh + own))
        fresh += own
        blocks += [chain[:count] for count in whole[0][begin:end]]
        kept += [chain[:count] for count in whole[1][begin:end]]
    return prompt, output, blocks, Conversations(first.tolist(), begin_s, workload.users, think_s.tolist(), kept)
