"""Several models on one cluster by static partition."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.clusters import FormulaTimes, disaggregated, make_instance

from simulator.des.cluster.cluster import Cluster, play_together
from simulator.des.cluster.recorder import Recorder
from simulator.des.cluster.spines import make_spines
from simulator.des.primitives.clock import Environment
from simulator.des.results.timeline import write_timeline
from simulator.des.simulate import simulate
from simulator.des.simulate_models import AcceleratorShares, SharedResult, simulate_shared
from simulator.des.workload.requests import Requests
from simulator.scenario import ScenarioError, SharedCluster, Transfer, load_any, load_scenario, parse_any

EXAMPLE = Path(__file__).resolve().parents[3] / "docs" / "scenarios" / "two_models.toml"
Keys = dict[str, Any]
POOL = {"gpu": "h200", "tp": 4}


def model(name: str = "a", rate: float = 8.0, requests: int = 150, **deployment: Any) -> Keys:
    return {
        "name": name,
        "model": "qwen3-30b-a3b",
        "workload": {"kind": "open_loop", "rate": rate, "requests": requests, "prompt": 900, "output": 40},
        "deployment": {"prefill": POOL, "decode": POOL} | deployment,
    }


def shared(*models: Keys, gpus: Keys | None = None, **hardware: Any) -> SharedCluster:
    found = parse_any({"cluster": {"gpus": gpus or {"h200": 64}} | hardware, "models": list(models), "seed": 3})
    assert isinstance(found, SharedCluster)
    return found


def played(*models: Keys, **hardware: Any) -> SharedResult:
    return simulate_shared(shared(*models, **hardware))


def test_parts_that_share_nothing_run_as_if_alone() -> None:
    """One model breaks and scales on, also after its last request has ended, while the other still runs."""
    restless = {
        "faults": {"instance": {"mtbf_s": 3.0, "mttr_s": 0.5}, "retry_delay_s": 0.1},
        "startup": {"start_s": 0.2, "load_s": 0.1},
        "decode": POOL | {"autoscale": {"schedule": [{"at_s": 2.0, "instances": 2}, {"at_s": 4.0, "instances": 1}],
                                        "period_s": 6.0}},
    }  # fmt: skip
    result = played(model("short", rate=40.0, **restless), model("long", rate=4.0))
    ends = [part.result.run.end.time_s for part in result.models.values()]
    assert 2 * ends[0] < ends[1] == result.duration_s
    seeds = set()
    for part in result.models.values():
        alone = simulate(part.scenario)
        assert part.result.summary().to_json() == alone.summary().to_json()
        assert part.result.requests.equals(alone.requests)
        seeds.add(part.scenario.seed)
    assert len(seeds) == 2
    assert result.models["short"].scenario.seed == 3
    assert result.models["short"].result.run.incidents


@pytest.mark.parametrize("rails", [1, 8])
def test_one_model_on_the_spine_of_the_cluster_has_it_as_its_own(rails: int) -> None:
    spine = {"oversubscription": 50.0, "rails": rails}
    pools = {"prefill": POOL | {"instances": 2, "tp": 1, "dp": 4, "ep": 4}}
    part = played(model(rate=60.0, **pools), **spine).models["a"]
    own = played(model(rate=60.0, transfer=spine, **pools)).models["a"]
    assert part.result.summary().to_json() == own.result.summary().to_json()
    free = played(model(rate=60.0, **pools)).models["a"]
    assert part.result.requests["transfer_s"].mean() > 1.1 * free.result.requests["transfer_s"].mean()


def test_transfers_of_two_models_share_a_spine() -> None:
    """Two links of 1000 B/s, a spine of 1000: 1000 B of each model at once take 2 s, later 500 B of one 0.5 s."""
    env = Environment()
    plain = Transfer(efficiency=1.0, handshake_s=0.0, half_rate_bytes=0.0)
    spec = disaggregated(
        make_instance(FormulaTimes(per_prompt_token_s=0.0), nic_bandwidth=1000.0),
        make_instance(FormulaTimes(decode_base_s=1e-9), nic_bandwidth=1000.0),
        transfer=plain,
        transfer_bytes=lambda tokens: 10.0 * tokens,
    )

    def cluster(prompts: list[int], arrivals: list[float]) -> Cluster:
        requests = Requests(np.array(prompts), np.full(len(prompts), 2), np.array(arrivals))
        return Cluster(spec, requests, np.random.default_rng(0), env=env)

    both = [cluster([100], [0.0]), cluster([100, 50], [0.0, 5.0])]
    spines = make_spines({k: v for each in both for k, v in each.serving.link_rates.items()}, 2.0, 1)
    for each in both:
        each.serving.share_spines(spines)
    first, second = (run.log for run in play_together(both))
    np.testing.assert_allclose(first.delivered_s, [2.0])
    np.testing.assert_allclose(second.delivered_s, [2.0, 5.5])


def test_the_whole_cluster_adds_up() -> None:
    """48 of 64 H200 and no B200 are in parts; what is free is paid for and idles."""
    wide = {"prefill": POOL | {"instances": 3}, "decode": POOL | {"instances": 5}}
    result = played(
        model("a", **wide), model("b", rate=3.0, decode=POOL | {"instances": 3}), gpus={"h200": 64, "b200": 8}
    )
    summary = result.summary().to_json()
    cluster, models = summary["cluster"], summary["models"]
    assert cluster["gpus"] == {
        "h200_sxm": {"total": 64, "models": {"a": 32, "b": 16}, "free": 16},
        "b200_sxm": {"total": 8, "models": {}, "free": 8},
    }
    assert cluster["gpu_hours"] == pytest.approx(72 * cluster["duration_s"] / 3600)
    # USD/hour of H200 by what a model pays for its 32, of B200 by a cluster of nothing else
    usd = 64 * models["a"]["cost"]["usd_per_hour"] / 32
    prices = played(model("a"), gpus={"h200": 8, "b200": 8}).cost().usd_per_hour
    usd += prices - 8 * models["a"]["cost"]["usd_per_hour"] / 32
    assert cluster["cost"]["usd_per_hour"] == pytest.approx(usd)
    tokens = sum(each["throughput"][key] for each in models.values() for key in ("input_tok_s", "output_tok_s"))
    assert cluster["cost"]["usd_per_mtok_blended"] == pytest.approx(usd / 3600 / tokens * 1e6)
    assert cluster["throughput"]["requests_per_s"] == pytest.approx(
        sum(each["throughput"]["requests_per_s"] for each in models.values())
    )
    # Each accelerator either draws in a part or idles: 700 W and 1000 W of TDP, 15% of it.
    own = sum(each["energy"]["kwh"] for each in models.values())
    hours = cluster["duration_s"] / 3600
    in_parts = sum(pool["gpu_hours"] for each in models.values() for pool in each["lifecycle"].values())
    assert cluster["energy"]["kwh"] == pytest.approx(own + 0.15 * (0.7 * (64 * hours - in_parts) + 1.0 * 8 * hours))
    json.dumps(summary, allow_nan=False)


def test_a_model_that_has_the_whole_cluster_costs_and_draws_what_the_cluster_does() -> None:
    summary = played(model(), gpus={"h200": 8}).summary().to_json()
    cluster, own = summary["cluster"], summary["models"]["a"]
    assert cluster["energy"] == pytest.approx({key: own["energy"][key] for key in cluster["energy"]})
    assert cluster["cost"] == pytest.approx({key: own["cost"][key] for key in cluster["cost"]})


def test_timelines_of_several_models_keep_them_apart(tmp_path: Path) -> None:
    asked = shared(model("a", requests=5), model("b", requests=5))
    recorders = {"a": Recorder(), "b": Recorder()}
    result = simulate_shared(asked, recorders=recorders)
    runs = {name: (recorders[name], part.result.run) for name, part in result.models.items()}
    write_timeline(tmp_path / "t.json", runs)
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert sorted(processes.values()) == [f"{m}: {p}" for m in "ab" for p in ("decode", "prefill", "requests")]
    steps = {name: len(recorder.steps) for name, recorder in recorders.items()}
    drawn = [processes[e["pid"]][0] for e in events if e["ph"] == "X"]
    assert {name: drawn.count(name) for name in "ab"} == steps
    assert {e["cat"] for e in events if e["ph"] == "s"} == {"transfer a", "transfer b"}


def test_progress_counts_the_requests_of_all_models() -> None:
    seen: list[tuple[int, int]] = []
    simulate_shared(shared(model("a"), model("b")), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (300, 300)
    assert all(a[0] <= b[0] for a, b in pairwise(seen))


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: played(model("a"), model("a")), "two models are called 'a'; give each a name of its own"),
        (lambda: played(model() | {"deployment": None}), "model 'a' has no part of the cluster"),
        (
            lambda: played(model("a"), model("b", decode=POOL | {"instances": 4}), gpus={"h200": 24}),
            r"cluster.gpus has 24 h200_sxm and the models ask for 28 at most \(a 8, b 20\); give it more",
        ),
        (
            lambda: played(model("a", decode=POOL | {"gpu": "b200"}), gpus={"h200": 24}),
            r"cluster.gpus has 0 b200_sxm and the models ask for 4 at most \(a 4\)",
        ),
        (
            lambda: played(
                model("a", decode=POOL | {"autoscale": {"metric": "queue", "target": 1.0, "maximum": 5}}),
                gpus={"h200": 23},
            ),
            r"the models ask for 24 at most \(a 24\)",
        ),
        (lambda: played(model(), gpus={"h200": 8, "h200_sxm": 8}), "names h200_sxm twice, once as 'h200_sxm'"),
        (lambda: parse_any({"cluster": {"gpus": 36}, "models": [model()]}), "cluster.gpus=36 is not a table"),
        (lambda: parse_any({"cluster": {"gpus": {"h200": 8}}}), "key 'models' is missing"),
        (lambda: played(model(), gpus={"h200": 0}), "cluster.gpus.h200=0"),
        (lambda: played(model(), rails=2), "rails=2 divide a spine that nobody shares"),
        (
            lambda: played(model("a", transfer={"oversubscription": 2.0}), oversubscription=4.0),
            "model 'a' has transfer.oversubscription=2 beside cluster.oversubscription=4; leave its own out",
        ),
        (
            lambda: played(model("a", transfer={"network": "scale_up"}), oversubscription=4.0),
            "model 'a' transfers with network='scale_up'",
        ),
        (lambda: played(model("a", decode=POOL | {"tq": 1})), "unknown key 'models.0.deployment.decode.tq'"),
        (lambda: played(), "'models' is empty"),
        (lambda: parse_any({"models": [model()]}), "key 'cluster' is missing"),
        (lambda: load_scenario(EXAMPLE), r"has \[\[models\]\], which only `simulate` plays together"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_one_sentence(build: Callable[[], Any], told: str) -> None:
    with pytest.raises(ScenarioError, match=told) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_the_example_plays() -> None:
    whole = load_any(EXAMPLE)
    assert isinstance(whole, SharedCluster)
    served = []
    for each in whole.models:
        assert each.workload is not None
        workload = each.workload.model_copy(update={"duration_s": 40.0})
        served.append(each.model_copy(update={"workload": workload}))
    result = simulate_shared(whole.model_copy(update={"models": tuple(served)}))
    assert all(part.result.finished.all() for part in result.models.values())
    assert result.summary().cluster.gpus["h200_sxm"] == AcceleratorShares(32, {"chat": 24, "drafts": 4}, 4)
