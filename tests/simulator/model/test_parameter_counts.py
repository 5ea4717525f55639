"""Parameter counts and stored bytes against published figures."""

from __future__ import annotations

import pytest

from simulator.model import parameter_counts as counts
from simulator.model import presets
from simulator.model.architecture import BYTES_PER_PARAM, ModelSpec

B, GB, MB = 1e9, 1e9, 1e6


@pytest.mark.parametrize(
    ("name", "total", "active_no_embedding", "active", "draft"),
    [
        ("deepseek-v4-flash", 284.33 * B, 13.27 * B, 13.80 * B, 6.61 * B),
        ("deepseek-v4-pro", 1573.0 * B, 48.85 * B, 49.78 * B, 25.84 * B),
    ],
)
def test_v4_parameter_counts(name: str, total: float, active_no_embedding: float, active: float, draft: float) -> None:
    model = presets.load_model(name)
    assert counts.params_total(model) == pytest.approx(total, rel=1e-3)
    assert counts.params_active_no_embedding(model) == pytest.approx(active_no_embedding, rel=1e-3)
    assert counts.params_active(model) == pytest.approx(active, rel=1e-3)
    assert counts.draft_params(model) == pytest.approx(draft, rel=1e-3)


# Published totals without MTP, as on model cards and in reports.
PUBLISHED_TOTALS = {
    "deepseek-v3": 671,
    "deepseek-r1": 671,
    "deepseek-v3.2": 671,
    "deepseek-v4-flash": 284,
    "kimi-k2": 1040,
    "kimi-k2.5": 1040,
    "kimi-k3": 2780,
    "qwen3-235b-a22b": 235,
    "qwen3-30b-a3b": 30.5,
    "qwen3-coder-480b-a35b": 480,
    "qwen3.5-397b-a17b": 397,
    "qwen3.5-122b-a10b": 122,
    "qwen3.5-35b-a3b": 35,
    "glm-4.5": 355,
    "glm-4.6": 355,
    "glm-4.5-air": 106,
    "glm-5": 744,
    "glm-5.2": 744,
    "minimax-m2": 230,
    "minimax-m2.5": 230,
    "minimax-m3": 426.2,  # no card: what transformers 5.24 makes of it
    "gpt-oss-120b": 116.83,
    "gpt-oss-20b": 20.91,
    "mixtral-8x7b": 46.7,
    "llama-3.1-8b": 8.03,
    "llama-3.1-70b": 70.6,
}


@pytest.mark.parametrize(("name", "billions"), PUBLISHED_TOTALS.items())
def test_total_is_within_one_and_a_half_percent_of_the_published_one(name: str, billions: float) -> None:
    assert counts.params_total(presets.load_model(name)) == pytest.approx(billions * B, rel=0.015)


def test_every_preset_has_a_published_total_here() -> None:
    # V4-Pro's "1.6T" is rounded too coarsely; its exact count is tested above.
    assert set(presets.names()) - {"deepseek-v4-pro"} == set(PUBLISHED_TOTALS)


@pytest.mark.parametrize(
    ("name", "billions", "tolerance"),
    [
        ("deepseek-v3", 37, 0.02),
        ("kimi-k2", 32, 0.03),
        ("kimi-k3", 104, 0.015),
        ("qwen3-235b-a22b", 22, 0.015),
        ("qwen3-30b-a3b", 3.3, 0.02),
        ("qwen3-coder-480b-a35b", 35, 0.02),
        ("qwen3.5-397b-a17b", 17, 0.025),
        ("qwen3.5-122b-a10b", 10, 0.025),
        ("glm-4.5", 32, 0.03),
        ("glm-4.5-air", 12, 0.07),  # published as "12B"
        ("glm-5", 40, 0.025),
        ("minimax-m2", 10, 0.045),  # published as "10B"
        ("gpt-oss-120b", 5.13, 0.015),
        ("gpt-oss-20b", 3.61, 0.015),
        ("mixtral-8x7b", 12.9, 0.015),
    ],
)
def test_active_parameters_lie_near_the_published_ones(name: str, billions: float, tolerance: float) -> None:
    model = presets.load_model(name)
    low, high = counts.params_active_no_embedding(model), counts.params_active(model)
    assert low * (1 - tolerance) <= billions * B <= high * (1 + tolerance)


