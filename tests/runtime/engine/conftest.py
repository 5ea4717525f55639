from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from runtime.block_manager import BlockManager
from runtime.config.reading import read_config
from runtime.config.spec import ModelConfig
from runtime.sequence import Request, SamplingParams

SHARED_MEMORY = Path("/dev/shm")

# Small enough to run in milliseconds; window, ratios and block of 16 make short prompts cross every boundary.
NANO: dict[str, dict[str, Any]] = {
    "v4": {
        "model_type": "deepseek_v4",
        "vocab_size": 300,
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "qk_rope_head_dim": 8,
        "q_lora_rank": 32,
        "o_groups": 2,
        "o_lora_rank": 16,
        "sliding_window": 16,
        "layer_types": [
            "sliding_attention",
            "compressed_sparse_attention",
            "heavily_compressed_attention",
            "compressed_sparse_attention",
        ],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 16},
        "rope_theta": 10000,
        "compress_rope_theta": 160000,
        "max_position_embeddings": 512,
        "index_n_heads": 2,
        "index_head_dim": 16,
        "index_topk": 6,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "num_hash_layers": 1,
        "moe_intermediate_size": 32,
        "routed_scaling_factor": 1.5,
        "scoring_func": "sqrtsoftplus",
        "swiglu_limit": 10.0,
        "hc_mult": 4,
        "hc_sinkhorn_iters": 20,
        "hc_eps": 1e-6,
        "rms_norm_eps": 1e-6,
        "eos_token_id": 299,
    },
    "v3": {
        "model_type": "deepseek_v3",
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "first_k_dense_replace": 1,
        "num_attention_heads": 4,
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "rope_theta": 10000,
        "max_position_embeddings": 512,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 32,
        "routed_scaling_factor": 2.5,
        "rms_norm_eps": 1e-6,
        "eos_token_id": 299,
    },
    "qwen3": {
        "model_type": "qwen3_moe",
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rope_theta": 1000000,
        "max_position_embeddings": 512,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
        "rms_norm_eps": 1e-6,
        "eos_token_id": 299,
    },
}


@pytest.fixture(autouse=True)
def nothing_leaks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After every test: its block managers are idle and consistent, its shared memory is gone.

    Worker processes check their own block manager when they stop, and the proxy's `close` raises if one failed.
    """
    managers: list[BlockManager] = []
    construct = BlockManager.__init__

    def recording(self: BlockManager, *args: object, **kwargs: object) -> None:
        construct(self, *args, **kwargs)  # type: ignore[arg-type]
        managers.append(self)

    monkeypatch.setattr(BlockManager, "__init__", recording)
    yield
    for manager in managers:
        manager.check_idle()
    assert not list(SHARED_MEMORY.glob(f"moeplan-*-{os.getpid()}-*"))


@pytest.fixture
def nano_config(request: pytest.FixtureRequest) -> ModelConfig:
    return read_config(NANO[getattr(request, "param", "v4")])


@pytest.fixture
def nano_v4_file(tmp_path: Path) -> Path:
    path = tmp_path / "nano-v4.json"
    path.write_text(json.dumps(NANO["v4"]))
    return path


@pytest.fixture
def nano() -> Callable[[str], dict[str, Any]]:
    """config.json of a family: v4, v3 or qwen3."""
    return NANO.__getitem__


@pytest.fixture
def nano_v4() -> dict[str, Any]:
    return NANO["v4"]


@pytest.fixture
def nano_qwen3() -> dict[str, Any]:
    return NANO["qwen3"]


@pytest.fixture
def make_requests() -> Any:
    """Requests that arrive now, from prompts and sampling parameters."""

    def make(prompts: Sequence[Sequence[int]], sampling: Sequence[SamplingParams]) -> list[Request]:
        now_s = time.monotonic()
        pairs = zip(prompts, sampling, strict=True)
        return [Request(f"r{i}", tuple(prompt), s, now_s) for i, (prompt, s) in enumerate(pairs)]

    return make
