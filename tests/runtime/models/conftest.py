"""Tiny models with the same random weights in `transformers` and here, handed over as a checkpoint on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from runtime import weights
from runtime.cache import KVCache, SequenceInput
from runtime.config.reading import read_config
from runtime.config.spec import ModelConfig
from runtime.model_runner import ModelRunner
from runtime.models import Model

TINY: dict[str, dict[str, Any]] = {
    "deepseek_v4": {
        "vocab_size": 256,
        "hidden_size": 64,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "q_lora_rank": 32,
        "o_groups": 2,
        "o_lora_rank": 16,
        "sliding_window": 128,
        "compress_ratios": [0, 4, 128, 4, 128],
        "index_n_heads": 16,
        "index_head_dim": 16,
        "index_topk": 12,
        "qk_rope_head_dim": 8,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_shared_experts": 1,
        "moe_intermediate_size": 32,
        "routed_scaling_factor": 1.5,
        "swiglu_limit": 1.0,
        "num_hash_layers": 2,
        "hc_mult": 4,
        "hc_sinkhorn_iters": 20,
        "hc_eps": 1e-6,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096,
        "rope_theta": 10000,
        "compress_rope_theta": 160000,
        "rope_scaling": {
            "type": "yarn",
            "factor": 16,
            "original_max_position_embeddings": 256,
            "beta_fast": 32,
            "beta_slow": 1,
        },
        "num_nextn_predict_layers": 0,
    },
    "deepseek_v3": {
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "n_shared_experts": 2,
        "n_routed_experts": 16,
        "kv_lora_rank": 32,
        "q_lora_rank": 24,
        "qk_rope_head_dim": 8,
        "v_head_dim": 24,
        "qk_nope_head_dim": 16,
        "n_group": 4,
        "topk_group": 2,
        "num_experts_per_tok": 4,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 2.5,
        "norm_topk_prob": True,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 5120,
        "rope_theta": 10000,
        "rope_scaling": {
            "type": "yarn",
            "factor": 40,
            "original_max_position_embeddings": 128,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 0.7,
            "mscale_all_dim": 1.0,
        },
        "num_nextn_predict_layers": 1,
    },
    "qwen3_moe": {
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "mlp_only_layers": [1],
        "decoder_sparse_step": 1,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 4096,
    },
}
# The same families with other choices of their configuration.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "v4 with a small window and short ratios": (
        "deepseek_v4",
        {
            "sliding_window": 24,
            "compress_ratios": None,
            "layer_types": [
                "heavily_compressed_attention",
                "compressed_sparse_attention",
                "sliding_attention",
                "compressed_sparse_attention",
                "heavily_compressed_attention",
            ],
            "compress_rates": {"compressed_sparse_attention": 8, "heavily_compressed_attention": 32},
            "index_topk": 3,
            "num_hash_layers": 0,
            "hc_mult": 2,
            "hc_sinkhorn_iters": 3,
        },
    ),
    "v4 of windows alone": ("deepseek_v4", {"compress_ratios": [0] * 5, "sliding_window": 50}),
    "v3 with full queries, biases, half-split rope": (
        "deepseek_v3",
        {"q_lora_rank": None, "attention_bias": True, "rope_interleave": False, "rope_scaling": None, "n_group": 1}
        | {"topk_group": 1, "norm_topk_prob": False, "first_k_dense_replace": 0},
    ),
    "qwen3 with tied embeddings and biases": (
        "qwen3_moe",
        {"tie_word_embeddings": True, "attention_bias": True, "norm_topk_prob": False, "decoder_sparse_step": 2},
    ),
}
CLASSES = {
    "deepseek_v4": (transformers.DeepseekV4Config, transformers.DeepseekV4ForCausalLM),
    "deepseek_v3": (transformers.DeepseekV3Config, transformers.DeepseekV3ForCausalLM),
    "qwen3_moe": (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM),
}


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights large enough that every branch shows in the logits; fills buffers that come from checkpoints too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, values in [*model.named_parameters(), *model.named_buffers()]:
            noise = torch.randn(values.shape, generator=generator)
            if "inv_freq" in name:
                continue
            if "tid2eid" in name:
                values.copy_(torch.rand(len(values), 8, generator=generator).argsort(-1)[:, : values.shape[1]])
            elif values.ndim >= 2 and "position_bias" not in name:
                values.copy_(noise * 1.2 / values.shape[-1] ** 0.5)
            elif "norm" in name or "scale" in name:
                values.copy_(1 + 0.2 * noise)
            else:
                values.copy_(0.5 * noise)


@dataclass
class Pair:
    """One model twice."""

    theirs: Any  # of transformers
    ours: Model
    directory: Path  # its checkpoint

    @property
    def config(self) -> ModelConfig:
        return self.ours.config

    @property
    def block_size(self) -> int:
        return max(self.config.block_multiple, 16)

    def runner(self, num_blocks: int = 24, num_slots: int = 4) -> ModelRunner:
        cache = KVCache(self.config, num_blocks, num_slots, self.block_size, "cpu", torch.float32)
        return ModelRunner(self.ours, cache)

    def logits(self, tokens: list[int]) -> torch.Tensor:
        """Theirs at every position, [tokens, vocab], in one uncached pass."""
        with torch.inference_mode():
            return self.theirs(torch.tensor([tokens]), use_cache=False).logits[0].float()


@pytest.fixture(scope="session")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    made: dict[str, Pair] = {}

    def make(name: str) -> Pair:
        if name not in made:
            torch.set_num_threads(1)
            family, changes = VARIANTS.get(name, (name, {}))
            config_class, model_class = CLASSES[family]
            raw = TINY[family] | changes
            theirs = model_class._from_config(config_class(**raw), attn_implementation="eager").eval()
            randomise(theirs, seed=7)
            directory = tmp_path_factory.mktemp(family)
            theirs.save_pretrained(directory, max_shard_size="300KB")
            config = read_config(directory)
            config = dataclasses.replace(config, num_mtp_layers=0)  # transformers keeps MTP elsewhere
            made[name] = Pair(theirs, weights.load(config, directory, dtype=torch.float32), directory)
        return made[name]

    return make


@pytest.fixture(params=sorted(TINY))
def pair(request: pytest.FixtureRequest, pair_of: Callable[[str], Pair]) -> Pair:
    return pair_of(request.param)


@pytest.fixture(scope="session")
def tokens_of() -> Callable[[int, int], list[int]]:
    def make(count: int, seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, 256, (count,), generator=generator).tolist()

    return make


@dataclass
class Feed:
    """One sequence in a runner: knows what is in the cache and hands out the next chunk."""

    tokens: list[int]
    block_ids: tuple[int, ...]
    slot: int
    past: int = 0

    def take(self, count: int) -> SequenceInput:
        chunk = tuple(self.tokens[self.past : self.past + count])
        given = SequenceInput(chunk, self.past, self.block_ids, self.slot)
        self.past += count
        return given


@pytest.fixture(scope="session")
def feed() -> type[Feed]:
    return Feed
