from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from hw_profiles.catalog import load
from simulator.model import kv
from simulator.model import parameter_counts as counts
from simulator.model.architecture import LayerSpec
from simulator.model.memory import DoesNotFitError, plan_memory
from simulator.model.parallelism import Parallelism, ParallelismError
from simulator.model.presets import load_model


def fixed_bytes(layers: Sequence[LayerSpec], drafts: bool = False) -> float:
    """What one sequence holds whatever its length, uncut: windows and state."""
    attentions = [layer.attention for layer in layers]
    return sum(kv.window_bytes(attention) + kv.state_bytes(attention, drafts) for attention in attentions)


def test_v4_pro_takes_131_gb_on_each_of_eight() -> None:
    """822 GB of experts over 8 ranks, 28.7 GB copied to each."""
    plan = plan_memory(load_model("deepseek-v4-pro"), load("b300"), Parallelism(dp=8, ep=8))
    assert plan.weight_bytes == pytest.approx(131e9, rel=0.01)


@pytest.mark.parametrize("name", ["deepseek-v4-flash", "qwen3-30b-a3b", "llama-3.1-8b", "gpt-oss-20b"])
def test_one_accelerator_holds_the_checkpoint_and_all_kv(name: str) -> None:
    model = load_model(name)
    plan = plan_memory(model, load("b300"), Parallelism())
    assert plan.weight_bytes == pytest.approx(counts.weight_bytes(model), rel=1e-9)
    assert plan.kv_bytes_per_token == pytest.approx(kv.kv_bytes_per_token(model))
    assert plan.kv_bytes_per_sequence == pytest.approx(fixed_bytes(model.layers))


@pytest.mark.parametrize(
    "cut",
    [Parallelism(tp=8), Parallelism(tp=8, ep=8), Parallelism(dp=8, ep=8), Parallelism(tp=4, pp=2)],
    ids=str,
)
def test_ranks_together_hold_every_weight(cut: Parallelism) -> None:
    model = load_model("qwen3-30b-a3b")
    held = cut.gpus * plan_memory(model, load("h200"), cut).weight_bytes
    assert held >= counts.weight_bytes(model) * (1 - 1e-9)
    experts = sum(layer.ffn.experts * layer.ffn.expert_bytes for layer in model.layers)
    assert held <= experts + cut.gpus * (counts.weight_bytes(model) - experts)


def test_the_utilised_share_of_the_device_is_filled_exactly() -> None:
    hardware = load("h200")
    plan = plan_memory(load_model("llama-3.1-8b"), hardware, Parallelism())
    used = plan.weight_bytes + plan.activation_bytes + plan.outside_bytes + plan.kv_capacity_bytes
    assert used == pytest.approx(hardware.usable_memory_bytes * hardware.efficiency.memory_utilisation)


def test_tensor_parallel_ranks_share_kv_heads_but_not_a_latent() -> None:
    hardware = load("h200")

    def growth(name: str, tp: int) -> float:
        return plan_memory(load_model(name), hardware, Parallelism(tp=tp)).kv_bytes_per_token

    assert growth("llama-3.1-8b", 8) == pytest.approx(growth("llama-3.1-8b", 1) / 8)
    assert growth("qwen3-30b-a3b", 8) == pytest.approx(growth("qwen3-30b-a3b", 4))  # 4 KV heads
    assert growth("deepseek-v4-flash", 8) == pytest.approx(growth("deepseek-v4-flash", 2))


def test_pipeline_stages_share_layers() -> None:
    model, hardware = load_model("llama-3.1-8b"), load("h200")
    whole, half = plan_memory(model, hardware, Parallelism()), plan_memory(model, hardware, Parallelism(pp=2))
    assert half.kv_bytes_per_token == pytest.approx(whole.kv_bytes_per_token / 2)
    assert half.weight_bytes == pytest.approx(whole.weight_bytes / 2, rel=1e-4)


def test_sequences_that_fit_fill_the_room_and_one_more_does_not() -> None:
    plan = plan_memory(load_model("deepseek-v4-flash"), load("b200"), Parallelism(dp=8, ep=8))
    for context in (1, 8192, 1_000_000):
        count = plan.max_sequences(context)
        one = plan.sequence_bytes(context)
        assert count * one <= plan.kv_capacity_bytes < (count + 1) * one


def test_a_small_device_holds_no_sequence_of_the_models_full_length() -> None:
    model = load_model("llama-3.1-8b")
    assert plan_memory(model, load("h200"), Parallelism()).max_sequences(model.max_positions) > 0
    tight = plan_memory(model, replace(load("h200"), memory_bytes=22e9), Parallelism())
    assert tight.max_sequences(model.max_positions) == 0
    assert tight.max_sequences(1000) > 0


def test_drafts_take_weights_and_larger_rings() -> None:
    model, cut = load_model("deepseek-v4-flash"), Parallelism(dp=8, ep=8)
    plain = plan_memory(model, load("b200"), cut)
    drafting = plan_memory(model, load("b200"), cut, draft_tokens=1)
    assert model.draft is not None
    experts = model.draft.layers[0].ffn.experts * model.draft.layers[0].ffn.expert_bytes
    held = counts.draft_weight_bytes(model) - experts * 7 / 8
    assert drafting.weight_bytes - plain.weight_bytes == pytest.approx(held)
    fixed = fixed_bytes((*model.layers, *model.draft.layers), drafts=True)
    assert drafting.kv_bytes_per_sequence == pytest.approx(fixed)


def test_larger_steps_leave_less_room() -> None:
    model, hardware, cut = load_model("deepseek-v3"), load("h200"), Parallelism(dp=16, ep=16)
    room = [plan_memory(model, hardware, cut, tokens).kv_capacity_bytes for tokens in (1024, 8192, 16384)]
    assert room[0] > room[1] > room[2]


def test_a_model_that_does_not_fit_says_what_would() -> None:
    with pytest.raises(DoesNotFitError) as refusal:
        plan_memory(load_model("llama-3.1-70b"), load("h100"), Parallelism())
    message = str(refusal.value)
    assert "141.1 GB of weights" in message
    assert "h100_sxm offers" in message
    assert "at least 2 h100_sxm would do" in message
    plan_memory(load_model("llama-3.1-70b"), load("h100"), Parallelism(tp=2))


def test_a_cut_that_the_model_forbids_is_refused_first() -> None:
    with pytest.raises(ParallelismError, match="tp=3 does not divide 32 attention heads"):
        plan_memory(load_model("llama-3.1-8b"), load("h100"), Parallelism(tp=3))
