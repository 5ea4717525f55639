"""The scenario: model, traffic, limits, deployment. What command line, dashboard, notebooks and tests pass about."""

from simulator.des.scenario.base import ScenarioError
from simulator.des.scenario.deployment import SEQUENCES_PER_RANK, Deployment, Pool, Power, PrefixCacheKeys, Transfer
from simulator.des.scenario.draws import Lengths, Seconds
from simulator.des.scenario.lifecycle import Autoscale, Faults, Outages, PlannedFault, ScheduledCount, Startup
from simulator.des.scenario.reading import load_any, load_scenario, parse_any, parse_scenario
from simulator.des.scenario.scenario import Scenario, Search
from simulator.des.scenario.served import Served
from simulator.des.scenario.shared import Hardware, SharedCluster
from simulator.des.scenario.tenant import Slo, Tenant
from simulator.des.scenario.traffic import (
    Bursts,
    ClosedLoop,
    Diurnal,
    Offline,
    OpenLoop,
    Sessions,
    SharedPrefix,
    Trace,
    Workload,
)

__all__ = [
    "SEQUENCES_PER_RANK",
    "Autoscale",
    "Bursts",
    "ClosedLoop",
    "Deployment",
    "Diurnal",
    "Faults",
    "Hardware",
    "Lengths",
    "Offline",
    "OpenLoop",
    "Outages",
    "PlannedFault",
    "Pool",
    "Power",
    "PrefixCacheKeys",
    "Scenario",
    "ScenarioError",
    "ScheduledCount",
    "Search",
    "Seconds",
    "Served",
    "Sessions",
    "SharedCluster",
    "SharedPrefix",
    "Slo",
    "Startup",
    "Tenant",
    "Trace",
    "Transfer",
    "Workload",
    "load_any",
    "load_scenario",
    "parse_any",
    "parse_scenario",
]
