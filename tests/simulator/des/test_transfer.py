"""KV hand-over: links are shared in order, and a full decode side holds prefill back."""

from typing import Any

import numpy as np
import pytest

from simulator.des.scenario import Transfer

MS = 1e-3


def test_a_transfer_takes_handshake_plus_bytes_over_rate(
    times: Any, instance: Any, disaggregated: Any, play: Any
) -> None:
    """1000 B over min(2 x 100, 4 x 100) B/s x 0.5 = 10 s, and 0.25 s of handshake."""
    spec = disaggregated(
        instance(times(per_prompt_token_s=MS), gpus=2, nic_bandwidth=100.0),
        instance(times(decode_base_s=0.1), gpus=4, nic_bandwidth=100.0),
        transfer=Transfer(efficiency=0.5, handshake_s=0.25),
        transfer_bytes=lambda tokens: 10.0 * tokens,
    )
    result = play(spec, [100], [3], [0.0])
    assert result.requests["transfer_s"][0] == pytest.approx(10.25)
    assert result.finish_s[0] == pytest.approx(0.1 + 10.25 + 2 * 0.1)
    assert result.ttft_s[0] == pytest.approx(0.1)


def test_transfers_of_one_prefill_instance_follow_each_other(
    times: Any, instance: Any, disaggregated: Any, play: Any
) -> None:
    """Four prompts end prefill together; each needs 1 s of the same NIC, whatever decode instance takes it."""
    spec = disaggregated(
        instance(times(per_prompt_token_s=0.0), nic_bandwidth=1000.0),
        instance(times(decode_base_s=1e-9), nic_bandwidth=1000.0),
        counts=(1, 4),
        transfer=Transfer(efficiency=1.0, handshake_s=0.0),
        transfer_bytes=lambda tokens: 1000.0,
    )
    result = play(spec, [10] * 4, [2] * 4, [0.0] * 4)
    np.testing.assert_allclose(sorted(result.requests["transfer_s"]), [1.0, 2.0, 3.0, 4.0])
    usage = result.run.end.usage
    assert usage["prefill"][0].link_s == pytest.approx(4.0)
    assert sum(u.link_s for u in usage["decode"]) == pytest.approx(4.0)


def test_a_full_decode_side_holds_kv_at_prefill_and_then_prefill_itself(
    times: Any, instance: Any, disaggregated: Any, play: Any
) -> None:
    """Decode has room for one sequence, prefill for two: the third prompt waits until the first one is done.

    Prefill takes 0.1 s each; decoding 10 tokens takes 1 s each, one after the other.
    """
    spec = disaggregated(
        instance(times(per_prompt_token_s=MS), capacity=205.0, max_tokens_per_step=100),
        instance(times(decode_base_s=0.1), capacity=125.0),
        transfer=Transfer(efficiency=1.0, handshake_s=0.0),
    )
    result = play(spec, [100] * 4, [11] * 4, [0.0] * 4)
    table = result.requests
    # 0 leaves prefill at 0.1 and decodes till 1.1; 1 (ready at 0.2) follows till 2.1, and so on.
    np.testing.assert_allclose(table["finish_s"], [1.1, 2.1, 3.1, 4.1])
    # Two KVs fit at prefill: 2 enters when 0 has left at 0.1 and 1 has been computed; 3 when 1 leaves at 1.1.
    np.testing.assert_allclose(table["first_token_s"], [0.1, 0.2, 0.3, 1.2])
    np.testing.assert_allclose(table["transfer_s"], [0.0, 0.9, 1.8, 1.9], atol=1e-12)


def test_a_sequence_preempted_on_the_decode_side_is_recomputed_there(
    times: Any, instance: Any, disaggregated: Any, play: Any
) -> None:
    spec = disaggregated(
        instance(times(per_prompt_token_s=0.0)),
        instance(times(per_prompt_token_s=MS, decode_base_s=10 * MS), capacity=100.0),
        transfer=Transfer(efficiency=1.0, handshake_s=0.0),
    )
    result = play(spec, [40, 40], [30, 30], [0.0, 0.0])
    assert result.requests["preemptions"].tolist() == [0, 1]
    np.testing.assert_allclose(result.finish_s, [29 * 0.010, 29 * 0.010 + 0.051 + 18 * 0.010])
    assert result.requests["prefill_instance"].tolist() == [0, 0]


