from __future__ import annotations

import math

import pytest
import torch

from runtime.logit_changes import apply_changes, change_of
from runtime.sampler import sample_tokens
from runtime.sequence import Request, RequestError, SamplingParams
from runtime.sequence import Sequence as TokenSequence


def test_greedy_takes_the_largest_logit() -> None:
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0))
    assert sample_tokens(logits, [SamplingParams()] * 5, range(5)) == logits.argmax(-1).tolist()


def test_a_row_draws_the_same_token_in_any_batch() -> None:
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(1))
    params = [SamplingParams(temperature=0.5 * i, top_k=3 * i, top_p=1 - i / 10, seed=i) for i in range(6)]
    together = sample_tokens(logits, params, range(6))
    alone = [sample_tokens(logits[i : i + 1], [params[i]], [i])[0] for i in range(6)]
    backwards = sample_tokens(logits.flip(0), params[::-1], range(5, -1, -1))
    assert together == alone == backwards[::-1]


def test_frequencies_follow_the_tempered_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    expected = torch.softmax(logits[0] / 0.7, -1)
    draws = 8000
    params = [SamplingParams(temperature=0.7, seed=9)] * draws
    tokens = torch.tensor(sample_tokens(logits.expand(draws, -1), params, range(draws)))
    observed = torch.bincount(tokens, minlength=4) / draws
    error = (expected * (1 - expected) / draws).sqrt()
    assert (observed - expected).abs().max() < 4.5 * error.max()


def test_top_k_and_top_p_keep_the_most_likely_tokens() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).expand(500, -1)
    top2 = sample_tokens(logits, [SamplingParams(temperature=2.0, top_k=2, seed=i) for i in range(500)], [0] * 500)
    assert set(top2) == {0, 1}
    # Probabilities 0.64, 0.24, 0.09, 0.03: 0.7 needs the first two.
    nucleus = [SamplingParams(temperature=1.0, top_p=0.7, seed=i) for i in range(500)]
    assert set(sample_tokens(logits, nucleus, [0] * 500)) == {0, 1}


def test_without_a_seed_requests_differ() -> None:
    assert SamplingParams().seed != SamplingParams().seed


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_tokens", 0), ("temperature", -0.1), ("temperature", float("nan")), ("top_k", -1), ("top_p", 0.0),
     ("top_p", 1.5), ("seed", -1), ("stop_sequences", ((),))],
)  # fmt: skip
def test_bad_parameters_are_named(field: str, value: object) -> None:
    with pytest.raises(RequestError, match=field):
        SamplingParams(**{field: value})  # type: ignore[arg-type]


def changed(sampling: SamplingParams, prompt: list[int], output: list[int], logits: list[float]) -> list[float]:
    request = Request("r", tuple(prompt), sampling, 0.0, tuple(output))
    change = change_of(TokenSequence(request, 16), (3,))
    return apply_changes(torch.tensor([logits]), [change])[0].tolist()


def test_penalties_by_hand() -> None:
    """Prompt 0, output 1 1 2: repetition divides 0, 1 and 2 (multiplies where negative); frequency counts outputs."""
    sampling = SamplingParams(8, frequency_penalty=0.5, presence_penalty=0.25, repetition_penalty=2.0)
    assert changed(sampling, [0], [1, 1, 2], [4.0, 2.0, -1.0, 8.0]) == [2.0, 1.0 - 1.25, -2.0 - 0.75, 8.0]
    assert change_of(TokenSequence(Request("r", (0,), SamplingParams(8), 0.0), 16), (3,)) is None


def test_nothing_ends_before_min_tokens() -> None:
    sampling = SamplingParams(8, min_tokens=2, stop_token_ids=(1,))
    assert changed(sampling, [0], [2], [4.0, 2.0, -1.0, 8.0]) == [4.0, -math.inf, -1.0, -math.inf]
    assert changed(sampling, [0], [2, 2], [4.0, 2.0, -1.0, 8.0]) == [4.0, 2.0, -1.0, 8.0]


def test_min_p_keeps_a_share_of_the_likeliest() -> None:
    """At temperature 2, exp((x - 8) / 2) >= 0.2 needs x >= 8 + 2 ln 0.2 = 4.78."""
    sampling = SamplingParams(8, temperature=2.0, min_p=0.2, logit_bias=((1, 1.0),))
    assert changed(sampling, [0], [], [4.7, 4.0, 4.8, 8.0]) == pytest.approx([-math.inf, 5.0, 4.8, 8.0])
