"""What a request's settings do to its logits before a token is drawn: forbidden tokens, biases, penalties, min_p.

Order and definitions are those of other servers: repetition counts prompt and output, frequency and presence the output
alone; min_p counts from the tempered probabilities.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.sequence import Sequence


@dataclass(frozen=True)
class LogitChange:
    """Of one row of logits. forbidden: get no chance. added: (token, logit). repeated: divided by `repetition` where
    positive, else multiplied. penalised: (token, logit to take off). min_p: 0 is off."""

    forbidden: tuple[int, ...] = ()
    added: tuple[tuple[int, float], ...] = ()
    repeated: tuple[int, ...] = ()
    repetition: float = 1.0
    penalised: tuple[tuple[int, float], ...] = ()
    min_p: float = 0.0
    temperature: float = 0.0


def change_of(sequence: Sequence, eos_token_ids: tuple[int, ...]) -> LogitChange | None:
    """For the next token of a sequence; None where its settings change nothing."""
    params = sequence.sampling
    if not params.changes_logits:
        return None
    forbidden: tuple[int, ...] = ()
    if sequence.num_output < params.min_tokens:
        forbidden = tuple(sorted({*eos_token_ids, *params.stop_token_ids}))
    penalised: tuple[tuple[int, float], ...] = ()
    if params.frequency_penalty or params.presence_penalty:
        counts = Counter(sequence.output_token_ids)
        penalised = tuple((t, params.frequency_penalty * n + params.presence_penalty) for t, n in counts.items())
    repeated = tuple(set(sequence.token_ids)) if params.repetition_penalty != 1.0 else ()
    return LogitChange(
        forbidden,
        params.logit_bias,
        repeated,
        params.repetition_penalty,
        penalised,
        params.min_p,
        params.temperature,
    )


def apply_changes(logits: Tensor, changes: Seq[LogitChange | None]) -> Tensor:
    """logits: [B, vocab] float32, changed in place; one change a row."""
    for row, change in zip(logits, changes, strict=True):
        if change is None:
            continue
        if change.forbidden:
            row[list(change.forbidden)] = -math.inf
        _add(row, change.added, 1.0)
        if change.repeated:
            ids = torch.tensor(change.repeated, device=row.device)
            old = row[ids]
            row[ids] = torch.where(old > 0, old / change.repetition, old * change.repetition)
        _add(row, change.penalised, -1.0)
        if change.min_p > 0 and change.temperature > 0:
            row[row < row.max() + change.temperature * math.log(change.min_p)] = -math.inf
    return logits


def _add(row: Tensor, pairs: tuple[tuple[int, float], ...], sign: float) -> None:
    if pairs:
        ids = torch.tensor([token for token, _ in pairs], device=row.device)
        row[ids] += sign * torch.tensor([value for _, value in pairs], device=row.device)