def test_a_transfer_counts_only_for_the_time_inside_the_measured_span(
    times: Any, instance: Any, disaggregated: Any, play: Any
) -> None:
    """One wire of 4 s from 0 s on; measured from the second arrival at 3 s to the third at 5 s: 1 s of 2."""
    spec = disaggregated(
        instance(times(per_prompt_token_s=0.0), nic_bandwidth=100.0),
        instance(times(decode_base_s=1e-9), nic_bandwidth=100.0),
        transfer=Transfer(efficiency=1.0, handshake_s=0.0),
        transfer_bytes=lambda tokens: 100.0 * tokens,
    )
    result = play(spec, [4, 1, 1], [2, 1, 1], [0.0, 3.0, 5.0], warmup=1)
    assert {name: pool["link_fraction"] for name, pool in result.utilization().items()} == pytest.approx(
        {"prefill": 0.5, "decode": 0.5}
    )


@pytest.mark.parametrize(("size", "exposed_s"), [(4000.0, 4.0 + 2.0 / 4 - 2.0), (400.0, 0.1)])
def test_layerwise_transfers_hide_behind_prefill(
    times: Any, instance: Any, disaggregated: Any, play: Any, size: float, exposed_s: float
) -> None:
    """Four layers, 2 s of prefill. 4 s of wire start after the first layer; 0.4 s leave the last layer's part."""
    spec = disaggregated(
        instance(times(per_prompt_token_s=MS), nic_bandwidth=1000.0),
        instance(times(decode_base_s=0.1), nic_bandwidth=1000.0),
        transfer=Transfer(efficiency=1.0, handshake_s=0.0, overlap="layerwise"),
        transfer_bytes=lambda tokens: size,
        layers=4,
    )
    result = play(spec, [2000], [2], [1.0])
    assert result.requests["transfer_s"][0] == pytest.approx(exposed_s)


def test_small_messages_are_slow(times: Any, instance: Any, disaggregated: Any, play: Any) -> None:
    """1000 B at half_rate_bytes=1000 go at half the rate; in ten layers each 100 B at 1/11 of it."""
    for overlap, wire_s in [("none", 2.0), ("layerwise", 11.0)]:
        spec = disaggregated(
            instance(times(per_prompt_token_s=0.0), nic_bandwidth=1000.0),
            instance(times(), nic_bandwidth=1000.0),
            transfer=Transfer(efficiency=1.0, handshake_s=0.0, half_rate_bytes=1000.0, overlap=overlap),
            transfer_bytes=lambda tokens: 1000.0,
            layers=10,
        )
        assert play(spec, [5], [2], [1.0]).requests["transfer_s"][0] == pytest.approx(wire_s)


def test_an_oversubscribed_spine_bounds_all_transfers_together(
    times: Any, instance: Any, disaggregated: Any, play: Any
) -> None:
    """Four pairs of 1000 B/s under a spine of 2000 B/s: 4 x 1000 B take 2 s instead of 1 s."""

    def last(oversubscription: float) -> float:
        spec = disaggregated(
            instance(times(per_prompt_token_s=0.0), nic_bandwidth=1000.0),
            instance(times(decode_base_s=1e-9), nic_bandwidth=1000.0),
            counts=(4, 4),
            router="round_robin",
            transfer=Transfer(efficiency=1.0, handshake_s=0.0, oversubscription=oversubscription),
            transfer_bytes=lambda tokens: 1000.0,
        )
        return float(play(spec, [5] * 4, [2] * 4, [0.0] * 4).requests["transfer_s"].max())

    assert last(1.0) == pytest.approx(1.0)
    assert last(2.0) == pytest.approx(2.0)
