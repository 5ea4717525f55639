"""Steps that draw their expert loads."""

from typing import Any

import numpy as np
import pytest

from simulator.des.simulate import simulate
from simulator.scenario import parse_scenario


def played(skew: dict[str, Any] | None) -> Any:
    pool = {"gpu": "h200_sxm", "dp": 8, "ep": 8} | ({"expert_skew": skew} if skew else {})
    alone = {"kind": "closed_loop", "concurrency": 8, "requests": 160, "prompt": 1000, "output": 40}
    return simulate(
        parse_scenario({"model": "deepseek-v4-flash", "workload": alone, "deployment": {"colocated": pool}})
    )


def test_drawn_steps_scatter_around_their_mean_and_repeat_with_the_seed() -> None:
    first, again = played({"kind": "dirichlet"}), played({"kind": "dirichlet"})
    assert first.requests.equals(again.requests)
    latency = first.spec.entry[0].instance.times
    assert latency.draws_experts
    plain = played(None)
    assert not plain.spec.entry[0].instance.times.draws_experts
    assert len(set(np.round(plain.tpot_s, 12))) < len(set(np.round(first.tpot_s, 12)))
    assert first.tpot_s.mean() == pytest.approx(plain.tpot_s.mean(), rel=0.2)
