"""Mamba-2 hybrids: Nemotron-H (one mixer a layer), Granite 4 and Bamba (a mixer and a feed-forward a layer).

Sources: transformers `nemotron_h`, `granitemoehybrid`, `bamba`; Dao and Gu, "Transformers are SSMs", arXiv 2405.21060.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from simulator.model.architecture import (
    BF16_BYTES,
    F32_BYTES,
    AttentionSpec,
    DraftHead,
    LayerSpec,
    ModelSpec,
    MoeSpec,
)
from simulator.model.families.blocks import (
    Context,
    dense_ffn,
    gqa_attention,
    moe_ffn,
    no_attention,
    no_ffn,
    plain_layer,
    whole_model,
)
from simulator.model.families.grouped import head_dim_of, norm_layer
from simulator.model.families.reader import ConfigReader

# Per head and token, in units of head width x state width: decay 1, rank-one update 2, product with C 2. [FLOP]
_STATE_FLOPS = 5.0
_LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
_WORDS = {
    "mamba": "mamba", "linear_attention": "mamba", "attention": "attention", "full_attention": "attention",
    "mlp": "mlp", "moe": "moe",
}  # fmt: skip


@dataclass(frozen=True)
class _Sizes:
    """Of one Mamba-2 mixer: heads of `width` share B and C of `state` width by groups."""

    heads: int
    width: int
    groups: int
    state: int
    kernel: int
    chunk: int
    conv_bias: bool
    bias: bool

    @property
    def inner(self) -> int:
        return self.heads * self.width

    @property
    def convolved(self) -> int:
        """Width of the convolution: x, B and C."""
        return self.inner + 2 * self.groups * self.state


def _state_element_bytes(reader: ConfigReader) -> float:
    """Of the recurrent state in the cache. [B]"""
    name = reader.text("mamba_ssm_cache_dtype", "float32").removeprefix("torch.")
    return F32_BYTES if name == "float32" else BF16_BYTES


def _mixer(ctx: Context, sizes: _Sizes) -> AttentionSpec:
    """State-space layer: one width x state matrix per head, whatever the context.

    In chunks of C tokens, FLOP per token and head of width P and state width N, B and C shared by h/g heads:
    4 N P to hand the state on and to read it, 2 C P + 2 C N g / h among the tokens of a chunk.
    """
    hidden = ctx.reader.integer("hidden_size")
    if sizes.heads % sizes.groups:
        raise ctx.reader.fail(f"{sizes.groups} groups do not divide {sizes.heads} Mamba heads")
    matrix = sizes.width * sizes.state
    other = sizes.convolved * (sizes.kernel + sizes.conv_bias) + 3 * sizes.heads + sizes.inner
    among = 2 * sizes.chunk * (sizes.width * sizes.heads + sizes.state * sizes.groups)
    return AttentionSpec(
        kind="mamba2",
        heads=sizes.heads,
        kv_heads=sizes.groups,
        qk_dim=sizes.state,
        v_dim=sizes.width,
        prefill_qk_dim=sizes.state,
        prefill_v_dim=sizes.width,
        window=0,
        ratio=0,
        entry_bytes=0.0,
        window_entry_bytes=0.0,
        state_bytes=sizes.heads * matrix * _state_element_bytes(ctx.reader)
        + sizes.convolved * (sizes.kernel - 1) * ctx.plain_bytes,
        linears=(
            ctx.linear(
                "attention", "in_proj", hidden, sizes.inner + sizes.convolved + sizes.heads, "column", sizes.bias
            ),
            ctx.linear("attention", "out_proj", sizes.inner, hidden, "row", sizes.bias),
        ),
        other_params=other,
        other_param_bytes=other * ctx.plain_bytes,
        state_flops_per_token=_STATE_FLOPS * sizes.heads * matrix,
        chunk_flops_per_token=4 * sizes.heads * matrix + among,
        convolution_width=sizes.convolved,
    )


def _block_kinds(reader: ConfigReader, count: int, prefix: str = "") -> list[str]:
    """Mixer of each layer, as letters or as words. prefix: "mtp_" for those of the draft head."""
    letters = prefix + "hybrid_override_pattern"
    if reader.has(letters):
        text = reader.text(letters, "").replace("|", "")
        wrong = sorted(set(text) - set(_LETTERS))
        if wrong:
            raise reader.fail(f"key {letters!r} holds {wrong[0]!r}, expected letters of {''.join(_LETTERS)}")
        kinds = [_LETTERS[letter] for letter in text]
    else:
        key = prefix + "layers_block_type"
        if prefix and not reader.has(key):
            return ["attention", "moe"]  # transformers' own default
        kinds = [_WORDS[word] for word in reader.choices(key, _WORDS, least=count)]
    if len(kinds) < count:
        raise reader.fail(f"the layer pattern has {len(kinds)} layers, num_hidden_layers is {count}")
    return kinds[:count] if count else kinds


def _nemotron_experts(ctx: Context) -> MoeSpec:
    """Routed experts without a gate projection, at a latent width where there is one."""
    reader = ctx.reader
    hidden = reader.integer("hidden_size")
    shared = reader.integer("n_shared_experts", default=1, minimum=0)
    ffn = moe_ffn(
        ctx,
        experts=reader.integer("n_routed_experts"),
        experts_per_token=reader.integer("num_experts_per_tok"),
        width=reader.integer("moe_intermediate_size"),
        shared_width=shared * reader.integer("moe_shared_expert_intermediate_size", default=0, minimum=0),
        correction_bias=True,
        gated=False,
    )
    if not reader.has("moe_latent_size"):
        return ffn
    latent = reader.integer("moe_latent_size")
    down = ctx.linear("shared_expert", "latent_down", hidden, latent)
    up = ctx.linear("shared_expert", "latent_up", latent, hidden)
    return replace(ffn, expert_hidden=latent, linears=(*ffn.linears, down, up))


def build_nemotron_h(ctx: Context, family: str) -> ModelSpec:
    """Nemotron-H and Nemotron 3: layers that are a Mamba-2 mixer, attention, a feed-forward or experts."""
    reader = ctx.reader
    hidden, count = reader.integer("hidden_size"), reader.integer("num_hidden_layers")
    sizes = _Sizes(
        heads=reader.integer("mamba_num_heads"),
        width=reader.integer("mamba_head_dim"),
        groups=reader.integer("n_groups"),
        state=reader.integer("ssm_state_size"),
        kernel=reader.integer("conv_kernel", default=4),
        chunk=reader.integer("chunk_size", default=128),
        conv_bias=reader.flag("use_conv_bias", True),
        bias=reader.flag("use_bias", False),
    )

    def layer(kind: str) -> LayerSpec:
        attention, ffn = no_attention(ctx), no_ffn(ctx)
        if kind == "mamba":
            attention = _mixer(ctx, sizes)
        elif kind == "attention":
            head_dim = reader.integer(reader.first_of("head_dim", "attention_head_dim"))
            attention = gqa_attention(ctx, head_dim=head_dim)
        elif kind == "moe":
            ffn = _nemotron_experts(ctx)
        else:
            bias = reader.flag("mlp_bias", False)
            ffn = dense_ffn(ctx, reader.integer("intermediate_size"), bias, gated=False)
        return norm_layer(ctx, attention, ffn, norms=1)

    kinds = _block_kinds(reader, count)
    blocks = {kind: layer(kind) for kind in {*kinds, "attention"}}
    draft = None
    if reader.integer("num_nextn_predict_layers", default=0, minimum=0):
        drafted = tuple(blocks.get(kind) or layer(kind) for kind in _block_kinds(reader, 0, "mtp_"))
        norms = 3 * hidden  # of embedding, hidden state and result
        draft = DraftHead(
            layers=drafted,
            linears=(ctx.linear(None, "eh_proj", 2 * hidden, hidden),),
            other_params=norms,
            other_param_bytes=norms * ctx.plain_bytes,
        )
    return whole_model(ctx, family, [blocks[kind] for kind in kinds], draft)


def build_granite_hybrid(ctx: Context, family: str) -> ModelSpec:
    """Granite 4 and Bamba: a Mamba-2 mixer or attention, then a feed-forward, with experts beside it or not."""
    reader = ctx.reader
    hidden, count = reader.integer("hidden_size"), reader.integer("num_hidden_layers")
    heads = reader.integer("mamba_n_heads")
    sizes = _Sizes(
        heads=heads,
        width=_head_width(reader, hidden, heads),
        groups=reader.integer("mamba_n_groups", default=1),
        state=reader.integer("mamba_d_state"),
        kernel=reader.integer("mamba_d_conv", default=4),
        chunk=reader.integer("mamba_chunk_size", default=256),
        conv_bias=reader.flag("mamba_conv_bias", True),
        bias=reader.flag("mamba_proj_bias", False),
    )
    key = reader.first_of("layer_types", "layers_block_type")
    if reader.has(key):
        kinds = [_WORDS[word] for word in reader.choices(key, _WORDS, least=count)[:count]]
    else:
        full = set(reader.numbers("attn_layer_indices"))
        kinds = ["attention" if i in full else "mamba" for i in range(count)]
    bias = reader.flag("attention_bias", False)
    mixers = {
        "mamba": _mixer(ctx, sizes),
        "attention": gqa_attention(ctx, head_dim=head_dim_of(reader), qkv_bias=bias, out_bias=bias),
    }
    ffn = _granite_ffn(ctx, family)
    layers = {kind: plain_layer(ctx, mixer, ffn) for kind, mixer in mixers.items()}
    return whole_model(ctx, family, [layers[kind] for kind in kinds])


def _head_width(reader: ConfigReader, hidden: int, heads: int) -> int:
    """`mamba_d_head`, or what the expansion leaves for a head where it says "auto" or nothing."""
    if isinstance(reader.config.get("mamba_d_head"), int):
        return reader.integer("mamba_d_head")
    return reader.integer("mamba_expand", default=2) * hidden // heads


def _granite_ffn(ctx: Context, family: str) -> MoeSpec:
    reader = ctx.reader
    if family == "bamba":
        return dense_ffn(ctx, reader.integer("intermediate_size"), reader.flag("mlp_bias", False))
    shared = reader.integer("shared_intermediate_size")
    if not reader.integer("num_local_experts", default=0, minimum=0):
        return dense_ffn(ctx, shared)
    return moe_ffn(
        ctx,
        experts=reader.integer("num_local_experts"),
        experts_per_token=reader.integer("num_experts_per_tok"),
        width=reader.integer("intermediate_size"),
        shared_width=shared,
    )
