"""Points that were read from benchmark results, as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Group

from app.render.tables import number, simple_table


def points_report(answer: dict[str, Any]) -> Group:
    """Of `import results`."""
    headings = ("Engine", "GPUs", "Layout", "isl", "osl", "In\nflight", "TPOT\nms", "TTFT\nms", "tok/s\n/GPU")
    table = simple_table("Result", *headings, tight=True)
    for point in answer["points"]:
        name = Path(str(point["id"])).name
        layout = " | ".join(str(point[k]) for k in ("prefill_parallel", "decode_parallel") if point.get(k))
        figures = [
            number(point.get(key), digits)
            for key, digits in (("isl", 0), ("osl", 0), ("concurrency", 1), ("tpot_ms", 2), ("ttft_ms", 1),
                                ("total_tok_s_per_gpu", 1))
        ]  # fmt: skip
        table.add_row(name, str(point.get("engine") or "?"), f"{point['n_gpu']} {point['gpu']}", layout, *figures)
    return Group(table, *(f"Left out: {said}" for said in answer["left_out"]), f"Written: {answer['output']}")
