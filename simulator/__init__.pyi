from simulator.deploy.export import export as export
from simulator.des.simulate import simulate as simulate
from simulator.model.fits import fits as fits
from simulator.planner.search import plan as plan
from simulator.questions.capacity import capacity as capacity
from simulator.questions.compare import compare as compare
from simulator.questions.forecast import forecast as forecast
from simulator.questions.frontier import frontier as frontier
from simulator.questions.sensitivity import sensitivity as sensitivity
from simulator.scenario import Scenario as Scenario
from simulator.scenario import load_scenario as load_scenario

__all__ = [
    "Scenario",
    "capacity",
    "compare",
    "export",
    "fits",
    "forecast",
    "frontier",
    "load_scenario",
    "plan",
    "sensitivity",
    "simulate",
]
