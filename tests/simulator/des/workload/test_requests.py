import numpy as np
import pytest

from simulator.des.workload.requests import draw_arrivals, draw_lengths, make_requests
from simulator.scenario import ClosedLoop, Lengths, OpenLoop


@pytest.mark.parametrize("burstiness", [1.0, 4.0, 0.25])
def test_gaps_have_the_asked_rate_and_squared_variation(burstiness: float) -> None:
    arrivals = draw_arrivals(5.0, burstiness, 200_000, np.random.default_rng(3))
    gaps = np.diff(arrivals)
    assert np.mean(gaps) == pytest.approx(0.2, rel=0.02)
    assert np.var(gaps) / np.mean(gaps) ** 2 == pytest.approx(burstiness, rel=0.03)


def test_lengths_follow_their_distributions() -> None:
    rng = np.random.default_rng(4)
    count = 200_000
    uniform = draw_lengths(Lengths(kind="uniform", low=3, high=7), count, rng)
    assert sorted(set(uniform.tolist())) == [3, 4, 5, 6, 7]
    exponential = draw_lengths(Lengths(kind="exponential", mean=1000), count, rng)
    assert np.mean(exponential) == pytest.approx(1000, rel=0.01)
    assert np.std(exponential) == pytest.approx(1000, rel=0.01)
    lognormal = draw_lengths(Lengths(kind="lognormal", median=500, sigma=0.8), count, rng)
    assert np.median(lognormal) == pytest.approx(500, rel=0.01)
    assert np.std(np.log(lognormal)) == pytest.approx(0.8, rel=0.01)


def test_lengths_are_whole_and_at_least_one_and_cut_at_the_maximum() -> None:
    rng = np.random.default_rng(5)
    tiny = draw_lengths(Lengths(kind="exponential", mean=0.2), 1000, rng)
    assert tiny.min() == 1
    cut = draw_lengths(Lengths(kind="lognormal", median=100, sigma=2, maximum=150), 1000, rng)
    assert cut.max() == 150
    assert draw_lengths(Lengths(value=12), 3, rng).tolist() == [12, 12, 12]


def test_changing_one_side_leaves_the_other_streams_alone() -> None:
    def drawn(prompt: Lengths) -> tuple[np.ndarray, np.ndarray]:
        loop = OpenLoop(rate=2, requests=50, prompt=prompt, output=Lengths(kind="uniform", low=1, high=99))
        requests = make_requests(loop, np.random.SeedSequence(7))
        assert requests.arrival_s is not None
        return requests.arrival_s, requests.output_tokens

    first = drawn(Lengths(value=10))
    second = drawn(Lengths(kind="exponential", mean=300))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


def test_a_closed_loop_has_clients_instead_of_arrival_times() -> None:
    loop = ClosedLoop(concurrency=4, requests=9, prompt=Lengths(value=1), output=Lengths(value=1))
    requests = make_requests(loop, np.random.SeedSequence(0))
    assert requests.arrival_s is None
    assert requests.concurrency == 4
    assert len(requests) == 9
