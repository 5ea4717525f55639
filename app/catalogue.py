"""The catalogue as plain data, ready for JSON and for tables."""

from __future__ import annotations

from typing import Any

from hw_profiles import catalog
from hw_profiles.profile import HardwareProfile
from simulator.model import kv, presets
from simulator.model import parameter_counts as counts
from simulator.model.architecture import ModelSpec

CONTEXTS = (8_192, 65_536, 262_144, 1_048_576)  # at which KV is told [tokens]


def gpus() -> list[dict[str, Any]]:
    """Every accelerator of the catalogue, then machines of one's own profiles."""
    return [gpu(name) for name in (*catalog.names(), *catalog.own_names())]


def gpu(name: str) -> dict[str, Any]:
    """One accelerator: published figures with unit, source and date, then what the simulator uses."""
    profile = catalog.load(name)
    return {
        **profile.accelerator.model_dump(mode="json", exclude_none=True),
        "prices": {p.convention: p.usd_per_hour.model_dump(mode="json") for p in profile.prices},
        "si": _si(profile),
        "efficiency": profile.efficiency.model_dump(mode="json"),
        "speeds": speeds(profile),
        "assumptions": list(profile.assumptions),
    }


def speeds(profile: HardwareProfile) -> list[dict[str, Any]]:
    """Where the speed of each software stack comes from: measured, fitted from published tables, or assumed."""
    known = [profile.efficiency, *catalog.fits(profile.name).values()]
    return [
        {
            "stack": one.stack,
            "origin": one.origin,
            "assumed": list(one.assumed_parts),
            "held_out_error": one.held_out_error,
            "provenance": one.provenance,
        }
        for one in known
    ]


def _si(profile: HardwareProfile) -> dict[str, Any]:
    """The figures that the simulator computes with: B, B/s, FLOP/s, W."""
    return {
        "memory_bytes": profile.memory_bytes,
        "memory_bandwidth": profile.memory_bandwidth,
        "matrix_peak": profile.peaks,
        "scale_up_domain": profile.scale_up_domain,
        "scale_up_bandwidth": profile.scale_up_bandwidth,
        "scale_out_bandwidth": profile.scale_out_bandwidth,
        "host_bandwidth": profile.host_bandwidth,
        "tdp_w": profile.tdp_w,
        "all_in_w": profile.all_in_w,
    }


def models() -> list[dict[str, Any]]:
    """Every model preset."""
    return [model(name) for name in presets.names()]


def model(name: str) -> dict[str, Any]:
    """One model: parameter counts, stored bytes, and KV bytes of one sequence over the whole instance."""
    spec = presets.load_model(name)
    return {
        "name": spec.name,
        "family": spec.family,
        "layers": len(spec.layers),
        "hidden": spec.hidden,
        "experts": max(layer.ffn.experts for layer in spec.layers),
        "experts_per_token": max(layer.ffn.experts_per_token for layer in spec.layers),
        "attention": _attention(spec),
        "max_positions": spec.max_positions,
        "params_total": counts.params_total(spec),
        "params_active": counts.params_active(spec),
        "params_active_no_embedding": counts.params_active_no_embedding(spec),
        "weight_bytes": counts.weight_bytes(spec),
        "weight_bytes_by_tensor": counts.weight_bytes_by_tensor(spec),
        "weight_bytes_by_dtype": counts.weight_bytes_by_dtype(spec),
        "draft_params": counts.draft_params(spec),
        "draft_weight_bytes": counts.draft_weight_bytes(spec),
        "kv_bytes_per_token": kv.kv_bytes_per_token(spec),
        "kv_bytes": {context: kv.kv_bytes(spec, context) for context in CONTEXTS},
        "published_total": spec.published_total,
        "published_active": spec.published_active,
        "source": spec.source,
        "assumptions": list(spec.assumptions),
    }


def _attention(spec: ModelSpec) -> dict[str, int]:
    """Attention kind -> number of layers."""
    found: dict[str, int] = {}
    for layer in spec.layers:
        found[layer.attention.kind] = found.get(layer.attention.kind, 0) + 1
    return found
