from simulator.des.simulate import simulate as simulate
from simulator.model.capacity import capacity as capacity
from simulator.planner.search import plan as plan
from simulator.scenario import Scenario as Scenario
from simulator.scenario import load_scenario as load_scenario

__all__ = ["Scenario", "capacity", "load_scenario", "plan", "simulate"]
