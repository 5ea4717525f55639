"""KV hand-over: links are shared fairly, and a full decode side holds prefill back."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.clusters import FormulaTimes, disaggregated, make_instance, play

from simulator.des.simulate import simulate
from simulator.model.kv import transfer_bytes
from simulator.model.presets import load_model
from simulator.scenario import Scenario, ScenarioError, Transfer, parse_scenario

MS = 1e-3
PLAIN = Transfer(efficiency=1.0, handshake_s=0.0, half_rate_bytes=0.0)


def test_a_transfer_takes_handshake_plus_bytes_over_rate() -> None:
    """1000 B over min(2 x 100, 4 x 100) B/s x 0.5 = 10 s, and 0.25 s of handshake."""
    spec = disaggregated(
        make_instance(FormulaTimes(per_prompt_token_s=MS), gpus=2, nic_bandwidth=100.0),
        make_instance(FormulaTimes(decode_base_s=0.1), gpus=4, nic_bandwidth=100.0),
        transfer=Transfer(efficiency=0.5, handshake_s=0.25, half_rate_bytes=0.0),
        transfer_bytes=lambda tokens: 10.0 * tokens,
    )
    result = play(spec, [100], [3], [0.0])
    assert result.requests["transfer_s"][0] == pytest.approx(10.25)
    assert result.finish_s[0] == pytest.approx(0.1 + 10.25 + 2 * 0.1)
    assert result.ttft_s[0] == pytest.approx(0.1)
    # Room for 101 B is taken on the prefill instance from the prompt's beginning until its KV has left, and on the
    # decode instance from its end on, to which two steps add a byte each as they end.
    assert result.run.end.usage["prefill"][0].kv_byte_s == pytest.approx(101 * (0.1 + 10.25))
    assert result.run.end.usage["decode"][0].kv_byte_s == pytest.approx(101 * (10.25 + 0.1) + 102 * 0.1)


def test_first_tokens_from_decode_come_after_hand_over_and_a_step() -> None:
    """As above: 0.1 s of prompt, 10.25 s of transfer, steps of 0.1 s. A request of one token ends with its prompt."""
    spec = disaggregated(
        make_instance(FormulaTimes(per_prompt_token_s=MS), gpus=2, nic_bandwidth=100.0),
        make_instance(FormulaTimes(decode_base_s=0.1), gpus=4, nic_bandwidth=100.0),
        transfer=Transfer(efficiency=0.5, handshake_s=0.25, half_rate_bytes=0.0),
        transfer_bytes=lambda tokens: 10.0 * tokens,
        first_token="decode",
    )
    result = play(spec, [100, 100, 100], [3, 1, 2], [0.0, 20.0, 40.0])
    assert result.requests["prompt_end_s"].tolist() == pytest.approx([0.1, 20.1, 40.1])
    assert result.requests["first_token_s"].tolist() == pytest.approx([10.45, 20.1, 50.45])
    assert result.finish_s.tolist() == pytest.approx([10.55, 20.1, 50.45])
    assert result.requests["transfer_s"].tolist() == pytest.approx([10.25, np.nan, 10.25], nan_ok=True)
    assert result.tpot_s.tolist() == pytest.approx([0.1 / 2, np.nan, 0.0], nan_ok=True)


def test_waiting_for_decode_room_is_before_the_first_token_from_decode() -> None:
    """One place to decode: the second of two that arrive together begins after the first has had its nine steps."""
    spec = disaggregated(
        make_instance(FormulaTimes(per_prompt_token_s=MS)),
        make_instance(FormulaTimes(decode_base_s=0.1), max_sequences=1),
        transfer=PLAIN,
        first_token="decode",
    )
    result = play(spec, [100, 100], [10, 10], [0.0, 0.0])
    assert result.ttft_s.tolist() == pytest.approx([0.2 + 0.1, 0.2 + 9 * 0.1 + 0.1])
    assert result.tpot_s.tolist() == pytest.approx([0.8 / 9] * 2)


def test_transfers_of_one_prefill_instance_share_its_link() -> None:
    """Four prompts end prefill together; each is 1 s of the same link, whatever decode instance takes it."""
    spec = disaggregated(
        make_instance(FormulaTimes(per_prompt_token_s=0.0), nic_bandwidth=1000.0),
        make_instance(FormulaTimes(decode_base_s=1e-9), nic_bandwidth=1000.0),
        counts=(1, 4),
        transfer=PLAIN,
        transfer_bytes=lambda tokens: 1000.0,
    )
    result = play(spec, [10] * 4, [2] * 4, [0.0] * 4)
    np.testing.assert_allclose(result.requests["transfer_s"], 4.0)
    usage = result.run.end.usage
    assert usage["prefill"][0].link_s == pytest.approx(4.0)
    assert [u.link_s for u in usage["decode"]] == pytest.approx([1.0] * 4)


def test_three_transfers_get_max_min_fair_rates() -> None:
    """Prefill 0 sends to decode 0 and 1, prefill 1 to decode 0: two share each of the links p0 and d0 of 100 B/s.

    All go at 50 B/s. The 50 B from p0 to d1 are through at 1 s; then p0 -> d0 still shares d0 with p1 -> d0 till 2 s.
    """
    spec = disaggregated(
        make_instance(FormulaTimes(per_prompt_token_s=0.0), nic_bandwidth=100.0),
        make_instance(FormulaTimes(decode_base_s=1e-9), nic_bandwidth=100.0),
        counts=(2, 2),
        router="round_robin",
        transfer=PLAIN,
        transfer_bytes=lambda tokens: float(tokens),
    )
    # Entry in turn: 0 and 2 to p0, 1 to p1; the three end together and are handed over in the order 0 (d0), 2 (d1)
    # from p0, 1 (d0) from p1.
    result = play(spec, [100, 100, 50], [2] * 3, [0.0] * 3)
    table = result.requests
    assert table["prefill_instance"].tolist() == [0, 1, 0]
    assert table["decode_instance"].tolist() == [0, 0, 1]
    np.testing.assert_allclose(table["transfer_s"], [2.0, 2.0, 1.0])


def test_a_full_decode_side_holds_kv_at_prefill_and_then_prefill_itself() -> None:
    """Decode has room for one sequence, prefill for two: the third prompt waits until the first one is done.

    Prefill takes 0.1 s each; decoding 10 tokens takes 1 s each, one after the other.
    """
    spec = disaggregated(
        make_instance(FormulaTimes(per_prompt_token_s=MS), capacity=205.0, max_tokens_per_step=100),
        make_instance(FormulaTimes(decode_base_s=0.1), capacity=125.0),
        transfer=PLAIN,
    )
    result = play(spec, [100] * 4, [11] * 4, [0.0] * 4)
    table = result.requests
    # 0 leaves prefill at 0.1 and decodes till 1.1; 1 (ready at 0.2) follows till 2.1, and so on.
    np.testing.assert_allclose(table["finish_s"], [1.1, 2.1, 3.1, 4.1])
    # Two KVs fit at prefill: 2 enters when 0 has left at 0.1 and 1 has been computed; 3 when 1 leaves at 1.1.
    np.testing.assert_allclose(table["first_token_s"], [0.1, 0.2, 0.3, 1.2])
    np.testing.assert_allclose(table["transfer_s"], [0.0, 0.9, 1.8, 1.9], atol=1e-12)


def test_a_sequence_preempted_on_the_decode_side_is_recomputed_there() -> None:
    spec = disaggregated(
        make_instance(FormulaTimes(per_prompt_token_s=0.0)),
        make_instance(FormulaTimes(per_prompt_token_s=MS, decode_base_s=10 * MS), capacity=100.0),
        transfer=PLAIN,
    )
    result = play(spec, [40, 40], [30, 30], [0.0, 0.0])
    assert result.requests["preemptions"].tolist() == [0, 1]
    np.testing.assert_allclose(result.finish_s, [29 * 0.010, 29 * 0.010 + 0.051 + 18 * 0.010])
    assert result.requests["prefill_instance"].tolist() == [0, 0]


def test_a_transfer_counts_only_for_the_time_inside_the_measured_span() -> None:
    """One wire of 4 s from 0 s on; measured from the second arrival at 3 s to the third at 5 s: 1 s of 2."""
    spec = disaggregated(
        make_instance(FormulaTimes(per_prompt_token_s=0.0), nic_bandwidth=100.0),
        make_instance(FormulaTimes(decode_base_s=1e-9), nic_bandwidth=100.0),
        transfer=PLAIN,
        transfer_bytes=lambda tokens: 100.0 * tokens,
    )
    result = play(spec, [4, 1, 1], [2, 1, 1], [0.0, 3.0, 5.0], warmup=1)
    assert {name: pool.link_fraction for name, pool in result.utilization().items()} == pytest.approx(
        {"prefill": 0.5, "decode": 0.5}
    )


@pytest.mark.parametrize(("size", "exposed_s"), [(4000.0, 4.0 + 2.0 / 4 - 2.0), (400.0, 0.1)])
def test_layerwise_transfers_hide_behind_prefill(size: float, exposed_s: float) -> None:
    """Four layers, 2 s of prefill. 4 s of wire start after the first layer; 0.4 s leave the last layer's part."""
    spec = disaggregated(
        make_instance(FormulaTimes(per_prompt_token_s=MS), nic_bandwidth=1000.0),
        make_instance(FormulaTimes(decode_base_s=0.1), nic_bandwidth=1000.0),
        transfer=PLAIN.model_copy(update={"overlap": "layerwise"}),
        transfer_bytes=lambda tokens: size,
        layers=4,
    )
    result = play(spec, [2000], [2], [1.0])
    assert result.requests["transfer_s"][0] == pytest.approx(exposed_s)


