"""The fit of a stack of one's own as a table: errors before it, and of points that it did not see."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from rich.console import Group

from app.render.tables import simple_table
from app.render.validation import TITLES


def own_report(answer: dict[str, Any]) -> Group:
    """Of `calibrate serving`: errors before the fit, and of points that it did not see."""
    title = f"Fitted to {answer['fitted']} of {answer['points']} points"
    headings = ("n", "median error\nbefore", "bias\nbefore", "median error\nheld out", "bias\nheld out")
    table = simple_table("metric", *headings, "inside\np10-p90", title=title, tight=True)
    for metric, was in answer["before"].items():
        now = (answer["held_out"] or {}).get(metric)
        cells = [f"{now['median_ape']:.1%}", f"{now['bias']:+.1%}", f"{now['coverage']:.0%}"] if now else [""] * 3
        table.add_row(TITLES[metric], str(was["n"]), f"{was['median_ape']:.1%}", f"{was['bias']:+.1%}", *cells)
    said = ["Held out: each half of the points, predicted by a fit of the other half."]
    if answer["held_out"] is None:
        said = ["Too few points to hold half of them out: how well the fit predicts others is not known."]
    said += [f"Left out: {rows} rows: {why}." for why, rows in answer["left_out"].items()]
    said += [f"Left out: {problem}" for problem in answer["unread"]]
    said.append(f"Written: {', '.join(answer['files'])}.")
    said.append(next_command(answer["folder"], [name.partition("@")[0] for name in answer["files"] if "@" in name]))
    return Group(table, *said)


def next_command(folder: str, accelerators: Sequence[str]) -> str:
    """What to ask with profiles of one's own, as it can be typed; a plan takes them before those that ship."""
    gpus = "".join(f" --gpu {name}" for name in dict.fromkeys(accelerators))
    return f"next: moeplan --profiles {shlex.quote(folder)} plan{gpus}"
