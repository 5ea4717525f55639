"""Attention kernels against the references: several sequences of different length in one step."""

import pytest
import torch

from runtime.kernels import attention_decode, attention_prefill
from runtime.reference import attention_decode as decode_reference
from runtime.reference import attention_prefill as prefill_reference

TOLERANCE = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (2e-2, 2e-2)}
PER_BLOCK = 4  # entries


def ints(values: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


def shuffled_table(batch: int, blocks: int, device: torch.device) -> torch.Tensor:
    return torch.randperm(batch * blocks, device=device).int().view(batch, blocks)


def pick(visible: torch.Tensor, k: int) -> torch.Tensor:
    """k random entries of those visible, ascending, padded with -1."""
    rows = []
    for count in visible.tolist():
        chosen = torch.randperm(count)[:k].sort().values
        rows.append(torch.nn.functional.pad(chosen, (0, k - chosen.numel()), value=-1))
    return torch.stack(rows).int().to(visible.device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["window", "all", "selected"])
@pytest.mark.parametrize("dim", [24, 32])
def test_window_prefill(dtype: torch.dtype, kind: str, dim: int, device: torch.device) -> None:
    heads, size, past, lengths = 5, 8, [0, 13, 3], [11, 2, 6]
    tokens = sum(lengths)
    token_seq = ints([s for s, n in enumerate(lengths) for _ in range(n)], device)
    positions = ints([past[s] + i for s, n in enumerate(lengths) for i in range(n)], device)
    q = torch.randn(tokens, heads, dim, device=device).to(dtype)
    kv = torch.randn(tokens, dim, device=device).to(dtype)
    window = torch.randn(4, size, dim, device=device).to(dtype)
    sinks = torch.randn(heads, device=device)
    arguments = [q, kv, window, sinks, 0.3, token_seq, positions, ints(past, device), ints([2, 0, 3], device)]
    if kind != "window":
        visible = ((positions + 1) // 2).int()
        entries = torch.randn(9, PER_BLOCK, dim, device=device).to(dtype)
        selected = pick(visible, 5) if kind == "selected" else None
        arguments += [entries, shuffled_table(3, 3, device), visible, selected]
    got = attention_prefill.window_attention_prefill(*arguments)
    rtol, atol = TOLERANCE[dtype]
    torch.testing.assert_close(got, prefill_reference.window_attention_prefill(*arguments), rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["window", "all", "selected"])
def test_window_decode(dtype: torch.dtype, kind: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_decode, "MIN_KEYS_PER_SPLIT", 32)  # so that a short test has several splits
    batch, heads, dim, size = 3, 5, 24, 48
    q = torch.randn(batch, heads, dim, device=device).to(dtype)
    window = torch.randn(4, size, dim, device=device).to(dtype)
    lengths = ints([1, 40, 170], device)
    sinks = torch.randn(heads, device=device)
    arguments = [q, window, ints([2, 0, 3], device), lengths, sinks, 0.3]
    if kind != "window":
        visible = (lengths // 2).int()
        entries = torch.randn(3 * 22, PER_BLOCK, dim, device=device).to(dtype)
        selected = pick(visible, 41) if kind == "selected" else None
        arguments += [entries, shuffled_table(3, 22, device), visible, selected]
    got = attention_decode.window_attention_decode(*arguments)
    rtol, atol = TOLERANCE[dtype]
    torch.testing.assert_close(got, decode_reference.window_attention_decode(*arguments), rtol=rtol, atol=atol)


def caches(kind: str, blocks: int, size: int, dtype: torch.dtype, device: torch.device):
    """(heads, query width, keys, values): grouped heads, or one latent cache seen as both (MLA)."""
    if kind == "mla":
        latent = torch.randn(blocks, size, 1, 40, device=device).to(dtype)
        return 5, 40, latent, latent[..., :32]
    keys = torch.randn(blocks, size, 2, 24, device=device).to(dtype)
    return 6, 24, keys, torch.randn(blocks, size, 2, 20, device=device).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["grouped", "mla"])
def test_paged_prefill(dtype: torch.dtype, kind: str, device: torch.device) -> None:
    heads, width, keys, values = caches(kind, 18, 8, dtype, device)
    bounds, past = [0, 19, 20, 27], [0, 33, 5]
    q = torch.randn(27, heads, width, device=device).to(dtype)
    arguments = (q, keys, values, shuffled_table(3, 6, device), ints(bounds, device), ints(past, device), 19, 0.2)
    got = attention_prefill.paged_attention_prefill(*arguments)
    rtol, atol = TOLERANCE[dtype]
    torch.testing.assert_close(got, prefill_reference.paged_attention_prefill(*arguments), rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["grouped", "mla"])
def test_paged_decode(dtype: torch.dtype, kind: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_decode, "MIN_KEYS_PER_SPLIT", 32)
    heads, width, keys, values = caches(kind, 60, 8, dtype, device)
    q = torch.randn(3, heads, width, device=device).to(dtype)
    arguments = (q, keys, values, shuffled_table(3, 20, device), ints([1, 77, 160], device), 0.2)
    got = attention_decode.paged_attention_decode(*arguments)
    rtol, atol = TOLERANCE[dtype]
    torch.testing.assert_close(got, decode_reference.paged_attention_decode(*arguments), rtol=rtol, atol=atol)
