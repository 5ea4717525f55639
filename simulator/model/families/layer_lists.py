"""Which layers are windowed and which are routed, however a configuration says so."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.model.families.reader import ConfigReader

_WINDOWED = ("sliding_attention", "chunked_attention")
_KINDS = ("full_attention", "attention", *_WINDOWED)


def windowed_layers(reader: ConfigReader, count: int, every: int | None) -> list[bool]:
    """Whether each layer reads a window of tokens alone.

    From `layer_types`, `hybrid_layer_pattern`, Llama-4's `no_rope_layers`, `sliding_window_pattern` (a number, or
    letters of which L is local); every: of so many the last is full where the configuration says nothing more; 0: none
    is; None: all are.
    """
    if reader.has("layer_types"):
        kinds = reader.choices("layer_types", _KINDS, least=count)[:count]
        return [kind in _WINDOWED for kind in kinds]
    if reader.has("hybrid_layer_pattern"):
        return [bool(flag) for flag in reader.choices("hybrid_layer_pattern", (0, 1), least=count)[:count]]
    if not reader.has("sliding_window"):
        return [False] * count
    for key in ("sliding_window_pattern", "_sliding_window_pattern", "global_attn_every_n_layers"):
        value = reader.config.get(key)
        if isinstance(value, str) and value:
            return [value[i % len(value)].upper() == "L" for i in range(count)]
        if value is not None:
            every = reader.integer(key)
    if every is None:
        return [False] * count
    return [True] * count if every == 0 else [(i + 1) % every != 0 for i in range(count)]


def routed_layers(reader: ConfigReader, count: int, first_dense: int = 0) -> list[bool]:
    """Whether each layer has routed experts.

    first_dense: layers without, where the configuration does not say.
    """
    if reader.has("mlp_layer_types"):
        kinds = reader.choices("mlp_layer_types", ("dense", "sparse"), least=count)[:count]
        return [kind == "sparse" for kind in kinds]
    if isinstance(reader.config.get("moe_layer_freq"), list):
        return [bool(flag) for flag in reader.choices("moe_layer_freq", (0, 1), least=count)[:count]]
    for key in ("moe_layers", "moe_layers_enum"):
        if reader.has(key):
            listed = set(_indices(reader, key))
            return [i in listed for i in range(count)]
    if reader.has("interleave_moe_layer_step"):
        step = reader.integer("interleave_moe_layer_step")
        return [(i + 1) % step == 0 for i in range(count)]
    if reader.has("moe_layer_start_index"):
        return _interval(reader, count)
    first = reader.integer(reader.first_of("first_k_dense_replace", "num_dense_layers"), first_dense, minimum=0)
    every = reader.integer("moe_layer_freq", default=reader.integer("decoder_sparse_step", default=1))
    spared = set(reader.numbers("mlp_only_layers"))
    shift = 1 if reader.has("decoder_sparse_step") else 0
    return [i >= first and i not in spared and (i + shift) % every == 0 for i in range(count)]


def _interval(reader: ConfigReader, count: int) -> list[bool]:
    """ERNIE: every so many layers from a first to a last (-1: the model's last)."""
    first = reader.integer("moe_layer_start_index", minimum=0)
    last = reader.config.get("moe_layer_end_index", -1)
    if not isinstance(last, int) or isinstance(last, bool):
        raise reader.fail(f"key 'moe_layer_end_index' is {last!r}, expected a whole number")
    last = count - 1 if last == -1 else last
    every = reader.integer("moe_layer_interval", default=1)
    return [first <= i <= last and (i + 1) % every == 0 for i in range(count)]


def _indices(reader: ConfigReader, key: str) -> Sequence[int]:
    """Indices of layers, as a list or as text with commas (Step)."""
    value = reader.config[key]
    if not isinstance(value, str):
        return reader.numbers(key)
    try:
        return [int(part) for part in value.split(",") if part.strip()]
    except ValueError:
        raise reader.fail(f"key {key!r} is {value!r:.60}, expected whole numbers with commas between") from None