def test_small_messages_are_slow() -> None:
    """1000 B at half_rate_bytes=1000 go at half the rate; in ten layers each 100 B at 1/11 of it."""
    for overlap, wire_s in [("none", 2.0), ("layerwise", 11.0)]:
        spec = disaggregated(
            make_instance(FormulaTimes(per_prompt_token_s=0.0), nic_bandwidth=1000.0),
            make_instance(FormulaTimes(), nic_bandwidth=1000.0),
            transfer=Transfer(efficiency=1.0, handshake_s=0.0, half_rate_bytes=1000.0, overlap=overlap),
            transfer_bytes=lambda tokens: 1000.0,
            layers=10,
        )
        assert play(spec, [5], [2], [1.0]).requests["transfer_s"][0] == pytest.approx(wire_s)


def test_an_oversubscribed_spine_bounds_all_transfers_together() -> None:
    """Four pairs of 1000 B/s under a spine of 2000 B/s: 4 x 1000 B take 2 s instead of 1 s."""

    def last(oversubscription: float) -> float:
        spec = disaggregated(
            make_instance(FormulaTimes(per_prompt_token_s=0.0), nic_bandwidth=1000.0),
            make_instance(FormulaTimes(decode_base_s=1e-9), nic_bandwidth=1000.0),
            counts=(4, 4),
            router="round_robin",
            transfer=PLAIN.model_copy(update={"oversubscription": oversubscription}),
            transfer_bytes=lambda tokens: 1000.0,
        )
        return float(play(spec, [5] * 4, [2] * 4, [0.0] * 4).requests["transfer_s"].max())

    assert last(1.0) == pytest.approx(1.0)
    assert last(2.0) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("gpus", "rails", "seconds"),
    [
        (1, 1, [1.0, 1.0, 1.0, 1.0]),  # 2000 B/s for the two that send
        (1, 2, [2.0, 2.0, 2.0, 2.0]),  # 0 and 2 are on rail 0, which has 1000 B/s; rail 1 has nothing to do
        (1, 4, [2.0, 2.0, 2.0, 2.0]),  # a rail each, of 500 B/s
        (2, 2, [0.5, 0.5, 0.5, 0.5]),  # each has both rails, 4000 B/s for all
        (2, 4, [1.0, 1.0, 1.0, 1.0]),  # 0 and 2 are on rails 0 and 1, 2000 B/s
    ],
)
def test_rails_keep_to_themselves(gpus: int, rails: int, seconds: list[float]) -> None:
    """Four prefill instances of 1000 B/s an accelerator, 2 to 1 over-subscribed; 0 and 2 send 1000 B each, then again.

    The prompts of 1 and 3 emit one token and send nothing.
    """
    spec = disaggregated(
        make_instance(FormulaTimes(per_prompt_token_s=0.0), nic_bandwidth=1000.0, gpus=gpus),
        make_instance(FormulaTimes(decode_base_s=1e-9), nic_bandwidth=1000.0, gpus=gpus),
        counts=(4, 4),
        router="round_robin",
        transfer=PLAIN.model_copy(update={"oversubscription": 2.0, "rails": rails}),
        transfer_bytes=lambda tokens: 1000.0,
    )
    table = play(spec, [5] * 8, [2, 1] * 4, [0.0] * 4 + [10.0] * 4).requests
    assert table["transfer_s"].dropna().tolist() == pytest.approx(seconds)


