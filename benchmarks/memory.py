"""Memory as `moeplan fits` has it against what engines log at start-up.

    python -m benchmarks.memory [--start-ups FILE] [--json FILE]

FILE has the columns of memory_vllm.csv: weights, working memory, memory outside torch, KV pool [GiB] and tokens, as
vLLM reports them; a pool that is not logged is what the logged parts leave of the device. Further logged figures of
single deployments stand in LOGGED.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hw_profiles.catalog import load
from hw_profiles.units import GIB
from simulator.model.fits import Fits, fits
from simulator.model.parallelism import Parallelism

START_UPS = Path("/work/shared/data/hardware/memory_vllm.csv")
GOALS = {"weights": 0.01, "pool": 0.03, "tokens": 0.03, "logged": 0.10}  # mean absolute error [-]
GPU = "h100_sxm"
# Figures of config.json of models that are no presets (huggingface.co/Qwen).
CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen2.5-7B-Instruct": {
        "model_type": "qwen2", "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": False,
        "max_position_embeddings": 32768, "torch_dtype": "bfloat16",
    },
    "Qwen3-14B": {
        "model_type": "qwen3", "hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40, "head_dim": 128,
        "num_key_value_heads": 8, "intermediate_size": 17408, "vocab_size": 151936, "tie_word_embeddings": False,
        "max_position_embeddings": 40960, "torch_dtype": "bfloat16",
    },
}  # fmt: skip
PRESETS = {"Llama-3.1-8B-Instruct": "llama-3.1-8b"}
ARCHITECTURES = {"Qwen3Moe": "qwen3-30b-a3b", "GptOss": "gpt-oss-120b", "Mixtral": "mixtral-8x7b"}


@dataclass(frozen=True)
class Logged:
    """A figure of an engine's start-up log, and the deployment that it is of."""

    name: str
    model: str
    gpu: str
    cut: Parallelism
    figure: str  # of Fits
    value: float
    source: str
    share: float | None = None
    context: int | None = None
    dcp: int = 1


K2 = "vLLM's log in the thread on decode context parallel (field cases 04 and 12)"
V4 = "vLLM's log, vllm-recipes#762 (field case 05)"
LOGGED = (
    Logged("K2 TP8, KV room", "kimi-k2.5", "h200", Parallelism(tp=8), "kv_bytes", 46.8 * GIB, K2),
    Logged("K2 TP8, tokens", "kimi-k2.5", "h200", Parallelism(tp=8), "tokens", 715_072, K2),
    Logged("K2 TP8 DCP8, tokens", "kimi-k2.5", "h200", Parallelism(tp=8), "tokens", 5_721_088, K2, dcp=8),
    Logged("V4-Flash TP8, sequences of 1M", "deepseek-v4-flash", "b200", Parallelism(tp=8, ep=8),
           "sequences_logged", 20.4, V4, 0.95, 1_048_576),
    Logged("V4-Flash DP8, sequences of 1M", "deepseek-v4-flash", "b200", Parallelism(dp=8, ep=8),
           "sequences_logged", 156.9, V4, 0.95, 1_048_576),
)  # fmt: skip


def planned(row: dict[str, str], folder: Path) -> Fits | None:
    """The deployment of a row as `fits` has it; None for a model whose configuration is not at hand."""
    name = row["model"]
    model = PRESETS.get(name) or ARCHITECTURES.get(row["architecture"] if not name else "")
    changed = row["weights_dtype"] not in ("bf16", "mxfp4")
    if name in CONFIGS:
        path = folder / f"{name}.json"
        path.write_text(json.dumps(CONFIGS[name]), encoding="utf-8")
        model = str(path)
    if model is None or changed:
        return None
    return fits(
        model,
        GPU,
        Parallelism(tp=int(row["tp"]), pp=int(row["pp"])),
        stack="vllm",
        context=int(row["max_model_len"]),
        memory_share=float(row["memory_share"]),
        kv_dtype=None if row["kv_dtype"] == "auto" else row["kv_dtype"],
    )


def logged_parts(row: dict[str, str]) -> dict[str, float]:
    """What the row says of each part. [GiB, tokens]"""
    keys = {"weights": "weights_gib", "working": "activation_gib", "outside": "non_torch_gib", "pool": "kv_pool_gib",
            "tokens": "kv_tokens"}  # fmt: skip
    said = {part: float(row[key]) for part, key in keys.items() if row[key]}
    if "pool" not in said and {"weights", "working", "outside"} <= set(said):
        device = load(GPU).usable_memory_bytes / GIB
        said["pool"] = float(row["memory_share"]) * device - said["weights"] - said["working"] - said["outside"]
    return said


def parts_of(found: Fits) -> dict[str, float]:
    return {
        "weights": found.weight_bytes / GIB,
        "working": found.working_bytes / GIB,
        "outside": found.outside_bytes / GIB,
        "pool": found.kv_bytes / GIB,
        "tokens": float(found.tokens),
    }


def score(start_ups: Path) -> dict[str, Any]:
    """Errors by row and their means by part."""
    rows = []
    errors: dict[str, list[float]] = defaultdict(list)
    left_out = 0
    with tempfile.TemporaryDirectory() as folder, start_ups.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found = planned(row, Path(folder))
            if found is None:
                left_out += 1
                continue
            mine, said = parts_of(found), logged_parts(row)
            off = {part: round(mine[part] / value - 1, 4) for part, value in said.items()}
            for part, error in off.items():
                errors[part].append(abs(error))
            name = row["model"] or row["architecture"]
            rows.append({"model": name, "vllm": row["vllm"], "cut": found.cut, "kv": row["kv_dtype"], "errors": off})
    return {
        "rows": rows,
        "left_out": left_out,
        "mean_absolute_error": {part: round(statistics.fmean(each), 4) for part, each in errors.items()},
        "count": {part: len(each) for part, each in errors.items()},
    }


def score_logged() -> list[dict[str, Any]]:
    found = []
    for each in LOGGED:
        mine = getattr(
            fits(each.model, each.gpu, each.cut, stack="vllm", context=each.context, memory_share=each.share,
                     dcp=each.dcp),
            each.figure,
        )  # fmt: skip
        found.append(
            {
                "name": each.name,
                "logged": each.value,
                "planned": round(mine, 1),
                "error": round(mine / each.value - 1, 4),
                "source": each.source,
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--start-ups", type=Path, default=START_UPS, help="CSV with the columns of memory_vllm.csv")
    parser.add_argument("--json", type=Path, default=None, help="write the errors there")
    asked = parser.parse_args()
    if not asked.start_ups.is_file():
        parser.error(f"{asked.start_ups} is not a file; give one with --start-ups")
    data: dict[str, Any] = {"goals": GOALS, "start_ups": score(asked.start_ups), "logged": score_logged()}
    if asked.json:
        asked.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    for part, error in data["start_ups"]["mean_absolute_error"].items():
        print(f"{part:10s} {error:6.1%} mean absolute error of {data['start_ups']['count'][part]} rows")
    for each in data["logged"]:
        print(f"{each['name']:32s} {each['error']:+6.1%}")


if __name__ == "__main__":
    main()
