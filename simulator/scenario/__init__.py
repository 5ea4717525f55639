"""The scenario: model, traffic, limits, deployment. What command line, dashboard, notebooks and tests pass about."""

from simulator.scenario.costs import Costs
from simulator.scenario.deployment import Deployment, FirstToken, Pool, PowerKeys, PrefixCacheKeys, Transfer
from simulator.scenario.distributions import Lengths, Seconds
from simulator.scenario.faults_and_scaling import Autoscale, Faults, Outages, PlannedFault, ScheduledCount, Startup
from simulator.scenario.hardware import hardware_of, model_of, priced_knobs, profile_key, with_knobs
from simulator.scenario.keys import ScenarioError
from simulator.scenario.knobs import Knobs
from simulator.scenario.reading import load_any, load_scenario, parse_any, parse_scenario
from simulator.scenario.scenario import Scenario, Search
from simulator.scenario.served import Served
from simulator.scenario.shared_cluster import Hardware, SharedCluster
from simulator.scenario.tenants import Slo, Tenant
from simulator.scenario.workload import (
    Bursts,
    ClosedLoop,
    Diurnal,
    Offline,
    OpenLoop,
    Sessions,
    SharedPrefix,
    Trace,
    TraceColumnNames,
    Workload,
)

__all__ = [
    "Autoscale",
    "Bursts",
    "ClosedLoop",
    "Costs",
    "Deployment",
    "Diurnal",
    "Faults",
    "FirstToken",
    "Hardware",
    "Knobs",
    "Lengths",
    "Offline",
    "OpenLoop",
    "Outages",
    "PlannedFault",
    "Pool",
    "PowerKeys",
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
    "TraceColumnNames",
    "Transfer",
    "Workload",
    "hardware_of",
    "load_any",
    "load_scenario",
    "model_of",
    "parse_any",
    "parse_scenario",
    "priced_knobs",
    "profile_key",
    "with_knobs",
]
