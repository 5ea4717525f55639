"""Public names: read a scenario, simulate it, plan for it.

Each is imported when it is first asked for, so that `import simulator` costs nothing; `__init__.pyi` has their types.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Scenario", "capacity", "load_scenario", "plan", "simulate"]


def __getattr__(name: str) -> Any:
    """The public name, from the room that defines it (PEP 562)."""
    found: Any
    match name:
        case "Scenario":
            from simulator.scenario import Scenario as found
        case "capacity":
            from simulator.model.capacity import capacity as found
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
