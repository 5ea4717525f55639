from pathlib import Path

import pytest

from simulator.scenario import OpenLoop, ScenarioError, Trace, load_scenario

GOOD = """
model = "qwen3-235b-a22b"
[workload]
kind = "open_loop"
rate = 4.0
prompt = 1000
output = { kind = "uniform", low = 10, high = 20 }
[deployment.colocated]
gpu = "h200_sxm"
tp = 8
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "scenario.toml"
    path.write_text(text)
    return path


def test_a_bare_number_is_a_constant_length(tmp_path: Path) -> None:
    scenario = load_scenario(written(tmp_path, GOOD))
    assert isinstance(scenario.workload, OpenLoop)
    assert scenario.workload.prompt.value == 1000
    assert scenario.deployment is not None
    assert scenario.deployment.gpus == 8


def test_paths_are_taken_from_the_folder_of_the_file(tmp_path: Path) -> None:
    text = 'model = "own/config.json"\n[workload]\nkind = "trace"\npath = "traces/a.csv"\n'
    scenario = load_scenario(written(tmp_path, text))
    assert isinstance(scenario.workload, Trace)
    assert scenario.workload.path == tmp_path / "traces" / "a.csv"
    assert scenario.model == str(tmp_path / "own" / "config.json")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("rate = 4.0", "rate = -4.0", "workload.rate=-4.0"),
        ("rate = 4.0", "rate = inf", "workload.rate=inf"),
        ("rate = 4.0", "", "key 'workload.rate' is missing"),
        ("rate = 4.0", "rate = 4.0\nrequests = 0", "workload.requests=0"),
        ("tp = 8", "tq = 8", "unknown key 'deployment.colocated.tq'"),
        ("low = 10", "low = 30", "high=20 is below low=30"),
        ('kind = "open_loop"', 'kind = "poisson"', "workload"),
        ("[deployment.colocated]", "[deployment.prefill]", "give either both"),
        ("tp = 8", "tp = 8\nep = 3", "ep=3 does not divide"),
        ("tp = 8", "acceptance_length = 2", "acceptance_length=2 exceeds"),
        ("[deployment.col", '[deployment]\ndecode_router = "kv_aware"\n[deployment.col', "kv_aware has no pool to"),
        ("[deployment.col", '[deployment]\nfirst_token = "decode"\n[deployment.col', "a colocated pool is one"),
        ("tp = 8", "tp = = 8", "not valid TOML"),
        ("tp = 8", "tp = 8\nmax_long_partial_prefills = 1", "=1 needs long_prefill_token_threshold"),
        ("tp = 8", 'tp = 8\nlong_prefill_token_threshold = 9\nbatching = "inflight"', "=9 is of batching=chunked"),
        ("rate = 4.0", "rate = 1e300", "workload.rate=1e+300: Input should be less than or equal to 10000000"),
        ("rate = 4.0", "rate = 4.0\nburstiness = 1e300", "workload.burstiness=1e+300: Input should be less than"),
        ("rate = 4.0", "rate = 4.0\nduration_s = 1e300", "workload.duration_s=1e+300: Input should be less than"),
        ("rate = 4.0", "rate = 4e6\nduration_s = 1e6", "duration_s=1e+06 at rate=4e+06 is more than 100,000,000"),
        ("rate = 4.0", "rate = 4.0\nbursts = {burst_s = 1e-300}", "workload.bursts.burst_s=1e-300: Input should be gr"),
        ("tp = 8", "tp = 8\ndraft_tokens = 1000000000000", "draft_tokens=1000000000000: Input should be less than"),
        ("tp = 8", "tp = 8\ndraft_tokens = 1.0", "deployment.colocated.draft_tokens=1.0: Input should be a valid int"),
        ("[deployment.col", "[deployment.transfer]\nhandshake_s = 1e300\n[deployment.col", "handshake_s=1e+300: Input"),
        (
            "[deployment.col",
            "[deployment.startup]\nweight_bandwidth = 1e-300\n[deployment.col",
            "greater than or equal",
        ),
        ("[workload]", 'seed = "7"\n[workload]', "seed='7': Input should be a valid integer"),
        ("[workload]", "seed = true\n[workload]", "seed=True: Input should be a valid integer"),
    ],
)
def test_a_wrong_scenario_is_refused_in_one_sentence(tmp_path: Path, old: str, new: str, told: str) -> None:
    assert old in GOOD
    path = written(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ScenarioError) as error:
        load_scenario(path)
    assert told in str(error.value)
    assert str(path) in str(error.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="does not exist"):
        load_scenario(tmp_path / "none.toml")
    with pytest.raises(ScenarioError, match="cannot be read"):
        load_scenario(tmp_path)


def test_a_bounded_queue_does_not_go_with_clients_that_send_again_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("[deployment.colocated]", "[deployment]\nmax_queue = 3\n[deployment.colocated]")
    assert load_scenario(written(tmp_path, text)).deployment.max_queue == 3  # type: ignore[union-attr]
    closed = text.replace('"open_loop"\nrate = 4.0', '"closed_loop"\nconcurrency = 2\nrequests = 9')
    with pytest.raises(ScenarioError, match=r"max_queue=3 does not go with a closed_loop.*leave it out"):
        load_scenario(written(tmp_path, closed))
