"""Rotary frequencies against transformers' and by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from runtime.config.spec import CompressedAttention, LatentAttention
from runtime.layers.rotary import inverse_frequencies


def test_rotary_frequencies_equal_transformers(pair_of: Callable) -> None:
    v4, v3 = pair_of("deepseek_v4"), pair_of("deepseek_v3")
    assert isinstance(v4.config.attention, CompressedAttention)
    assert isinstance(v3.config.attention, LatentAttention)
    theirs = v4.theirs.model.rotary_emb
    ours = inverse_frequencies(v4.config.attention.compress_rope)
    assert (ours - theirs.compress_inv_freq).abs().max() < 1e-7
    assert (inverse_frequencies(v4.config.attention.rope) - theirs.main_inv_freq).abs().max() < 1e-7
    theirs = v3.theirs.model.rotary_emb.inv_freq
    assert (inverse_frequencies(v3.config.attention.rope) - theirs).abs().max() < 1e-7
    # Hand-worked: softmax scale grows by (0.1 ln 40 + 1)^2 = 1.8739 over 24^-1/2.
    assert v3.config.attention.scale == pytest.approx(1.8739 * 24**-0.5, rel=1e-4)
