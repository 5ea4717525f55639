"""Public checkpoint configurations, counted: right, refused by name, or wrong.

    python -m benchmarks.checkpoints [--configs FOLDER] [--variants FOLDER] [--json FILE]

FOLDER of `--configs`: `model_configs/` of the wheel `aiconfigurator-core` (pip download it, unzip it; nothing of it is
kept here). FOLDER of `--variants`: quantisation sections with an `expected.json` beside them.

A configuration is right when its parameters equal those of the `transformers` class on the meta device, or, where
there is none, lie within 2% of the size that its name or its card gives, and when most of its weights are stored in the
type that its name gives (bf16 where neither its name nor its files give one). A variant is right when bytes of an
expert's weight, operands and KV type are those expected.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.out_of_sample import circumstances
from simulator.model import parameter_counts as counts
from simulator.model.architecture import ModelSpec
from simulator.model.families.quantisation import SIDE_FILE, Quantisation, checkpoint_quantisation, text_part
from simulator.model.presets import ModelError, load_model

RESULTS = Path(__file__).resolve().parent / "results" / "checkpoints.json"
CONFIG = "_config.json"
NEAR = 0.02  # of a size that a name gives in two or three digits
# Classes that read a configuration whose `model_type` transformers does not know by that name.
CLASSES = {
    "kimi_k2": "deepseek_v3",
    "deepseek_ref": "deepseek_v4",
    "mimo": "qwen2",
    "minimax_m3": "minimax_m3_vl_text",
}
NESTED = {"step3p7": "text_config"}  # families whose class reads the language model's keys in a section of their own
# Published sizes of models without a class, where the name gives none. [billions]
PUBLISHED = {"moonshotai--Kimi-K3": 2780.0}
NOT_TEXT = ("vision", "visual", "audio", "multi_modal_projector", "mm_projector")
SIZE_IN_NAME = re.compile(r"(?<![\d.A-Za-z])(\d+(?:\.\d+)?)B(?![A-Za-z])")
TYPE_IN_NAME = re.compile(r"(NVFP4|FP8|INT4|BF16)")
EVERY_LAYER = 0  # of the variants' example names


@dataclass(frozen=True)
class Verdict:
    """What became of one configuration. judge: what its parameters were compared with."""

    name: str
    verdict: str  # "right", "refused", "wrong"
    why: str = ""
    family: str = ""
    parameters: int | None = None
    expected: float | None = None
    judge: str = ""
    bytes_by_type: dict[str, float] | None = None
    bytes_by_tensor: dict[str, float] | None = None


def meta_parameters(config: dict[str, Any]) -> int | None:
    """Parameters of the language model of the transformers class, its correction biases (buffers) included; None
    without a class."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    bare = {k: v for k, v in config.items() if k not in ("auto_map", "quantization_config", "compression_config")}
    if isinstance(bare.get("text_config"), dict):
        inner = bare["text_config"]
        bare["text_config"] = {k: v for k, v in inner.items() if k not in ("auto_map", "quantization_config")}
    name = bare.pop("model_type")
    if name in NESTED and NESTED[name] not in bare:
        bare = {NESTED[name]: {k: v for k, v in bare.items() if k != "architectures"}}
    name = CLASSES.get(name, name)
    try:
        built = transformers.AutoConfig.for_model(name, **bare)
        with torch.device("meta"):
            model, head = _module(built)
    except (ValueError, KeyError):
        return None
    parameters = sum(p.numel() for key, p in model.named_parameters() if not any(part in key for part in NOT_TEXT))
    biases = sum(b.numel() for key, b in model.named_buffers() if key.endswith("correction_bias"))
    return parameters + biases + head


def _module(built: Any) -> tuple[Any, int]:
    """The model of a transformers configuration, and parameters of the LM head that its class lacks."""
    import transformers

    for kind in (transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText):
        try:
            return kind.from_config(built), 0
        except ValueError:
            continue
    head = 0 if built.tie_word_embeddings else built.vocab_size * built.hidden_size
    return transformers.AutoModel.from_config(built), head


def size_in_name(name: str) -> float | None:
    """Parameters that a published name gives. [billions]

    >>> size_in_name("Qwen--Qwen3-235B-A22B"), size_in_name("deepseek-ai--DeepSeek-R1")
    (235.0, None)
    """
    if name in PUBLISHED:
        return PUBLISHED[name]
    found = SIZE_IN_NAME.search(name)
    return float(found[1]) if found else None


def type_in_name(name: str) -> str | None:
    """Storage type that a published name gives.

    >>> type_in_name("nvidia--GLM-5-NVFP4"), type_in_name("zai-org--GLM-5")
    ('fp4', None)
    """
    found = TYPE_IN_NAME.search(name)
    return {"NVFP4": "fp4", "FP8": "fp8", "INT4": "int4", "BF16": "bf16"}[found[1]] if found else None


