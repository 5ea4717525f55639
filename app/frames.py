"""A plan's JSON as tables for screens and charts."""

from __future__ import annotations

from typing import Any

import pandas as pd

from app.render_plan import ROLES, pool_text, shown_metrics

FRONTIER_COLUMNS = (
    "form",
    "gpu",
    "cut",
    "sequences_per_instance",
    "tok_s_per_user",
    "total_tok_s_per_gpu",
    "usd_per_mtok_blended",
)


def designs_frame(answer: dict[str, Any]) -> pd.DataFrame:
    """One row per ranked design; latencies at the percentile of the limits."""
    tail = f"p{answer['slo']['percentile']:g}"
    rows = []
    for rank, design in enumerate(answer["designs"], 1):
        seen = shown_metrics(design)
        rows.append(
            {
                "rank": rank,
                "pools": "; ".join(pool_text(letter, design[role]) for role, letter in ROLES.items() if role in design),
                "gpus": design["gpus_total"],
                "ttft_s": seen["ttft_s"].get(tail),
                "tpot_ms": _scaled(seen["tpot_s"].get(tail), 1e3),
                "tok_s_per_user": seen["tok_s_per_user"]["mean"],
                "total_tok_s_per_gpu": seen["total_tok_s_per_gpu"],
                "usd_per_hour": design["usd_per_hour"],
                "usd_per_mtok_blended": design["usd_per_mtok_blended"],
                "meets_slo": design["meets_slo"],
                "checked_by": "DES" if design["simulated"] else "est.",
            }
        )
    return pd.DataFrame(rows)


def frontier_frame(answer: dict[str, Any]) -> pd.DataFrame:
    """One row per operating point on a Pareto front."""
    return pd.DataFrame(answer["frontier"], columns=list(FRONTIER_COLUMNS))


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