def test_rails_that_cannot_be_shared_out_are_refused() -> None:
    spec = disaggregated(
        make_instance(gpus=2), make_instance(), transfer=PLAIN.model_copy(update={"oversubscription": 2.0, "rails": 3})
    )
    with pytest.raises(ScenarioError, match=r"rails=3 cannot be shared out to attention ranks of 2 accelerators"):
        play(spec, [5], [2], [0.0])
    with pytest.raises(ScenarioError, match="rails=8 divide a spine that never limits anything"):
        _rack(1, rails=8)


def test_a_layerwise_transfer_streams_while_later_chunks_are_computed() -> None:
    """Two chunks of 1 s. The first one's 500 B and three of four layers of the second, 375 B, leave in the second
    step at 1000 B/s at most; 125 B are left when it ends."""
    spec = disaggregated(
        make_instance(FormulaTimes(per_prompt_token_s=MS), nic_bandwidth=1000.0, max_tokens_per_step=1000),
        make_instance(FormulaTimes(decode_base_s=0.1), nic_bandwidth=1000.0),
        transfer=PLAIN.model_copy(update={"overlap": "layerwise"}),
        transfer_bytes=lambda tokens: 1000.0,
        layers=4,
    )
    result = play(spec, [2000], [2], [0.0])
    assert result.requests["transfer_s"][0] == pytest.approx(0.125)
    assert result.run.end.usage["prefill"][0].link_s == pytest.approx(1.0)


