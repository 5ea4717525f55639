"""How a checkpoint stores its weights: what its files say, as a list of rules, and the model stored so.

Formats and where they are looked for: `quantization_config` of config.json, of its `text_config`, `compression_config`,
then `hf_quant_config.json` beside it, which engines read only where config.json has none (vLLM).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from simulator.model.architecture import LayerSpec, Linear, ModelSpec, MoeSpec, TensorKind, WeightDtype
from simulator.model.families.module_names import HEAD_NAMES, names_below_layer
from simulator.model.families.modules import Modules
from simulator.model.families.quantisation_readers import METHODS, Found, read_modelopt
from simulator.model.families.reader import ConfigReader, close_matches
from simulator.model.families.schemes import Scheme
from simulator.model.ops import MATMUL_DTYPE

SIDE_FILE = "hf_quant_config.json"
_TORCH_DTYPES: dict[str, WeightDtype] = {
    "bfloat16": "bf16", "float16": "bf16", "half": "bf16", "auto": "bf16", "float32": "fp32", "float": "fp32",
}  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """What happens to the projections on a list (None: all), of some kinds (empty: all); scheme None: plain."""

    scheme: Scheme | None
    modules: Modules | None = None
    kinds: frozenset[TensorKind] = frozenset()


@dataclass(frozen=True)
class Quantisation:
    """Storage of a checkpoint: the plain type, and rules of which the first that covers a projection counts.

    kv_dtype: type that the checkpoint has KV scales for; None: it does not say.
    """

    plain: WeightDtype
    rules: tuple[Rule, ...] = ()
    kv_dtype: WeightDtype | None = None
    notes: tuple[str, ...] = ()

    def scheme(self, family: str, kind: TensorKind, linear: str, layer: int, draft: bool = False) -> Scheme | None:
        """Scheme of a projection; None: it is stored in the plain type."""
        names = names_below_layer(family, kind, linear)
        for rule in self.rules:
            if rule.kinds and kind not in rule.kinds:
                continue
            if rule.modules is None or rule.modules.cover(layer, names, draft):
                return rule.scheme
        return None

    def head_scheme(self) -> Scheme | None:
        """Scheme of the LM head, which stays plain unless a list names it."""
        for rule in self.rules:
            if rule.modules is not None and any(name in rule.modules.outside for name in HEAD_NAMES):
                return rule.scheme
        return None

    @property
    def tells_layers_apart(self) -> bool:
        return any(rule.modules is not None and rule.modules.tells_layers_apart for rule in self.rules)


def plain_dtype(reader: ConfigReader) -> WeightDtype:
    """Type of whatever is not quantised."""
    key = reader.first_of("dtype", "torch_dtype")
    name = reader.text(key, "bfloat16").removeprefix("torch.")
    if name not in _TORCH_DTYPES:
        raise reader.fail(f"key {key!r} is {name!r}, expected one of {', '.join(_TORCH_DTYPES)}")
    return _TORCH_DTYPES[name]


def read_quantisation(reader: ConfigReader, side: ConfigReader | None = None) -> Quantisation:
    """Storage of a checkpoint from its config.json (the language model's part, merged) and, where that says nothing,
    from the `hf_quant_config.json` beside it."""
    plain = plain_dtype(reader)
    place = next((key for key in _QUANTISATION_KEYS if reader.config.get(key)), None)
    beside = _side_section(side)
    if place is not None:
        section = reader.section(place)
        found = _method(section)(section, reader)
        if found.kv_dtype is None and beside is not None:
            found = replace(found, kv_dtype=read_modelopt(beside, reader).kv_dtype)
    elif beside is not None:
        found = read_modelopt(beside, reader)
        found = replace(found, notes=(f"quantisation as {SIDE_FILE} beside the configuration says", *found.notes))
    else:
        found = Found()
    rules = tuple(Rule(scheme, modules, kinds) for scheme, modules, kinds in found.rules)
    return Quantisation(plain, rules, found.kv_dtype, found.notes)


def _side_section(side: ConfigReader | None) -> ConfigReader | None:
    if side is None:
        return None
    for key in ("quantization", "quantization_config"):
        if side.has(key):
            return side.section(key)
    return side


def _method(section: ConfigReader) -> Any:
    name = section.text("quant_method", "").lower()
    if not name:
        if section.has("quant_algo"):
            name = "modelopt"
        elif section.has("config_groups"):
            name = "compressed-tensors"
        else:
            raise section.fail("key 'quant_method' is missing; name one of " + ", ".join(sorted(METHODS)))
    if name not in METHODS:
        raise section.fail(
            f"quant_method {name!r} is not supported"
            + (close_matches(name, METHODS) or f"; read are {', '.join(sorted(METHODS))}")
            + " (leave quantization_config out to count the model in its plain type)"
        )
    return METHODS[name]


def quantised(model: ModelSpec, quantisation: Quantisation, family: str) -> ModelSpec:
    """The model, built in the plain type, as the checkpoint stores it. Layers that are stored alike stay one object."""
    if not quantisation.rules:
        return model
    stored: dict[object, LayerSpec] = {}
    apart = quantisation.tells_layers_apart

    def convert(layer: LayerSpec, index: int, draft: bool) -> LayerSpec:
        key = (id(layer), index if apart else 0, draft)
        if key not in stored:
            done = _layer(layer, quantisation, family, index, draft)
            stored[key] = stored.setdefault(done, done)
        return stored[key]

    count = len(model.layers)
    layers = tuple(convert(layer, i, False) for i, layer in enumerate(model.layers))
    draft = model.draft and replace(
        model.draft,
        layers=tuple(convert(layer, count + i, True) for i, layer in enumerate(model.draft.layers)),
        linears=tuple(_linear(x, quantisation, family, count, True) for x in model.draft.linears),
    )
    head = quantisation.head_scheme()
    lm_head = model.lm_head if head is None or model.tied_embedding else _stored(model.lm_head, head)
    return replace(model, layers=layers, draft=draft, lm_head=lm_head)


def _layer(layer: LayerSpec, quantisation: Quantisation, family: str, index: int, draft: bool) -> LayerSpec:
    def convert(linears: tuple[Linear, ...]) -> tuple[Linear, ...]:
        return tuple(_linear(x, quantisation, family, index, draft) for x in linears)

    ffn = replace(layer.ffn, linears=convert(layer.ffn.linears))
    if ffn.experts:
        ffn = _experts(ffn, quantisation, family, index, draft)
    return replace(layer, attention=replace(layer.attention, linears=convert(layer.attention.linears)), ffn=ffn)


def _linear(linear: Linear, quantisation: Quantisation, family: str, index: int, draft: bool) -> Linear:
    if linear.tensor is None:
        return linear
    scheme = quantisation.scheme(family, linear.tensor, linear.name, index, draft)
    return linear if scheme is None else _stored(linear, scheme)


def _stored(linear: Linear, scheme: Scheme) -> Linear:
    multiplied = None if scheme.compute == MATMUL_DTYPE[scheme.dtype] else scheme.compute
    return replace(linear, dtype=scheme.dtype, bytes_per_param=scheme.bytes_per_param, multiplied=multiplied)


def _experts(ffn: MoeSpec, quantisation: Quantisation, family: str, index: int, draft: bool) -> MoeSpec:
    """Up and down projections may be stored differently: bytes are then their mean, the product that of the first."""
    up = quantisation.scheme(family, "expert", "gate_up" if ffn.matrices > 2 else "up", index, draft)
    down = quantisation.scheme(family, "expert", "down", index, draft)
    if up is None and down is None:
        return ffn
    size = Linear("", 1, 1, ffn.expert_dtype).weight_bytes
    sizes = [size if scheme is None else scheme.bytes_per_param for scheme in (up, down)]
    first = up or down
    assert first is not None
    mean = sizes[0] if sizes[0] == sizes[1] else ((ffn.matrices - 1) * sizes[0] + sizes[1]) / ffn.matrices
    return replace(ffn, expert_dtype=first.dtype, expert_compute=first.compute, expert_bytes_per_param=mean)


def checkpoint_quantisation(
    config: Mapping[str, Any], where: str, side: Mapping[str, Any] | None = None
) -> Quantisation:
    """Storage of a checkpoint of any family, known or not. config: of config.json; side: of hf_quant_config.json."""
    reader = ConfigReader(text_part(config)[0], where)
    return read_quantisation(reader, None if side is None else ConfigReader(side, f"{where}, {SIDE_FILE}"))


# Keys of the whole model that its language part may lack.
_QUANTISATION_KEYS = ("quantization_config", "compression_config")  # of which the outer one counts
_OTHER_TOWERS = ("vision_config", "audio_config")
_OUTER_KEYS = (
    *_QUANTISATION_KEYS,
    "expert_dtype",
    "dtype",
    "torch_dtype",
    "tie_word_embeddings",
    "model_type",
    "architectures",
)
_TEXT_KEYS = ("text_config", "llm_config", "language_config", "thinker_config")


def text_part(config: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The language model of a multimodal configuration, and what that leaves out."""
    key = next((key for key in _TEXT_KEYS if isinstance(config.get(key), dict)), None)
    said = ("only the language model is counted; the vision tower is left out",)
    if key is None:
        return dict(config), said if any(isinstance(config.get(other), dict) for other in _OTHER_TOWERS) else ()
    inner, _ = text_part(config[key])
    outer = {k: v for k, v in config.items() if (k.startswith("_") or k in _OUTER_KEYS) and v is not None}
    own = {k: v for k, v in inner.items() if k not in outer or (v is not None and k not in _QUANTISATION_KEYS)}
    return {**outer, **own}, said
