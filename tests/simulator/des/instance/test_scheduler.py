"""Two requests worked by hand: A (100 prompt tokens) decodes when B (200) arrives; 1 ms a token, 10 ms a decode."""

import pytest
from support.clusters import FormulaTimes, colocated, make_instance, play


@pytest.mark.parametrize(
    ("policy", "first_token_of_b_s", "end_of_a_s"),
    [
        # A's prefill ends at 0.100, its first decode step at 0.110, where B is found waiting.
        ("chunked", 0.110 + 0.159 + 0.061, 0.110 + 0.159 + 0.061),  # 149 tokens and A, then 51 and A
        ("prefill_first", 0.110 + 0.150 + 0.050, 0.110 + 0.200 + 2 * 0.01),  # A waits for all of B
        ("inflight", 0.110 + 0.210, 0.110 + 0.210 + 0.01),  # B whole, over the budget, with A
    ],
)
def test_policies_as_worked_by_hand(policy: str, first_token_of_b_s: float, end_of_a_s: float) -> None:
    server = make_instance(
        FormulaTimes(per_prompt_token_s=1e-3, decode_base_s=0.01), max_tokens_per_step=150, batching=policy
    )
    table = play(colocated(server), [100, 200], [4, 9], arrivals=[0.0, 0.105]).requests
    assert table["first_token_s"][1] == pytest.approx(first_token_of_b_s)
    assert table["finish_s"][0] == pytest.approx(end_of_a_s)


def test_inflight_keeps_short_prompts_behind_the_budget_together() -> None:
    """Prompts of 60, 60 and 60 with a budget of 150: two whole ones share a step, the third takes the next."""
    server = make_instance(FormulaTimes(per_prompt_token_s=1e-3), max_tokens_per_step=150, batching="inflight")
    table = play(colocated(server), [60] * 3, [1] * 3, arrivals=[0.0] * 3).requests
    assert table["first_token_s"].tolist() == pytest.approx([0.12, 0.12, 0.18])
    long = play(colocated(server), [10, 80, 80], [1] * 3, arrivals=[0.0] * 3).requests
    assert long["first_token_s"].tolist() == pytest.approx([0.09, 0.09, 0.17])


@pytest.mark.parametrize(
    ("limits", "first_tokens_s"),
    [
        ({}, [0.3, 0.6, 0.63]),  # 150, 150 | 150, 150 | 30
        # 50 of each long one and the 30 in the first step, then 50 and 50
        ({"long_prefill_token_threshold": 50}, [0.63, 0.63, 0.13]),
        # 50 of A with C, which passes B; four times 50 of A; its last 50 is not long any more: with 50 of B
        ({"long_prefill_token_threshold": 50, "max_long_partial_prefills": 1}, [0.38, 0.63, 0.08]),
    ],
)
def test_short_prompts_pass_long_ones_as_worked_by_hand(limits: dict[str, int], first_tokens_s: list[float]) -> None:
    """A and B of 300 tokens, C of 30 behind them; 1 ms a token, 150 tokens a step."""
    server = make_instance(FormulaTimes(per_prompt_token_s=1e-3), max_tokens_per_step=150, **limits)
    table = play(colocated(server), [300, 300, 30], [1] * 3, arrivals=[0.0] * 3).requests
    assert table["first_token_s"].tolist() == pytest.approx(first_tokens_s)