@pytest.mark.parametrize("overlap", ["none", "layerwise"])
def test_a_link_is_never_more_than_full_in_any_span(overlap: str) -> None:
    """One link kept busy all the time: measured from an arrival to another it is full, and not fuller."""
    spec = disaggregated(
        make_instance(FormulaTimes(per_prompt_token_s=MS), nic_bandwidth=1000.0),
        make_instance(FormulaTimes(decode_base_s=1e-9), nic_bandwidth=1000.0),
        transfer=PLAIN.model_copy(update={"overlap": overlap}),
        transfer_bytes=lambda tokens: 20.0 * tokens,
        layers=4,
    )
    arrivals = np.arange(60) * 0.1
    result = play(spec, [100] * 60, [2] * 60, arrivals.tolist(), warmup=20)
    use = result.utilization()
    assert use["prefill"].link_fraction == pytest.approx(1.0)
    assert use["decode"].link_fraction == pytest.approx(1.0)


def test_a_full_decode_side_stalls_prefill_until_it_computes_nothing() -> None:
    """Decode serves one sequence in 1 s; prefill could compute ten prompts in that time and has room for two."""
    spec = disaggregated(
        make_instance(FormulaTimes(per_prompt_token_s=MS), capacity=205.0, max_tokens_per_step=100),
        make_instance(FormulaTimes(decode_base_s=0.1), capacity=125.0),
        transfer=PLAIN,
    )
    result = play(spec, [100] * 20, [11] * 20, [0.0] * 20, warmup=4)
    use = result.utilization()
    assert use["decode"].busy_fraction == pytest.approx(1.0, abs=0.01)
    assert use["prefill"].busy_fraction == pytest.approx(0.1, abs=0.02)
    # In the steady state a first token comes each second, as decode lets go of a sequence, not each 0.1 s.
    np.testing.assert_allclose(np.diff(result.requests["first_token_s"])[4:], 1.0)


def test_small_transfers_and_large_ones_take_as_long_as_published() -> None:
    """Throughput between two nodes of 200 GB/s, Mooncake under vLLM (8 x RoCE) and SGLang (4 x 400 GbE).

    The two stacks differ by a factor of four at small sizes; the defaults lie between them.
    """
    published = {20e6: 36.5, 146e6: 95, 578e6: 119, 4.5e9: 142, 49e6: 23.8, 394e6: 99.5, 1.58e9: 144, 12.62e9: 164}
    keys = Transfer()
    errors = [
        keys.handshake_s + (size + keys.half_rate_bytes) / (keys.achieved * 200e9) - size / (rate * 1e9)
        for size, rate in published.items()
    ]
    relative = [error / (size / (rate * 1e9)) for error, (size, rate) in zip(errors, published.items(), strict=True)]
    assert abs(np.mean(np.log1p(relative))) < 0.03
    assert np.median(np.abs(relative)) < 0.15


