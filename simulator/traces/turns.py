"""Sessions whose turns follow the answer before them by a recorded delay: what each turn's prompt then is."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

Chain = tuple[int, ...]


class TurnRow(NamedTuple):
    """One recorded turn. arrival_s: None where only its delay is known."""

    arrival_s: float | None
    delay_s: float | None
    prompt_tokens: int
    output_tokens: int
    ids: Chain | None


class Told(NamedTuple):
    """Prompt tokens of each turn, the blocks of its prompt, and those that prompt and answer fill."""

    prompts: list[int]
    blocks: list[Chain]
    kept: list[Chain]


def whole_prompts(session: Sequence[TurnRow]) -> bool:
    """True where every turn's ids go on from those of the turn before: its length is then that of the whole prompt,
    else that of the new text, as AIPerf has it."""
    pairs = list(itertools.pairwise(session))
    return bool(pairs) and all(
        before.ids is not None
        and after.ids is not None
        and len(after.ids) >= len(before.ids)
        and after.ids[: len(before.ids) - 1] == before.ids[:-1]
        and after.prompt_tokens >= before.prompt_tokens
        for before, after in pairs
    )


def prompts_of(session: Sequence[TurnRow], size: int, fresh: int, whole: bool) -> tuple[Told, int]:
    """What the turns of one session ask, with blocks of `size` tokens; and the next block id that is free.

    Turns of new text: each prompt is all that was said before and the new text. The KV of an answer's last token is
    never computed.
    """
    if whole:
        chains = [turn.ids or () for turn in session]
        return Told([turn.prompt_tokens for turn in session], chains, chains), fresh
    prompts: list[int] = []
    ends: list[int] = []
    said = 0
    for turn in session:
        prompts.append(said + turn.prompt_tokens)
        said = prompts[-1] + turn.output_tokens
        ends.append((said - 1) // size)
    first = (session[0].ids or ())[: prompts[0] // size]
    own = max(0, ends[-1] - len(first))
    chain = (*first, *range(fresh, fresh + own))
    blocks = [chain[: tokens // size] for tokens in prompts]
    return Told(prompts, blocks, [chain[:end] for end in ends]), fresh + own
