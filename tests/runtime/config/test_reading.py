"""config.json files as published, in both spellings; errors name the field and the way out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from runtime import models
from runtime.config.reading import read_config
from runtime.config.spec import ConfigError

# Published config.json of DeepSeek-V4-Flash and -Pro, what the reader needs of it.
FLASH: dict[str, Any] = {
    "model_type": "deepseek_v4",
    "vocab_size": 129280,
    "hidden_size": 4096,
    "num_hidden_layers": 43,
    "num_attention_heads": 64,
    "num_key_value_heads": 1,
    "head_dim": 512,
    "q_lora_rank": 1024,
    "o_groups": 8,
    "o_lora_rank": 1024,
    "qk_rope_head_dim": 64,
    "sliding_window": 128,
    "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0],
    "index_n_heads": 64,
    "index_head_dim": 128,
    "index_topk": 512,
    "n_routed_experts": 256,
    "num_experts_per_tok": 6,
    "n_shared_experts": 1,
    "moe_intermediate_size": 2048,
    "routed_scaling_factor": 1.5,
    "scoring_func": "sqrtsoftplus",
    "swiglu_limit": 10.0,
    "num_hash_layers": 3,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 1048576,
    "rope_theta": 10000,
    "compress_rope_theta": 160000,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 16,
        "original_max_position_embeddings": 65536,
        "type": "yarn",
    },
    "num_nextn_predict_layers": 1,
    "eos_token_id": 1,
}
PRO = {
    **FLASH,
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "o_groups": 16,
    "index_topk": 1024,
    "n_routed_experts": 384,
    "moe_intermediate_size": 3072,
    "routed_scaling_factor": 2.5,
    "compress_ratios": [128, 128, *[4, 128] * 29, 4, 0],
}


@pytest.mark.parametrize(("raw", "kinds"), [(FLASH, (21, 20, 2)), (PRO, (30, 31, 0))], ids=["flash", "pro"])
def test_layer_schedule(raw: dict[str, Any], kinds: tuple[int, int, int]) -> None:
    """CSA, HCA and window-only layers as published (DeepSeek-V4 report, model table)."""
    config = read_config(raw)
    assert tuple(config.attention_kinds.count(k) for k in ("sparse", "heavy", "window")) == kinds
    assert config.mlp_kinds[:4] == ("hash_moe",) * 3 + ("moe",)
    assert (config.block_multiple, config.num_mtp_layers, config.eos_token_ids) == (128, 1, (1,))


@pytest.mark.parametrize("raw", [FLASH, PRO], ids=["flash", "pro"])
def test_both_spellings_mean_the_same(raw: dict[str, Any]) -> None:
    """As published, and as transformers writes it back."""
    rewritten = transformers.DeepseekV4Config(**raw).to_dict()
    assert "compress_ratios" not in rewritten
    assert read_config(json.loads(json.dumps(rewritten))) == read_config(raw)


@pytest.mark.parametrize(("raw", "billions"), [(FLASH, 284.33), (PRO, 1573.0)], ids=["flash", "pro"])
def test_parameter_count_is_the_published_one(raw: dict[str, Any], billions: float) -> None:
    """284B and 1.6T without MTP and hash tables; built on no device at all."""
    config = dataclasses.replace(read_config(raw), num_mtp_layers=0)
    model = models.empty(config, "meta", torch.bfloat16)
    count = sum(p.numel() for name, p in model.named_parameters() if not name.endswith("table"))
    assert count / 1e9 == pytest.approx(billions, rel=2e-4)


BAD = [
    ({"model_type": "llama"}, "model_type='llama' is not supported; use one of deepseek_v3"),
    ({"model_type": None}, "lacks 'model_type'"),
    ({"hidden_size": None}, "lacks 'hidden_size'"),
    ({"hidden_size": "4096"}, "hidden_size='4096' .* must be of type int"),
    ({"head_dim": 0}, "head_dim=0 .* must be at least 1"),
    ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
    ({"num_key_value_heads": 8}, "num_key_value_heads=8"),
    ({"o_groups": 7}, "o_groups=7 does not divide num_attention_heads=64"),
    ({"compress_ratios": [0, 4, 16]}, "compress_ratios holds 16; use 0"),
    ({"compress_ratios": [0, 4]}, "num_hidden_layers=43, but only 2 layers"),
    ({"num_experts_per_tok": 300}, "num_experts_per_tok=300 exceeds"),
    ({"num_nextn_predict_layers": 3}, "num_nextn_predict_layers=3 is not supported"),
    ({"qk_rope_head_dim": 63}, "qk_rope_head_dim=63 must be even"),
    ({"scoring_func": "relu"}, "scoring_func='relu'"),
    ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope type 'linear' is not supported"),
    ({"rope_scaling": {"type": "yarn", "factor": 2}}, "lacks 'original_max_position_embeddings'"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[str(change)[:40] for change, _ in BAD])
def test_bad_fields_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config({**FLASH, **change})


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model configuration at"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="is not valid JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="holds no JSON object"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(FLASH))
    assert read_config(tmp_path) == read_config(str(tmp_path / "config.json")) == read_config(FLASH)
