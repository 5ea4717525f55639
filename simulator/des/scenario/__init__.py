"""The scenario: model, traffic, limits, deployment. What command line, dashboard, notebooks and tests pass about."""

from simulator.des.scenario.base import ScenarioError
from simulator.des.scenario.deployment import SEQUENCES_PER_RANK, Deployment, Pool, PrefixCacheKeys, Transfer
from simulator.des.scenario.scenario import Scenario, Search, Slo, load_scenario, parse_scenario
from simulator.des.scenario.traffic import Bursts, ClosedLoop, Diurnal, Lengths, OpenLoop, SharedPrefix, Trace, Workload

__all__ = [
    "SEQUENCES_PER_RANK",
    "Bursts",
    "ClosedLoop",
    "Deployment",
    "Diurnal",
    "Lengths",
    "OpenLoop",
    "Pool",
    "PrefixCacheKeys",
    "Scenario",
    "ScenarioError",
    "Search",
    "SharedPrefix",
    "Slo",
    "Trace",
    "Transfer",
    "Workload",
    "load_scenario",
    "parse_scenario",
]
