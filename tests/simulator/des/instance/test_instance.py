"""What a step holds: hand-worked schedules."""

import numpy as np
import pytest
from support.clusters import FormulaTimes, colocated, make_instance, play

MS = 1e-3


def test_a_prompt_is_cut_into_chunks_of_the_budget() -> None:
    """250 tokens in chunks of 100, 100, 50 at 1 ms a token; the last chunk emits the first token."""
    spec = colocated(make_instance(FormulaTimes(per_prompt_token_s=MS), max_tokens_per_step=100))
    result = play(spec, [250], [1], [0.0])
    assert result.ttft_s[0] == pytest.approx(0.25)
    assert result.e2e_s[0] == result.ttft_s[0]
    assert result.utilization()["colocated"].steps == 3


def test_a_rank_that_waits_at_the_barrier_is_busy() -> None:
    """Prompts of 0.3 and 0.1 s at once on two ranks: one step of 0.3 s, the time of the longer; idle until 1 s."""
    spec = colocated(make_instance(FormulaTimes(per_prompt_token_s=MS), ranks=2))
    result = play(spec, [300, 100, 1], [1, 1, 1], [0.0, 0.0, 1.0])
    np.testing.assert_allclose(result.ttft_s, [0.3, 0.3, MS])
    usage = result.run.end.usage["colocated"][0]
    assert (usage.busy_s, usage.prefill_s, usage.steps) == (pytest.approx(0.301), pytest.approx(0.301), 2)


def test_decode_shares_its_steps_with_the_chunks_of_a_newcomer() -> None:
    """Request 0 runs when request 1 comes: its 198 tokens take two chunks of 99 (one token of budget decodes).

    Step 1: prefill of 0, 10 ms. Step 2 (from 0.010): decode only, 10 ms; request 1 arrives inside it.
    Steps 3, 4: 99 ms + 10 ms each. Then both decode together.
    """
    spec = colocated(make_instance(FormulaTimes(per_prompt_token_s=MS, decode_base_s=10 * MS), max_tokens_per_step=100))
    result = play(spec, [10, 198], [6, 2], [0.0, 0.015])
    first = result.requests["first_token_s"].to_numpy()
    np.testing.assert_allclose(first, [0.010, 0.238])
    np.testing.assert_allclose(result.finish_s, [0.258, 0.248])


def test_the_newest_sequence_is_preempted_and_recomputed() -> None:
    """Room for 100 tokens; two sequences of 40 + 30 do not fit together to their ends.

    Both prefill in one step (80 ms), contexts 41 + 41, then one token a step: 50 + 50 after 9 steps, and the
    10th overflows (102 > 100): request 1 leaves with 11 tokens emitted. Request 0 needs 19 more steps. Then
    request 1 computes its 51 tokens again (which emits the 12th) and emits the other 18 alone.
    """
    spec = colocated(make_instance(FormulaTimes(per_prompt_token_s=MS, decode_base_s=10 * MS), capacity=100.0))
    result = play(spec, [40, 40], [30, 30], [0.0, 0.0])
    assert result.requests["preemptions"].tolist() == [0, 1]
    np.testing.assert_allclose(result.ttft_s, [0.08, 0.08])
    assert result.finish_s[0] == pytest.approx(0.08 + 29 * 0.010)
    assert result.finish_s[1] == pytest.approx(0.08 + 29 * 0.010 + 0.051 + 18 * 0.010)
    assert result.summary().to_json()["preemptions"] == 1


def test_draft_tokens_shorten_the_answer_by_the_acceptance_length() -> None:
    """2.5 tokens a step on average: 1000 tokens after the first take 400 steps."""
    spec = colocated(
        make_instance(FormulaTimes(per_prompt_token_s=MS, decode_base_s=10 * MS), draft_tokens=3, acceptance_length=2.5)
    )
    result = play(spec, [10], [1001], [0.0])
    assert result.tpot_s[0] == pytest.approx(10 * MS / 2.5)


def test_attention_ranks_share_the_load_and_the_busiest_sets_the_pace() -> None:
    """Four prompts on four ranks prefill in one step that lasts as long as the longest."""
    spec = colocated(make_instance(FormulaTimes(per_prompt_token_s=MS), ranks=4))
    result = play(spec, [100, 200, 300, 400], [1] * 4, [0.0] * 4)
    np.testing.assert_allclose(result.ttft_s, [0.4] * 4)
    assert result.utilization()["colocated"].steps == 1


def test_max_sequences_holds_later_ones_back() -> None:
    spec = colocated(make_instance(FormulaTimes(per_prompt_token_s=MS, decode_base_s=10 * MS), max_sequences=2))
    result = play(spec, [10] * 3, [11] * 3, [0.0] * 3)
    np.testing.assert_allclose(result.requests["queue_s"], [0.0, 0.0, 0.12])
    np.testing.assert_allclose(result.finish_s, [0.12, 0.12, 0.23])


def test_what_can_never_fit_is_rejected_with_its_reason() -> None:
    spec = colocated(make_instance(capacity=500.0))
    result = play(spec, [400, 400, 10], [100, 101, 10], [0.0, 0.0, 0.0])
    assert result.requests["status"].tolist() == ["finished", "rejected", "finished"]
    ((reason, count),) = result.rejections.items()
    assert count == 1
    assert "colocated pool, which has room for 500 tokens" in reason


def test_entry_overhead_is_part_of_ttft_and_holds_no_instance() -> None:
    spec = colocated(make_instance(FormulaTimes(per_prompt_token_s=MS, first_token_extra_s=0.5)))
    result = play(spec, [10, 10], [1, 1], [0.0, 1.0])
    np.testing.assert_allclose(result.ttft_s, [0.51, 0.51])
    assert result.run.end.usage["colocated"][0].busy_s == pytest.approx(0.02)
