"""Public names: read a scenario, simulate it, plan for it, and the questions around a plan.

Each is imported when it is first asked for, so that `import simulator` costs nothing; `__init__.pyi` has their types.
"""

from __future__ import annotations

from typing import Any

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


def __getattr__(name: str) -> Any:
    """The public name, from the room that defines it (PEP 562)."""
    found: Any
    match name:
        case "Scenario":
            from simulator.scenario import Scenario as found
        case "capacity":
            from simulator.questions.capacity import capacity as found
        case "compare":
            from simulator.questions.compare import compare as found
        case "export":
            from simulator.deploy.export import export as found
        case "fits":
            from simulator.model.fits import fits as found
        case "forecast":
            from simulator.questions.forecast import forecast as found
        case "frontier":
            from simulator.questions.frontier import frontier as found
        case "sensitivity":
            from simulator.questions.sensitivity import sensitivity as found
        case "load_scenario":
            from simulator.scenario import load_scenario as found
        case "plan":
            from simulator.planner.search import plan as found
        case "simulate":
            from simulator.des.simulate import simulate as found
        case _:
            raise AttributeError(f"module 'simulator' has no attribute {name!r}")
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