def _rack(instances: int, gpu: str = "gb200", **transfer: Any) -> Scenario:
    pool = {"gpu": gpu, "instances": instances, "tp": 4}
    return parse_scenario(
        {
            "model": "qwen3-30b-a3b",
            "workload": {"kind": "open_loop", "rate": 1.0, "requests": 20, "prompt": 4000, "output": 20},
            "deployment": {"prefill": pool, "decode": pool, "transfer": transfer},
        }
    )


@pytest.mark.parametrize(("network", "rate"), [("scale_up", 0.83 * 4 * 900e9), ("scale_out", 0.73 * 4 * 50e9)])
def test_inside_a_rack_kv_takes_the_fabric(network: str, rate: float) -> None:
    """NVLink 5 moves 900 GB/s each way, the NICs of a GB200 tray 400 Gbit/s each; four of them a rank."""
    table = simulate(_rack(1, network=network)).requests
    size = transfer_bytes(load_model("qwen3-30b-a3b"), 4000)
    assert size == 4000 * 48 * 2 * 4 * 128 * 2  # bf16 keys and values of 4 heads in 48 layers
    np.testing.assert_allclose(table["transfer_s"], 0.00075 + (size + 140e3) / rate)


def test_pools_that_share_no_domain_are_refused_the_fabric() -> None:
    for scenario in (_rack(10, network="scale_up"), _rack(2, gpu="h200_sxm", network="scale_up")):
        with pytest.raises(ScenarioError, match=r"transfer.network='scale_up' needs all pools in one scale-up domain"):
            simulate(scenario)
    with pytest.raises(ScenarioError, match="oversubscription=2 is of a spine between NICs"):
        _rack(1, network="scale_up", oversubscription=2.0)


def test_kv_aware_spares_the_instance_with_the_long_context() -> None:
    """600 tokens go to instance 0; prompts of 100 then fill instance 1 until it holds more, by count they take turns.

    Each decodes for seconds, so nothing leaves; room claimed after each: (601, 0), (601, 101), ... (601, 606), and the
    eighth goes to instance 0.
    """
    spec = disaggregated(
        make_instance(FormulaTimes(per_prompt_token_s=0.0)),
        make_instance(FormulaTimes(decode_base_s=1.0), capacity=1e4),
        counts=(1, 2),
        transfer=PLAIN,
        decode_router="kv_aware",
    )
    arrivals = [0.01 * i for i in range(8)]
    load = ([600, *[100] * 7], [9] * 8, arrivals)
    assert play(spec, *load).requests["decode_instance"].tolist() == [0, 1, 1, 1, 1, 1, 1, 0]
    by_count = play(replace(spec, decode_router=None), *load).requests["decode_instance"].tolist()
    assert by_count == [0, 1, 0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("staged", [False, True])
def test_a_staged_newcomer_misses_no_step(staged: bool) -> None:
    """Prompts of 40 and 60 tokens end prefill together at 0.1 s; decode has one place and steps of 1 s.

    Alone on the link, their KV takes 0.2 s and 0.3 s. Staged, both share it till 0.5 s and 0.6 s, and the second joins
    as the first ends; else it leaves when the place is free.
    """
    spec = disaggregated(
        make_instance(FormulaTimes(per_prompt_token_s=MS), nic_bandwidth=1000.0),
        make_instance(FormulaTimes(decode_base_s=1.0), nic_bandwidth=1000.0, max_sequences=1),
        transfer=PLAIN.model_copy(update={"staged": staged}),
        transfer_bytes=lambda tokens: 5.0 * tokens,
    )
    result = play(spec, [40, 60], [3, 3], [0.0, 0.0])
    np.testing.assert_allclose(result.finish_s, [2.5, 4.5] if staged else [2.3, 4.6])
    held = result.run.end.usage["prefill"][0].kv_byte_s
    assert held == pytest.approx((41 + 61) * 0.1 + (41 * 0.4 + 61 * 0.5 if staged else 41 * 0.2 + 61 * 2.5))
