"""Options that say how a trace is to be read, and the keys of [workload] that they stand for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

import typer

ROLES = ("arrived", "prompt", "output", "session", "delay", "hash_ids")
PAIR = re.compile(rf"({'|'.join(ROLES)})=(.*)", re.DOTALL)
FLAG = "--columns"


def joined_columns(args: Sequence[str]) -> list[str]:
    """Words after --columns as one: shells split them.

    >>> joined_columns(["f.csv", "--columns", "arrived=t", "prompt=n in", "--json", "-"])
    ['f.csv', '--columns', 'arrived=t\\nprompt=n in', '--json', '-']
    """
    joined: list[str] = []
    for i, word in enumerate(args):
        before = args[:i]
        start = len(before) - 1 - before[::-1].index(FLAG) if FLAG in before else None
        if start is not None and i > start + 1 and all(PAIR.match(each) for each in args[start + 1 : i + 1]):
            joined[-1] += f"\n{word}"
        else:
            joined.append(word)
    return joined


def column_names(text: str) -> dict[str, str]:
    """
    >>> column_names("arrived=when prompt=n_in output=n_out"), column_names("prompt=tokens in, output=tokens out")
    ({'arrived': 'when', 'prompt': 'n_in', 'output': 'n_out'}, {'prompt': 'tokens in', 'output': 'tokens out'})
    """
    parts = re.split(rf"[\s,]+(?=(?:{'|'.join(ROLES)})=)", text.strip())
    names: dict[str, str] = {}
    for part in parts:
        found = PAIR.fullmatch(part.strip())
        if found is None:
            raise typer.BadParameter(
                f"{part!r} is not one of {', '.join(f'{role}=NAME' for role in ROLES)}; name columns of the file"
            )
        names[found[1]] = found[2].strip()
    return names


def trace_keys(columns: str | None, time_unit: str | None, block_tokens: int | None) -> dict[str, Any]:
    """Keys of a trace's [workload] that were given."""
    given = {
        "columns": None if columns is None else column_names(columns),
        "time_unit": time_unit,
        "block_tokens": block_tokens,
    }
    return {key: value for key, value in given.items() if value is not None}


ColumnsInput = Annotated[
    str | None,
    typer.Option(
        FLAG,
        metavar="arrived=NAME prompt=NAME output=NAME",
        help="Columns of a trace of no known format; also session=, delay=, hash_ids=.",
    ),
]
TimeUnitInput = Annotated[
    str | None,
    typer.Option("--time-unit", metavar="UNIT", help="Of the trace's times: s, ms, us, ns. Left out: told from it."),
]
BlockTokensInput = Annotated[
    int | None,
    typer.Option("--block-tokens", metavar="N", min=1, help="Of a hash id, in tokens. Left out: told from the trace."),
]
