import numpy as np
import pytest
from support.clusters import FormulaTimes, colocated, make_instance, play

from simulator.des.simulate import simulate
from simulator.model.acceptance import CLASSES, class_chances, class_rates, summed_tokens_per_step, tokens_per_step
from simulator.scenario import Scenario, parse_scenario


def test_tokens_per_step_are_those_of_drafts_drawn_one_by_one() -> None:
    """A step emits the accepted drafts up to the first refused one, and one token more."""
    rng = np.random.default_rng(0)
    for chance, drafts in [(0.3, 1), (0.7, 3), (0.95, 6)]:
        accepted = np.cumprod(rng.random((200_000, drafts)) < chance, axis=1).sum(axis=1)
        expected = tokens_per_step(chance, drafts)
        assert summed_tokens_per_step(np.array([chance]), drafts)[0] == pytest.approx(expected)
        assert np.mean(1 + accepted) == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize(("mean", "spread"), [(0.6, 0.2), (0.97, 0.05), (0.02, 0.05)])
def test_class_chances_are_means_of_eighths_of_a_beta_distribution(mean: float, spread: float) -> None:
    count = mean * (1 - mean) / spread**2 - 1
    drawn = np.sort(np.random.default_rng(1).beta(mean * count, (1 - mean) * count, 800_000))
    chances = class_chances(mean, spread)
    np.testing.assert_allclose(chances, drawn.reshape(CLASSES, -1).mean(axis=1), atol=1e-3)
    assert chances.mean() == pytest.approx(mean, rel=1e-9)
    assert 0.8 * spread < chances.std() < spread  # what varies inside a class is lost


@pytest.mark.parametrize(("length", "drafts", "spread"), [(2.5, 3, 0.2), (1.5, 1, 0.3), (3.9, 3, 0.02), (1.05, 3, 0.1)])
def test_the_mean_over_steps_is_the_acceptance_length(length: float, drafts: int, spread: float) -> None:
    rates = np.array(class_rates(length, drafts, spread))
    assert CLASSES / np.sum(1 / rates) == pytest.approx(length, rel=1e-12)
    assert np.all(np.diff(rates) > 0)
    assert rates[0] >= 1
    assert rates[-1] <= drafts + 1


def test_no_spread_is_one_class() -> None:
    assert class_rates(2.5, 3, 0.0) == (2.5,)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"acceptance_length": 4.0}, "acceptance_spread=0.1 is more than the chances of 3 drafts can vary where"),
        ({"acceptance_length": 2.5, "acceptance_spread": 0.45}, "acceptance_spread=0.45 is more than"),
        ({"draft_tokens": 0}, "acceptance_spread=0.1 is of drafts, of which there are none"),
    ],
)
def test_a_spread_that_no_distribution_has_is_refused(keys: dict[str, float], told: str) -> None:
    pool = {"gpu": "h200_sxm", "tp": 8, "draft_tokens": 3, "acceptance_spread": 0.1} | keys
    with pytest.raises(ValueError, match=told):
        parse_scenario({"model": "qwen3-235b-a22b", "workload": LOAD, "deployment": {"colocated": pool}})


LOAD = {"kind": "open_loop", "rate": 1.0, "prompt": 10, "output": 4001}


def test_a_request_decodes_as_fast_as_its_class() -> None:
    """4,000 tokens after the first at 10 ms a step, all at once: the time of each is steps of its own rate."""
    fields = {"draft_tokens": 3, "acceptance_length": 2.5, "acceptance_spread": 0.2}
    server = make_instance(FormulaTimes(per_prompt_token_s=0.0, decode_base_s=0.01), ranks=2, **fields)
    result = play(colocated(server), [10] * 400, [4001] * 400, [0.0] * 400)
    paces = np.array(result.run.log.pace)
    expected = 0.01 / np.array(server.rates)[paces]
    np.testing.assert_allclose(result.tpot_s, expected, rtol=1e-3)
    assert set(paces) == set(range(CLASSES))
    # drawn independently of all else: the mean over requests is the closed form's within its standard error
    error = np.std(0.01 / np.array(server.rates)) / 20
    assert abs(result.tpot_s.mean() - 0.01 / 2.5) < 3 * error


def test_the_spread_reaches_the_instances_of_a_scenario() -> None:
    pool = {"gpu": "h200_sxm", "dp": 8, "ep": 8, "draft_tokens": 1, "acceptance_length": 1.6, "acceptance_spread": 0.2}
    scenario: Scenario = parse_scenario(
        {"model": "deepseek-v4-flash", "workload": LOAD | {"requests": 5}, "deployment": {"colocated": pool}}
    )
    result = simulate(scenario)
    assert result.spec.entry[0].instance.rates == class_rates(1.6, 1, 0.2)
    assert len(result.run.log.pace) == 5