@pytest.mark.parametrize(
    ("name", "hub_billions"),
    [("deepseek-v3", 685), ("deepseek-v4-flash", 292)],
)
def test_hub_totals_are_the_model_its_draft_and_a_second_embedding_and_head(name: str, hub_billions: float) -> None:
    """The Hugging Face page counts the MTP block with its copies of embedding and LM head."""
    model = presets.load_model(name)
    copies = model.embedding.params + model.lm_head.params
    assert counts.params_total(model) + counts.draft_params(model) + copies == pytest.approx(hub_billions * B, rel=2e-3)


def test_glm_hub_total_includes_its_mtp_layer() -> None:
    model = presets.load_model("glm-4.6")
    assert counts.params_total(model) + counts.draft_params(model) == pytest.approx(357 * B, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "weights", "draft", "expert", "step"),
    [
        ("deepseek-v4-flash", 156.0 * GB, 3.6 * GB, 13.37 * MB, 7.77 * GB),
        ("deepseek-v4-pro", 850.7 * GB, 13.9 * GB, 35.09 * MB, 26.8 * GB),
    ],
)
def test_v4_stored_bytes(name: str, weights: float, draft: float, expert: float, step: float) -> None:
    model = presets.load_model(name)
    assert counts.weight_bytes(model) == pytest.approx(weights, rel=5e-3)
    assert counts.draft_weight_bytes(model) == pytest.approx(draft, rel=5e-3)
    assert model.layers[-1].ffn.expert_bytes == pytest.approx(expert, rel=1e-3)
    experts = sum(layer.ffn.experts * layer.ffn.expert_bytes for layer in model.layers)
    every_step = counts.weight_bytes(model) - experts - model.embedding.weight_bytes  # whatever it routes
    assert every_step == pytest.approx(step, rel=1e-3)


@pytest.mark.parametrize(("name", "gib"), [("gpt-oss-120b", 60.8), ("gpt-oss-20b", 12.8)])
def test_gpt_oss_checkpoint_size(name: str, gib: float) -> None:
    """Checkpoint sizes of the gpt-oss model card (arXiv 2508.10925, table 1)."""
    assert counts.weight_bytes(presets.load_model(name)) == pytest.approx(gib * 2**30, rel=2e-3)


def test_gpt_oss_breakdown_of_the_model_card() -> None:
    """MLP 114.71 B, attention 0.96 B, embedding and unembedding 1.16 B (arXiv 2508.10925, table 1)."""
    model = presets.load_model("gpt-oss-120b")
    mlp = sum(
        layer.ffn.experts * layer.ffn.expert_params + sum(linear.params for linear in layer.ffn.linears)
        for layer in model.layers
    )
    attention = sum(linear.params for layer in model.layers for linear in layer.attention.linears)
    assert mlp == pytest.approx(114.71 * B, rel=1e-3)
    assert attention == pytest.approx(0.96 * B, rel=5e-3)
    assert model.embedding.params + model.lm_head.params == pytest.approx(1.16 * B, rel=5e-3)


def test_one_v4_flash_csa_layer_by_hand() -> None:
    """Attention of a CSA layer, term by term: h=4096, q=1024, 64 heads of 512, 8 output groups of 1024."""
    h, q, width, groups, rank = 4096, 1024, 64 * 512, 8, 1024
    fp8 = h * q + h * 512 + q * width + width * rank + groups * rank * h + q * 64 * 128
    bf16 = h * 4 * 512 + h * 4 * 128 + h * 64
    attention = presets.load_model("deepseek-v4-flash").layers[2].attention
    assert attention.kind == "csa"
    assert sum(linear.params for linear in attention.linears if linear.dtype == "fp8") == fp8
    assert sum(linear.params for linear in attention.linears if linear.dtype == "bf16") == bf16


@pytest.mark.parametrize("name", presets.names())
def test_bytes_by_dtype_agree_with_the_parameters(name: str) -> None:
    """Weights lie between the narrowest and the widest type their parameters may have."""
    model: ModelSpec = presets.load_model(name)
    by_dtype = counts.weight_bytes_by_dtype(model)
    assert sum(by_dtype.values()) == pytest.approx(counts.weight_bytes(model))
    params = counts.params_total(model)
    narrowest = min(BYTES_PER_PARAM[dtype] for dtype in BYTES_PER_PARAM if by_dtype.get(dtype))
    assert params * narrowest <= counts.weight_bytes(model) <= params * 2.02


def test_bf16_model_stores_two_bytes_a_parameter() -> None:
    model = presets.load_model("llama-3.1-8b")
    assert counts.weight_bytes(model) == 2 * counts.params_total(model)
    assert counts.draft_params(model) == 0
    assert counts.draft_weight_bytes(model) == 0
