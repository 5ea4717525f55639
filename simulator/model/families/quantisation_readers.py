"""One reader for each `quant_method`: from its keys to schemes and lists of modules.

Sources: transformers `quantizers/` and `utils/quantization_config.py`; vLLM `quantization/` (modelopt, quark, awq,
gptq, auto_round, fbgemm_fp8, compressed-tensors); model cards of DeepSeek, Kimi, NVIDIA and gpt-oss.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from simulator.model.architecture import BYTE, F32_BYTES, FP8_BLOCK, TensorKind, WeightDtype
from simulator.model.families.modules import Modules
from simulator.model.families.reader import LONGEST_SHOWN, ConfigReader, close_matches
from simulator.model.families.schemes import (
    ALGORITHMS,
    Scheme,
    bitsandbytes_4bit,
    block_fp8,
    integers,
    mxfp4,
    mxfp8,
    nvfp4,
    plain_fp8,
    weight_only_fp8,
)

SPARED_KEYS = ("ignore", "exclude_modules", "modules_to_not_convert", "ignored_layers", "exclude")
_EXPERTS: frozenset[TensorKind] = frozenset({"expert"})
_ALL: frozenset[TensorKind] = frozenset()
_ROUTED_KEYS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")
_MIXED = "MIXED_PRECISION"

RuleParts = tuple[Scheme | None, Modules | None, frozenset[TensorKind]]


@dataclass(frozen=True)
class Found:
    """What a reader makes of its section."""

    rules: tuple[RuleParts, ...] = ()
    kv_dtype: WeightDtype | None = None
    notes: tuple[str, ...] = ()


def _spared_patterns(q: ConfigReader) -> list[str] | None:
    """Modules that the checkpoint leaves plain; None: it has no list."""
    key = q.first_of(*SPARED_KEYS)
    return _patterns(q, key) if q.has(key) else None


def _patterns(q: ConfigReader, key: str) -> list[str]:
    """A list of names, globs and regular expressions, each of which can be used."""
    return [_usable(q, key, pattern) for pattern in q.strings(key)]


def _usable(q: ConfigReader, key: str, pattern: str) -> str:
    try:
        Modules([pattern])
    except re.error as error:
        raise q.fail(f"key {key!r} holds a bad regular expression: {error}") from error
    return pattern


def _spare(patterns: list[str] | None) -> tuple[RuleParts, ...]:
    return ((None, Modules(patterns), _ALL),) if patterns else ()


def _algorithm(q: ConfigReader, key: str, group: int | None) -> Scheme:
    name = q.text(key, "").upper()
    if name not in ALGORITHMS:
        raise q.fail(
            f"{key} {name!r} is not supported"
            + (close_matches(name, ALGORITHMS) or f"; known are {', '.join(sorted(ALGORITHMS))}")
        )
    return ALGORITHMS[name](group)


def _group_size(q: ConfigReader, *keys: str) -> int | None:
    """Weights under one scale; None where the file does not say, or says -1 (one scale a column)."""
    value = q.config.get(q.first_of(*keys))
    return None if value in (None, -1, 0) else q.integer(q.first_of(*keys))


def _kv_dtype(q: ConfigReader) -> WeightDtype | None:
    """Type that the checkpoint has KV scales for: an object, a name, or null."""
    for key in ("kv_cache_scheme", "kv_cache_quant_algo", "kv_cache_quant_config"):
        value = q.config.get(key)
        if isinstance(value, str) and value:
            return "fp8" if value.upper().startswith("FP8") else None
        if isinstance(value, dict) and value:
            return "fp8" if value.get("num_bits") == 8 or "fp8" in str(value) else None
    return None


def read_modelopt(q: ConfigReader, whole: ConfigReader) -> Found:
    """NVIDIA modelopt, inline or in the side file: one algorithm for all but some modules, or one for each."""
    if not q.has("quant_algo"):
        return read_compressed_tensors(q, whole) if q.has("config_groups") else Found(kv_dtype=_kv_dtype(q))
    group, kv = _group_size(q, "group_size"), _kv_dtype(q)
    if q.text("quant_algo", "").upper() == _MIXED:
        return Found(_listed(q, group), kv)
    scheme = _algorithm(q, "quant_algo", group)
    patterns = _spared_patterns(q)
    notes: tuple[str, ...] = ()
    if patterns is None:
        notes = (f"all projections are taken as {scheme.name}: the checkpoint does not say which are not",)
    return Found((*_spare(patterns), (scheme, None, _ALL)), kv, notes)


def _listed(q: ConfigReader, group: int | None) -> tuple[RuleParts, ...]:
    """Rules of a checkpoint that gives each module an algorithm; others stay as they are."""
    by_scheme: defaultdict[Scheme, list[str]] = defaultdict(list)
    layers = q.section("quantized_layers") if q.has("quantized_layers") else None
    if layers is None and not q.has("moe_quant_algo"):
        return _weight_groups(q)
    for name, entry in (layers.config if layers else {}).items():
        if not isinstance(entry, dict):
            raise q.fail(f"quantized_layers[{name!r}] is {entry!r:.{LONGEST_SHOWN}}, expected an object")
        one = ConfigReader(entry, f"{q.where}, quantized_layers[{name!r}]")
        by_scheme[_algorithm(one, "quant_algo", _group_size(one, "group_size") or group)].append(name)
    rules: tuple[RuleParts, ...] = tuple((scheme, Modules(names), _ALL) for scheme, names in by_scheme.items())
    if q.has("moe_quant_algo"):
        rules += ((_algorithm(q, "moe_quant_algo", group), None, _EXPERTS),)
    return rules


def _read_fp8(q: ConfigReader, whole: ConfigReader) -> Found:
    """DeepSeek's blocks, or one scale a tensor. Modules that modelopt quantised further come first, and then what its
    list spares is stored as in the checkpoint it started from."""
    rules: tuple[RuleParts, ...] = ()
    further = q.text("quant_algo", "").upper() == _MIXED
    if further:
        rules = _listed(q, _group_size(q, "group_size"))
    rules += _native_experts(q, whole)
    if not further:
        rules += _spare(_spared_patterns(q))
    return Found((*rules, (_fp8_scheme(q), None, _ALL)), _kv_dtype(q))


def _fp8_scheme(q: ConfigReader) -> Scheme:
    if not q.has("weight_block_size"):
        return plain_fp8()
    block = q.numbers("weight_block_size")
    if len(block) != 2 or not all(block):
        raise q.fail(f"key 'weight_block_size' is {block}, expected two whole numbers of at least 1")
    return block_fp8(block[0], block[1], BYTE if q.text("scale_fmt", "") == "ue8m0" else F32_BYTES)


def _native_experts(q: ConfigReader, whole: ConfigReader) -> tuple[RuleParts, ...]:
    """`expert_dtype`, at the top or (as newer files have it) beside the rest: fp4 experts multiply with fp8
    activations (DeepGEMM fp8 x fp4)."""
    reader = whole if whole.has("expert_dtype") else q
    if not reader.has("expert_dtype"):
        return ()
    dtype = reader.text("expert_dtype", "")
    if dtype not in ("fp4", "fp8"):
        raise reader.fail(f"key 'expert_dtype' is {dtype!r}, expected fp4 or fp8")
    return ((mxfp4(compute="fp8"), None, _EXPERTS),) if dtype == "fp4" else ()


def _read_mxfp4(q: ConfigReader, whole: ConfigReader) -> Found:
    """gpt-oss: experts alone."""
    note = "mxfp4 experts multiply in bf16 after dequantisation (weight-only)"
    return Found((*_spare(_spared_patterns(q)), (mxfp4(compute="bf16"), None, _EXPERTS)), _kv_dtype(q), (note,))


def _read_mxfp8(q: ConfigReader, whole: ConfigReader) -> Found:
    return Found((*_spare(_spared_patterns(q)), (mxfp8(), None, _ALL)), _kv_dtype(q))


def read_compressed_tensors(q: ConfigReader, whole: ConfigReader) -> Found:
    """Groups of modules, each with a scheme of its own, less an ignore list."""
    patterns, rules = _spared_patterns(q), _weight_groups(q)
    notes: tuple[str, ...] = ()
    alone = [scheme for scheme, _, _ in rules if scheme is not None and scheme.compute == "bf16"]
    routed = any(whole.has(key) for key in _ROUTED_KEYS)
    if patterns is None and routed and len(alone) == len(rules):
        # Weight-only checkpoints of routed families that have no ignore list quantise the experts alone.
        rules = tuple((scheme, modules, _EXPERTS) for scheme, modules, _ in rules)
        notes = ("only routed experts are quantised (the configuration has no ignore list)",)
    if alone:
        notes += (f"{alone[0].dtype} weights multiply in bf16 after dequantisation (weight-only)",)
    return Found((*_spare(patterns), *rules), _kv_dtype(q), notes)


def _weight_groups(q: ConfigReader) -> tuple[RuleParts, ...]:
    groups = q.section("config_groups")
    return tuple(_weight_group(groups.section(name), q) for name in groups.config)


def _weight_group(group: ConfigReader, q: ConfigReader) -> RuleParts:
    targets = _patterns(group, "targets") if group.has("targets") else ["Linear"]
    weights = group.section("weights")
    inputs = group.section("input_activations") if group.has("input_activations") else None
    form = group.text("format", q.text("format", ""))
    return _group_scheme(weights, inputs, form), Modules(targets), _ALL


def _group_scheme(weights: ConfigReader, inputs: ConfigReader | None, form: str) -> Scheme:
    """Scheme of `num_bits`, `type`, `group_size` and `strategy`. inputs: of the activations; None: weights alone."""
    bits, kind, group = weights.integer("num_bits"), weights.text("type", "int"), _group_size(weights, "group_size")
    input_bits = inputs.integer("num_bits") if inputs is not None else 16
    floats = inputs is not None and inputs.text("type", "int") == "float"
    compute: WeightDtype = "bf16"
    if input_bits <= 8:
        compute = ("fp8" if input_bits == 8 else "fp4") if floats else "int8"
    if (bits, kind) == (8, "float"):
        if weights.text("strategy", "") == "block" and weights.has("block_structure"):
            rows, columns = (*weights.numbers("block_structure"), FP8_BLOCK, FP8_BLOCK)[:2]
            return block_fp8(rows, columns)
        if group:
            return mxfp8(group)
        return plain_fp8() if compute == "fp8" else weight_only_fp8()
    if (bits, kind) == (4, "float"):
        one_byte_exponents = "mxfp4" in form or (group or 0) >= 32 or "uint8" in weights.text("scale_dtype", "")
        return mxfp4(group or 32, compute) if one_byte_exponents else nvfp4(group or 16, compute)
    if kind == "int" and bits <= 8:
        return integers(bits, group, zero_points=not weights.flag("symmetric", True), compute=compute)
    raise weights.fail(f"num_bits={bits} of type {kind!r} is not supported; use 8 float, 4 float or up to 8 int")


def _read_awq(q: ConfigReader, whole: ConfigReader) -> Found:
    bits = q.integer(q.first_of("bits", "w_bit"), default=4)
    group = _group_size(q, "group_size", "q_group_size")
    scheme = integers(bits, group, zero_points=q.flag("zero_point", True))
    return Found((*_spare(_spared_patterns(q)), (scheme, None, _ALL)), _kv_dtype(q))


def _read_gptq(q: ConfigReader, whole: ConfigReader) -> Found:
    """Zero points are stored whether or not the quantisation is symmetric. `dynamic`: by module, "-:" spares."""
    bits, group = q.integer("bits", default=4), _group_size(q, "group_size")
    spared: list[str] = list(_spared_patterns(q) or [])
    rules: list[RuleParts] = []
    for pattern, entry in (q.section("dynamic").config if q.has("dynamic") else {}).items():
        if pattern.startswith("-:"):
            spared.append(_usable(q, "dynamic", "re:" + pattern[2:]))
            continue
        one = ConfigReader(entry if isinstance(entry, dict) else {}, f"{q.where}, dynamic[{pattern!r}]")
        scheme = integers(one.integer("bits", default=bits), _group_size(one, "group_size") or group, zero_points=True)
        rules.append((scheme, Modules([_usable(q, "dynamic", "re:" + pattern.removeprefix("+:"))]), _ALL))
    every = (integers(bits, group, zero_points=True), None, _ALL)
    return Found((*_spare(spared), *rules, every), _kv_dtype(q))


def _read_auto_round(q: ConfigReader, whole: ConfigReader) -> Found:
    scheme = integers(q.integer("bits", default=4), _group_size(q, "group_size"), zero_points=not q.flag("sym", True))
    spared = list(_spared_patterns(q) or [])
    for name, entry in (q.section("extra_config").config if q.has("extra_config") else {}).items():
        if isinstance(entry, dict) and entry.get("bits", 0) >= 16:
            spared.append(name)
    return Found((*_spare(spared), (scheme, None, _ALL)), _kv_dtype(q))


def _read_fbgemm(q: ConfigReader, whole: ConfigReader) -> Found:
    """fp8 with one scale a channel."""
    return Found((*_spare(_spared_patterns(q)), (plain_fp8(), None, _ALL)), _kv_dtype(q))


def _read_bitsandbytes(q: ConfigReader, whole: ConfigReader) -> Found:
    key = "llm_int8_skip_modules"
    spared = _spare(_patterns(q, key) if q.has(key) else None)
    if q.flag("load_in_8bit", False):
        scheme = integers(8, None, compute="int8")
    elif q.flag("load_in_4bit", True):
        scheme = bitsandbytes_4bit(q.flag("bnb_4bit_use_double_quant", False))
    else:
        return Found()
    return Found((*spared, (scheme, None, _ALL)))


def _read_quark(q: ConfigReader, whole: ConfigReader) -> Found:
    """AMD Quark: one configuration for all, others by module; null spares."""
    rules: list[RuleParts] = []
    for pattern, entry in (q.section("layer_quant_config").config if q.has("layer_quant_config") else {}).items():
        scheme = _quark_scheme(ConfigReader(entry, f"{q.where}, layer_quant_config[{pattern!r}]")) if entry else None
        rules.append((scheme, Modules([_usable(q, "layer_quant_config", pattern)]), _ALL))
    if q.has("global_quant_config"):
        every = _quark_scheme(q.section("global_quant_config"))
        if every is not None:
            rules.append((every, None, _ALL))
    return Found((*_spare(_spared_patterns(q)), *rules), _kv_dtype(q))


def _quark_scheme(group: ConfigReader) -> Scheme | None:
    if not group.has("weight"):
        return None
    weight, inputs = _quark_tensor(group, "weight"), group.config.get("input_tensors")
    dtype, size = weight.text("dtype", ""), _group_size(weight, "group_size")
    taken = _quark_tensor(group, "input_tensors").text("dtype", "") if inputs else ""
    computes: dict[str, WeightDtype] = {"fp4": "fp4", "mxfp4": "fp4", "fp8": "fp8", "int8": "int8", "int4": "int8"}
    compute: WeightDtype = next((computes[key] for key in computes if taken.startswith(key)), "bf16")
    if dtype in ("fp4", "mxfp4"):
        return nvfp4(size, compute) if size == 16 else mxfp4(size or 32, compute)
    if dtype.startswith("fp8"):
        if size:
            return mxfp8(size)
        return plain_fp8() if compute == "fp8" else weight_only_fp8()
    if dtype in ("int4", "uint4", "int8", "uint8"):
        return integers(int(dtype[-1]), size, zero_points=not weight.flag("symmetric", True), compute=compute)
    raise weight.fail(f"dtype {dtype!r} is not supported; use fp4, fp8_e4m3, int4 or int8")


def _quark_tensor(group: ConfigReader, key: str) -> ConfigReader:
    """One tensor's section; of several stages (int4 of fp8) the last, which is what is stored."""
    value = group.config[key]
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):
        return ConfigReader(value[-1], f"{group.where}, {key}[{len(value) - 1}]")
    return group.section(key)


# Each takes its section and the whole configuration.
METHODS: dict[str, Callable[[ConfigReader, ConfigReader], Found]] = {
    "fp8": _read_fp8,
    "mxfp4": _read_mxfp4,
    "mxfp8": _read_mxfp8,
    "compressed-tensors": read_compressed_tensors,
    "compressed_tensors": read_compressed_tensors,
    "modelopt": read_modelopt,
    "modelopt_fp4": read_modelopt,
    "modelopt_fp8": read_modelopt,
    "modelopt_mixed": read_modelopt,
    "awq": _read_awq,
    "gptq": _read_gptq,
    "auto-round": _read_auto_round,
    "fbgemm_fp8": _read_fbgemm,
    "bitsandbytes": _read_bitsandbytes,
    "quark": _read_quark,
}
