"""One row a request, and tables as files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simulator.des.records.request_log import Status
from simulator.des.results.measured import Measured
from simulator.scenario import ScenarioError


def request_table(result: Measured) -> pd.DataFrame:
    """What did not happen is NaN, instances that did not serve are -1; instances are numbered through their pool.

    Tenant by tenant, each in order of arrival, sessions turn by turn.
    """
    log = result.run.log
    prompt_end = np.array(log.prompt_end_s)
    return pd.DataFrame(
        {
            **_tenant_column(result),
            "arrival_s": result.arrival_s,
            "prompt_tokens": result.prompt_tokens,
            "output_tokens": result.output_tokens,
            "status": pd.Categorical.from_codes(
                np.frombuffer(log.status, dtype=np.int8),
                dtype=pd.CategoricalDtype([status.name.lower() for status in Status]),
            ),
            "queue_s": np.array(log.prefill_start_s) - result.arrival_s,
            "ttft_s": result.ttft_s,
            "tpot_s": result.tpot_s,
            "e2e_s": result.e2e_s,
            "prompt_end_s": prompt_end,
            "first_token_s": np.array(log.first_token_s),
            "finish_s": result.finish_s,
            "prefill_instance": log.prefill_instance,
            "decode_instance": log.decode_instance,
            "transfer_s": np.array(log.delivered_s) - prompt_end,
            "preemptions": log.preemptions,
            "retries": log.retries,
            "cached_tokens": log.cached_tokens,
        }
    )


def _tenant_column(result: Measured) -> dict[str, Any]:
    streams = result.run.streams
    if len(streams) == 1:
        return {}
    names = np.repeat([stream.tenant for stream in streams], [len(stream) for stream in streams])
    return {"tenant": pd.Categorical(names)}


def joined(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Tables of several models below each other, with the model in front; a lone one, called "", as it is."""
    if list(tables) == [""]:
        return tables[""]
    whole = pd.concat([table.assign(model=model) for model, table in tables.items()], ignore_index=True)
    return whole[["model", *(name for name in whole if name != "model")]]


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Parquet where the suffix says so (needs pyarrow), CSV otherwise."""
    if path.suffix.lower() != ".parquet":
        table.to_csv(path, index=False)
        return
    try:
        table.to_parquet(path, index=False)
    except ImportError:
        raise ScenarioError(f"{path}: Parquet needs pyarrow; install it, or give a file that ends in .csv") from None
