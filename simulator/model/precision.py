"""What an accelerator multiplies in: 4-bit products run as such where it has them, else weights are widened first."""

from __future__ import annotations

from dataclasses import replace

from hw_profiles.profile import HardwareProfile
from simulator.model.architecture import LayerSpec, Linear, ModelSpec


def multiplies_fp4(hardware: HardwareProfile) -> bool:
    """Whether matrix units take fp4 operands, faster than fp8 ones."""
    return hardware.matrix_peak("fp4") > hardware.matrix_peak("fp8")


def as_multiplied_on(model: ModelSpec, hardware: HardwareProfile) -> ModelSpec:
    """The model with fp4 products in bf16 where `hardware` has none: engines then widen the weights, as Marlin does."""
    draft = () if model.draft is None else model.draft.layers
    if multiplies_fp4(hardware) or not (
        model.lm_head.multiplied == "fp4" or any(_takes_fp4(layer) for layer in (*model.layers, *draft))
    ):
        return model
    done: dict[int, LayerSpec] = {}

    def convert(layers: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
        return tuple(done.setdefault(id(layer), _widened(layer)) for layer in layers)

    return replace(
        model,
        layers=convert(model.layers),
        lm_head=_wide(model.lm_head),
        draft=None if model.draft is None else replace(model.draft, layers=convert(model.draft.layers)),
    )


def _takes_fp4(layer: LayerSpec) -> bool:
    linears = layer.attention.linears + layer.ffn.linears
    return layer.ffn.expert_compute == "fp4" or any(linear.multiplied == "fp4" for linear in linears)


def _wide(linear: Linear) -> Linear:
    return replace(linear, multiplied=None) if linear.multiplied == "fp4" else linear


def _widened(layer: LayerSpec) -> LayerSpec:
    def widen(linears: tuple[Linear, ...]) -> tuple[Linear, ...]:
        return tuple(_wide(linear) for linear in linears)

    ffn = replace(layer.ffn, linears=widen(layer.ffn.linears))
    if ffn.expert_compute == "fp4":
        ffn = replace(ffn, expert_compute="bf16")
    return replace(layer, attention=replace(layer.attention, linears=widen(layer.attention.linears)), ffn=ffn)
