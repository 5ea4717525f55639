"""A plan's JSON as tables for screens and charts."""

from __future__ import annotations

from typing import Any

import pandas as pd

from app.render.plan import ROLES, least_chance, pool_text, shown_metrics
from app.render.tables import MS_PER_S, band_text

FRONTIER_COLUMNS = (
    "form",
    "gpu",
    "cut",
    "sequences_per_instance",
    "tok_s_per_user",
    "total_tok_s_per_gpu",
    "usd_per_mtok_blended",
)


# Figure whose band is shown -> factor to the unit shown.
BANDED = {"ttft_s": 1.0, "tpot_s": MS_PER_S, "total_tok_s_per_gpu": 1.0, "usd_per_mtok_blended": 1.0}


def designs_frame(answer: dict[str, Any]) -> pd.DataFrame:
    """One row per ranked design; latencies at the percentile of the limits, ranges from p10 to p90."""
    tail = f"p{answer['slo']['percentile']:g}"
    rows = []
    for rank, design in enumerate(answer["designs"], 1):
        seen, bands = shown_metrics(design), design["uncertainty"]["bands"]
        rows.append(
            {
                "rank": rank,
                "pools": "; ".join(pool_text(letter, design[role]) for role, letter in ROLES.items() if role in design),
                "gpus": design["gpus_total"],
                "ttft_s": seen["ttft_s"].get(tail),
                "tpot_ms": _scaled(seen["tpot_s"].get(tail), MS_PER_S),
                "tok_s_per_user": seen["tok_s_per_user"]["mean"],
                "total_tok_s_per_gpu": seen["total_tok_s_per_gpu"],
                **{f"{key}_range": band_text(bands.get(key), scale) for key, scale in BANDED.items()},
                "chance": least_chance(design),
                "usd_per_hour": design["usd_per_hour"],
                "usd_per_mtok_blended": design["usd_per_mtok_blended"],
                "stack": design["stack"],
                "concurrency": design["concurrency"],
                "sequences_per_instance": design["sequences_per_instance"],
                "binds": design["binds"]["what"],
                "meets_slo": design["meets_slo"],
                "checked_by": "DES" if design["simulated"] else "est.",
            }
        )
    return pd.DataFrame(rows)


def designs_csv(answer: dict[str, Any]) -> str:
    """A line for each design: figures in SI units, ranges as p10 and p90, pools as they are counted."""
    frame = designs_frame(answer).drop(columns=[f"{key}_range" for key in BANDED])
    for key in BANDED:
        bands = [design["uncertainty"]["bands"].get(key) for design in answer["designs"]]
        for end in ("p10", "p90"):
            frame[f"{key}_{end}"] = [None if band is None else band[end] for band in bands]
    return str(frame.to_csv(index=False))


def bands_frame(answer: dict[str, Any]) -> pd.DataFrame:
    """One row per design and figure with a band: rank, figure, value, p10, p50, p90, in the figure's unit."""
    tail = f"p{answer['slo']['percentile']:g}"
    rows = []
    for rank, design in enumerate(answer["designs"], 1):
        seen = shown_metrics(design) | {"usd_per_mtok_blended": design["usd_per_mtok_blended"]}
        for key, band in design["uncertainty"]["bands"].items():
            if key in BANDED:
                scale = BANDED[key]
                value = seen[key].get(tail) if isinstance(seen[key], dict) else seen[key]
                rows.append((rank, key, value * scale, *(band[q] * scale for q in ("p10", "p50", "p90"))))
    return pd.DataFrame(rows, columns=["rank", "figure", "value", "p10", "p50", "p90"])


def frontier_frame(answer: dict[str, Any]) -> pd.DataFrame:
    """One row per operating point on a Pareto front."""
    return pd.DataFrame(answer["frontier"], columns=list(FRONTIER_COLUMNS))


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