def judged(path: Path) -> Verdict:
    """One config.json, with the side file beside it."""
    name = path.name.removesuffix(CONFIG)
    try:
        model = load_model(str(path))
    except ModelError as error:
        return Verdict(name, "refused", str(error).replace(f"{path}: ", ""))
    config = json.loads(path.read_text(encoding="utf-8"))
    found = counts.params_total(model)
    expected: float | None = meta_parameters(config)
    judge, near = "transformers on the meta device", 0.0
    if expected is None:
        size = size_in_name(name)
        expected = None if size is None else size * 1e9
        judge, near = ("size in the name" if name not in PUBLISHED else "published size"), NEAR
    why = ""
    if expected is None:
        why = "nothing independent to compare its parameters with"
    elif abs(found - expected) > near * expected:
        why = f"{found:,} parameters, expected {expected:,.0f}"
    else:
        why = wrong_type(name, model, config, path)
    return Verdict(
        name,
        "wrong" if why else "right",
        why,
        model.family,
        found,
        expected,
        judge,
        {key: round(size) for key, size in counts.weight_bytes_by_dtype(model).items()},
        {key: round(size) for key, size in counts.weight_bytes_by_tensor(model).items()},
    )


def wrong_type(name: str, model: ModelSpec, config: dict[str, Any], path: Path) -> str:
    """What is wrong with the type that most weights are stored in; "" if nothing."""
    sizes = counts.weight_bytes_by_dtype(model)
    per_param = {"fp4": 0.5, "int4": 0.5, "fp8": 1.0, "int8": 1.0, "bf16": 2.0, "fp32": 4.0}
    stored = max((key for key in sizes if key in per_param), key=lambda key: sizes[key] / per_param[key])
    said = type_in_name(name)
    quantised = any(text_part(config)[0].get(key) for key in ("quantization_config", "compression_config"))
    quantised = quantised or path.with_name(name + "_" + SIDE_FILE).is_file()
    if said is None:
        return "" if quantised or stored == "bf16" else f"most weights are {stored}, no file says so"
    return "" if stored == said else f"most weights are {stored}, the name says {said}"


def variants(folder: Path) -> Iterator[Verdict]:
    """Quantisation sections with the bytes, operands and KV type expected of each."""
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    for name, answer in expected.items():
        config = json.loads((folder / name / "config.json").read_text(encoding="utf-8"))
        beside = folder / name / SIDE_FILE
        side = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else None
        try:
            quantisation = checkpoint_quantisation(config, name, side)
        except ModelError as error:
            yield Verdict(name, "refused", str(error))
            continue
        why = "; ".join(differences(quantisation, answer))
        yield Verdict(name, "wrong" if why else "right", why, judge="expected.json")


def differences(quantisation: Quantisation, answer: dict[str, Any]) -> Iterator[str]:
    """How a quantisation differs from what is expected of it."""
    if quantisation.kv_dtype != answer["kv_cache"]:
        yield f"KV type {quantisation.kv_dtype}, expected {answer['kv_cache']}"
    if "per_layer" in answer:
        names = {
            "FP8": ("attention", "q_proj"), "NVFP4": ("expert", "up"), "W4A16_NVFP4": ("expert", "down"),
            "MXFP8": ("shared_expert", "shared_up_alone"),
        }  # fmt: skip
        for label, size in answer["per_layer"].items():
            kind, linear = names[label]
            scheme = quantisation.scheme("llama", kind, linear, EVERY_LAYER)  # type: ignore[arg-type]
            if scheme is None or scheme.bytes_per_param != size:
                yield f"{label} of {linear}: {scheme}"
        return
    # A list may spare whole layers at the beginning: the second layer stands for the others.
    scheme = quantisation.scheme("llama", "expert", "gate_up", EVERY_LAYER + 1) or quantisation.scheme(
        "llama", "expert", "gate_up", EVERY_LAYER
    )
    if scheme is None:
        yield "experts are not quantised"
        return
    if scheme.bytes_per_param != answer["bytes_per_routed_expert_weight"]:
        yield f"{scheme.bytes_per_param} B a weight, expected {answer['bytes_per_routed_expert_weight']}"
    if scheme.compute not in re.split(r"[/ ]", answer["matmul_activations"]):
        yield f"operands {scheme.compute}, expected {answer['matmul_activations']}"


def part(verdicts: list[Verdict]) -> dict[str, Any]:
    """Counts, and every configuration."""
    tally = Counter(one.verdict for one in verdicts)
    judges = Counter(one.judge for one in verdicts if one.verdict == "right")
    return {
        "configurations": len(verdicts),
        **{word: tally[word] for word in ("right", "refused", "wrong")},
        "right_by": dict(judges),
        "each": [{k: v for k, v in asdict(one).items() if v not in (None, "")} for one in verdicts],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=Path, metavar="FOLDER")
    parser.add_argument("--variants", type=Path, metavar="FOLDER")
    parser.add_argument("--json", type=Path, default=RESULTS)
    asked = parser.parse_args()
    report: dict[str, Any] = circumstances()
    report["libraries"]["transformers"] = version("transformers")
    if asked.configs is not None:
        paths = sorted(path for path in asked.configs.glob("*" + CONFIG) if not path.name.endswith(SIDE_FILE))
        report["configs"] = part([judged(path) for path in paths])
    if asked.variants is not None:
        report["variants"] = part(list(variants(asked.variants)))
    for name in ("configs", "variants"):
        if name in report:
            print(name, *(f"{word} {report[name][word]}" for word in ("configurations", "right", "refused", "wrong")))
            for one in report[name]["each"]:
                if one["verdict"] != "right":
                    print("  ", one["name"], one["verdict"], one.get("why", ""))
    asked.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
