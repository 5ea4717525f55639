"""KV sizes against the published tables of DeepSeek V4 and hand-worked layouts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from simulator.model import kv, presets
from simulator.model.architecture import LayerSpec

MIB = 2**20
CONTEXTS = (8192, 65536, 262144, 1048576)


@pytest.mark.parametrize(
    ("name", "options", "per_token"),
    [
        ("deepseek-v4-flash", {}, 3514),
        ("deepseek-v4-flash", {"index_dtype": "fp8"}, 3850),
        ("deepseek-v4-pro", {}, 5031),
        ("deepseek-v4-pro", {"index_dtype": "fp8"}, 5511),
        ("deepseek-v3.2", {}, 48068),
        ("deepseek-v3.2", {"kv_dtype": "bf16", "index_dtype": "bf16"}, 85888),
        ("deepseek-v3", {}, 61 * 1152),
        ("llama-3.1-8b", {}, 32 * 2 * 8 * 128 * 2),
        ("llama-3.1-8b", {"kv_dtype": "fp8"}, 32 * 2 * 8 * 128),
        ("gpt-oss-120b", {}, 18 * 2 * 8 * 64 * 2),  # only every other layer grows
        ("glm-5.2", {}, 78 * 656 + 21 * 132),  # keys on the 21 "full" layers alone
        ("kimi-k3", {}, 24 * 1152),  # only the MLA layers grow
    ],
)
def test_growth_per_token(name: str, options: dict[str, str], per_token: float) -> None:
    assert kv.kv_bytes_per_token(presets.load_model(name, **options)) == pytest.approx(per_token, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "options", "mib"),
    [
        ("deepseek-v4-flash", {}, (27.5, 219.6, 878.6, 3514)),
        ("deepseek-v4-flash", {"index_dtype": "fp8"}, (30.1, 240.6, 962.6, 3850)),
        ("deepseek-v4-pro", {}, (39.3, 314.5, 1257.9, 5031)),
        ("deepseek-v4-pro", {"index_dtype": "fp8"}, (43.1, 344.5, 1377.9, 5511)),
        ("deepseek-v3.2", {}, (375.5, 3004, 12017, 48068)),
        ("deepseek-v3.2", {"kv_dtype": "bf16", "index_dtype": "bf16"}, (671, 5368, 21472, 85888)),
    ],
)
def test_kv_per_sequence(name: str, options: dict[str, str], mib: tuple[float, ...]) -> None:
    model = presets.load_model(name, **options)
    assert [kv.kv_bytes(model, context) / MIB for context in CONTEXTS] == pytest.approx(mib, rel=0.01)


def windows(layers: Sequence[LayerSpec]) -> float:
    return sum(kv.window_bytes(layer.attention) for layer in layers)


def states(layers: Sequence[LayerSpec], drafts: bool = False) -> float:
    return sum(kv.state_bytes(layer.attention, drafts) for layer in layers)


@pytest.mark.parametrize(
    ("name", "window", "ring"), [("deepseek-v4-flash", 3.07, 11.64), ("deepseek-v4-pro", 4.35, 17.84)]
)
def test_window_and_state_per_sequence(name: str, window: float, ring: float) -> None:
    model = presets.load_model(name)
    assert windows(model.layers) / MIB == pytest.approx(window, rel=0.01)
    assert states(model.layers) / MIB == pytest.approx(ring, rel=0.01)


def test_drafts_double_the_rings_and_add_their_own_window() -> None:
    model = presets.load_model("deepseek-v4-flash")
    assert states(model.layers, drafts=True) == 2 * states(model.layers)
    assert model.draft is not None
    assert windows(model.draft.layers) == 128 * 584


def test_public_claims_about_v4_cache() -> None:
    """At 1M tokens: Pro needs 9.5 times less than V3.2 and Flash 13.7; 9.62 GiB for Pro all in bf16."""
    v32 = kv.kv_bytes(presets.load_model("deepseek-v3.2"), 2**20)
    assert v32 / kv.kv_bytes(presets.load_model("deepseek-v4-pro"), 2**20) == pytest.approx(9.55, rel=2e-3)
    assert v32 / kv.kv_bytes(presets.load_model("deepseek-v4-flash"), 2**20) == pytest.approx(13.68, rel=2e-3)
    wide = presets.load_model("deepseek-v4-pro", kv_dtype="bf16", index_dtype="bf16")
    assert kv.kv_bytes(wide, 2**20) / 2**30 == pytest.approx(9.62, rel=2e-3)


def test_compressed_entries_appear_when_their_block_closes() -> None:
    model = presets.load_model("deepseek-v4-flash")  # 21 CSA layers of ratio 4, 20 HCA layers of 128
    assert kv.kv_bytes(model, 3) == 0
    assert kv.kv_bytes(model, 4) == 21 * (584 + 68)
    assert kv.kv_bytes(model, 127) == 31 * 21 * (584 + 68)
    assert kv.kv_bytes(model, 128) == 32 * 21 * (584 + 68) + 20 * 584


@pytest.mark.parametrize(
    ("name", "context", "megabytes"),
    [
        ("deepseek-v4-flash", 8192, 39),
        ("deepseek-v4-pro", 8192, 56),
        ("deepseek-v4-flash", 65536, 260),
        ("deepseek-v4-pro", 65536, 372),
        ("deepseek-v4-flash", 1048576, 4040),
        ("deepseek-v4-pro", 1048576, 5790),
    ],
)
def test_transfer_of_one_request(name: str, context: int, megabytes: float) -> None:
    model = presets.load_model(name, index_dtype="fp8")
    assert kv.transfer_bytes(model, context) / 1e6 == pytest.approx(megabytes, rel=0.01)


@pytest.mark.parametrize(
    ("name", "window_mb", "tail_mb", "ring_mb"),
    [("deepseek-v4-flash", 6.4, 0.9, 10.5), ("deepseek-v4-pro", 9.1, 1.2, 16.3)],
)
def test_transfer_of_what_does_not_grow(name: str, window_mb: float, tail_mb: float, ring_mb: float) -> None:
    model = presets.load_model(name)

    def beside_entries(context: int) -> float:
        return (kv.transfer_bytes(model, context) - kv.kv_bytes(model, context)) / 1e6

    closed, open_block = beside_entries(8192), beside_entries(8196)  # HCA closes at 8192, CSA at both
    assert closed == pytest.approx(window_mb + tail_mb, abs=0.1)
    assert open_block - closed == pytest.approx(ring_mb, abs=0.06)


def test_transfer_of_v32_is_its_cache() -> None:
    model = presets.load_model("deepseek-v3.2")
    assert kv.transfer_bytes(model, 65536) == kv.kv_bytes(model, 65536)
    assert kv.transfer_bytes(model, 65536) / 1e9 == pytest.approx(3.15, rel=2e-3)


def test_recurrent_state_is_constant_and_travels_whole() -> None:
    """69 layers of 96 f32 states of 128 x 128 and three bf16 rows of the q, k, v convolutions."""
    model = presets.load_model("kimi-k3")
    state = 69 * (96 * 128 * 128 * 4 + 3 * 3 * 96 * 128 * 2)
    assert states(model.layers) == state
    assert windows(model.layers) == 0
    assert kv.transfer_bytes(model, 1000) == kv.kv_bytes(model, 1000) + state


def test_value_heads_of_gated_delta_net_share_keys() -> None:
    """45 layers of 64 f32 states of 128 x 128 and three bf16 rows of 2 x 16 key and 64 value heads' convolutions."""
    model = presets.load_model("qwen3.5-397b-a17b")
    assert states(model.layers) == 45 * (64 * 128 * 128 * 4 + 3 * (2 * 16 + 64) * 128 * 2)
    assert kv.kv_bytes(model, 1000) == 15 * 2 * 2 * 256 * 2 * 1000
