"""Names of checkpoint tensors to places in the model.

Both the vendors' own names (layers.0.attn.wq_a.weight) and those of transformers
(model.layers.0.self_attn.q_a_proj.weight) are understood.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from runtime.config.spec import ModelConfig


@dataclass(frozen=True, order=True)
class WeightPlace:
    """Where one tensor goes."""

    parameter: str  # name in the model
    expert: int | None = None  # of stacked experts: which (over all ranks)
    part: int | None = None  # of two tensors joined along the rows: which


_Rules = list[tuple[re.Pattern[str], str]]


def _rules(*pairs: tuple[str, str]) -> _Rules:
    return [(re.compile(pattern), replacement) for pattern, replacement in pairs]


_SHARED = _rules(
    (r"^model\.", ""),
    (r"\.weight_packed$", ".weight"),
    (r"\.weight_scale(_inv)?$", ".scale"),
    (r"\.weight_scale_2$", ".whole"),
    (r"\.weight_global_scale$", ".divisor"),
    (r"^(embed|embed_tokens)\.weight$", "embed"),
    (r"^head\.", "lm_head."),
    (r"\.self_attn\.", ".attn."),
    (r"\.mlp\.", ".ffn."),
    (r"\.input_layernorm\.", ".attn_norm."),
    (r"\.post_attention_layernorm\.", ".ffn_norm."),
    (r"\.e_score_correction_bias$", ".bias"),
    (r"\.tid2eid$", ".table"),
    (r"\.shared_experts\.", ".shared."),
    (r"(experts\.\d+|shared|ffn)\.(w1|gate_proj)\.", r"\1.gate_up#0."),
    (r"(experts\.\d+|shared|ffn)\.(w3|up_proj)\.", r"\1.gate_up#1."),
    (r"(experts\.\d+|shared|ffn)\.(w2|down_proj)\.", r"\1.down."),
    (r"experts\.(\d+)\.gate_up#(\d)\.weight$", r"experts.w13@\1#\2"),
    (r"experts\.(\d+)\.gate_up#(\d)\.(scale|whole|divisor)$", r"experts.w13_\3@\1#\2"),
    (r"experts\.(\d+)\.down\.weight$", r"experts.w2@\1"),
    (r"experts\.(\d+)\.down\.(scale|whole|divisor)$", r"experts.w2_\2@\1"),
)
_V4 = _rules(
    (r"hc_head[._](?:hc_)?(fn|base|scale)$", r"hc_head.\1"),
    (r"\.hc_(attn|ffn)_(fn|base|scale)$", r".\1_hc.\2"),
    (r"^mtp\.0\.(attn|ffn)", r"mtp.layer.\1"),
    (r"^mtp\.0\.", "mtp."),
    (r"\.compressor\.indexer\.(scorer\.weights_proj|q_b_proj)\.", r".indexer.\1."),
    (r"\.compressor\.indexer\.", ".indexer.compressor."),
    (r"\.indexer\.scorer\.", ".indexer."),
    (r"compressor\.(wkv|kv_proj)\.", "compressor.proj#0."),
    (r"compressor\.(wgate|gate_proj)\.", "compressor.proj#1."),
    (r"compressor\.(ape|position_bias)$", "compressor.bias"),
    (r"compressor\.kv_norm\.", "compressor.norm."),
    (r"\.q_a_proj\.", ".wq_a."),
    (r"\.q_b_proj\.", ".wq_b."),
    (r"\.attn\.kv_proj\.", ".attn.wkv."),
    (r"\.attn\.norm\.", ".attn.kv_norm."),
    (r"\.attn\.q_a_norm\.", ".attn.q_norm."),
    (r"\.attn\.attn_sink$", ".attn.sinks"),
    (r"\.attn\.(wo_a|o_a_proj)\.weight$", ".attn.output.wo_a"),
    (r"\.attn\.(wo_a|o_a_proj)\.(scale|whole|divisor)$", r".attn.output.wo_a_\2"),
    (r"\.attn\.(wo_b|o_b_proj)\.", ".attn.output.wo_b."),
)
_V3 = _rules(
    (r"\.attn\.q_a_proj\.", ".attn.wq_a."),
    (r"\.attn\.q_b_proj\.", ".attn.wq_b."),
    (r"\.attn\.q_proj\.", ".attn.wq."),
    (r"\.attn\.q_a_layernorm\.", ".attn.q_norm."),
    (r"\.attn\.kv_a_proj_with_mqa\.", ".attn.wkv_a."),
    (r"\.attn\.kv_a_layernorm\.", ".attn.kv_norm."),
    (r"\.attn\.kv_b_proj\.weight$", ".attn.wkv_b"),
    (r"\.attn\.kv_b_proj\.(scale|whole|divisor)$", r".attn.wkv_b_\1"),
    (r"\.attn\.o_proj\.", ".attn.wo."),
)
_QWEN3 = _rules((r"\.attn\.([qkvo])_proj\.", r".attn.w\1."))
_FAMILY = {"deepseek_v4": _V4, "deepseek_v3": _V3, "qwen3_moe": _QWEN3}

_PLACE = re.compile(r"^(?P<head>[^@#]*?)(@(?P<expert>\d+))?(#(?P<part>\d))?(?P<tail>\.\w+)?$")


def _v3_mtp(name: str, num_layers: int) -> str | None:
    """The layer after the last is MTP; its copies of the embedding and the head are not needed."""
    prefix = f"layers.{num_layers}."
    if not name.startswith(prefix):
        return name
    rest = name.removeprefix(prefix)
    if rest.startswith(("embed_tokens", "shared_head.head")):
        return None
    rest = rest.replace("shared_head.norm", "norm")
    own = ("enorm.", "hnorm.", "eh_proj.", "norm.")
    return f"mtp.{rest}" if rest.startswith(own) else f"mtp.layer.{rest}"


def place_of(name: str, config: ModelConfig) -> WeightPlace | None:
    """The place of a checkpoint tensor, or None if the model has no use for it."""
    for pattern, replacement in _SHARED + _FAMILY[config.family]:
        name = pattern.sub(replacement, name)
    renamed: str | None = name
    if config.family == "deepseek_v3":
        renamed = _v3_mtp(name, config.num_layers)
    if renamed is None or name.startswith(("mtp.emb", "mtp.head", "mtp.lm_head")):
        return None
    if renamed.startswith("mtp.") and config.num_mtp_layers == 0:
        return None
    match = _PLACE.match(renamed)
    if match is None:
        return None
    expert, part = match["expert"], match["part"]
    return WeightPlace(
        match["head"] + (match["tail"] or ""),
        None if expert is None else int(expert),
        None if part is None else int(part),
    )
