"""Experts over two real processes (gloo) equal one process. Run as a script, this file is one such process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import runtime
from runtime import models
from runtime.cache import KVCache, SequenceInput
from runtime.config.reading import read_config
from runtime.layers.expert_parallel import ExpertGroup
from runtime.layers.ranks import Ranks
from runtime.model_runner import ModelRunner

V3: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "n_shared_experts": 1,
    "n_routed_experts": 8,
    "kv_lora_rank": 32,
    "q_lora_rank": None,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "qk_nope_head_dim": 16,
    "n_group": 2,
    "topk_group": 2,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "max_position_embeddings": 512,
    "num_nextn_predict_layers": 0,
}
V4: dict[str, Any] = {
    "model_type": "deepseek_v4",
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "head_dim": 32,
    "q_lora_rank": 32,
    "o_groups": 2,
    "o_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"],
    "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 16},
    "index_n_heads": 4,
    "index_head_dim": 16,
    "index_topk": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "routed_scaling_factor": 1.5,
    "swiglu_limit": 1.0,
    "num_hash_layers": 1,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 5,
    "hc_eps": 1e-6,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512,
    "rope_theta": 10000,
    "compress_rope_theta": 160000,
    "num_nextn_predict_layers": 0,
}
# Tokens that each rank's sequence gets in each step; 0: that rank idles while the other works.
STEPS = ((37, 5), (1, 11), (0, 1), (1, 0), (1, 1))


def run_rank(raw: dict[str, Any], sequence: int, group: ExpertGroup) -> torch.Tensor:
    """Logits of one sequence's steps, [steps in which it had tokens, vocab]."""
    model = models.build(read_config(raw), seed=11, ranks=Ranks(experts=group))
    for name, parameter in model.named_parameters():
        if "norm" not in name and parameter.is_floating_point():
            parameter.mul_(6.0)  # from the usual 0.02 to something that shows
    runner = ModelRunner(model, KVCache(model.config, 4, 1, 32, "cpu", torch.float32))
    tokens = torch.randint(0, 128, (64,), generator=torch.Generator().manual_seed(sequence)).tolist()
    logits, past = [], 0
    for step in STEPS:
        count = step[sequence]
        inputs = [SequenceInput(tuple(tokens[past : past + count]), past, (3, 1), 0)] if count else []
        if inputs or group.size > 1:
            # Small steps without counts, the largest with them, as the engine tells all ranks.
            group.step.most = max(max(step), 1) if max(step) < 37 else None
            logits.append(runner.step(inputs))
        past += count
    return torch.cat(logits)


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    root = Path(runtime.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tmp_path)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    expected = [[run_rank(raw, rank, ExpertGroup()) for raw in (V3, V4)] for rank in range(2)]
    for worker in workers:
        _, errors = worker.communicate(timeout=240)
        assert worker.returncode == 0, errors
    for rank, alone in enumerate(expected):
        result = torch.load(tmp_path / f"{rank}.pt")
        assert result["experts"] == 4  # half of them
        for together, apart in zip(result["logits"], alone, strict=True):
            assert (together - apart).abs().max() < 1e-5 * apart.abs().max()


def test_ranks_must_divide_the_experts() -> None:
    with pytest.raises(ValueError, match="3 ranks cannot share 8 experts"):
        ExpertGroup(0, 3).local(8)


def main(rank: int, directory: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=2)
    group = ExpertGroup(rank, 2)
    logits = [run_rank(raw, rank, group) for raw in (V3, V4)]
    torch.save({"logits": logits, "experts": len(group.local(8))}, directory / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
