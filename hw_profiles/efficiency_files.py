"""Reading efficiency files: fits of a stack on an accelerator (JSON), and the assumed rates of a generation (TOML)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hw_profiles.efficiency import Efficiency, OpClass
from hw_profiles.loading import CatalogError, build, read_toml

DEFAULT_STACK = "default"
DEFAULT_FILE = "default.toml"
GIVE_A_PROFILE = "give a profile, as `moeplan calibrate fit` writes it"


def stacks(accelerator: str, folder: Path) -> list[str]:
    """Stacks that have an efficiency for this accelerator: the default, then the fitted ones."""
    fitted = sorted(path.stem.partition("@")[2] for path in folder.glob(f"{accelerator}@*.json"))
    return [DEFAULT_STACK, *fitted]


def load_efficiency(
    accelerator: str, generation: str, stack: str, folder: Path, elsewhere: Iterable[str] = ()
) -> Efficiency:
    """The fit of `stack` on `accelerator`, or the assumed fractions of its generation.

    Fits are files `<accelerator>@<stack>.json` in `folder`, defaults the tables of default.toml. Stacks with a fit
    `elsewhere` are named where this one is unknown.
    """
    if stack == DEFAULT_STACK:
        return _assumed(accelerator, generation, folder / DEFAULT_FILE)
    known = stacks(accelerator, folder)
    if stack not in known:
        known += [other for other in elsewhere if other not in known]
        raise CatalogError(f"no efficiency of stack {stack!r} on {accelerator}; there is {', '.join(known)}")
    path = folder / f"{accelerator}@{stack}.json"
    return _matching(read_fit(path), accelerator, stack, path)


def read_fit(path: Path) -> Efficiency:
    """One profile file; CatalogError names what is wrong with it."""
    data = read_json(path)
    if not (isinstance(data, dict) and "classes" in data):
        raise CatalogError(f"{path.name}: it holds no classes of ops; {GIVE_A_PROFILE}")
    return build(Efficiency, data, path)


def read_json(path: Path) -> Any:
    """What a JSON file holds; CatalogError where it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CatalogError(f"{path} does not exist; {GIVE_A_PROFILE}") from None
    except OSError as error:
        raise CatalogError(f"{path} cannot be read ({error.strerror}); {GIVE_A_PROFILE}") from None
    except UnicodeDecodeError:
        raise CatalogError(f"{path.name}: not readable JSON: it is not UTF-8 text; {GIVE_A_PROFILE}") from None
    except ValueError as error:
        raise CatalogError(f"{path.name}: not readable JSON: {error}; {GIVE_A_PROFILE}") from None


def _matching(fit: Efficiency, accelerator: str, stack: str, path: Path) -> Efficiency:
    if (fit.accelerator, fit.stack) != (accelerator, stack):
        raise CatalogError(
            f"{path.name}: it describes {fit.accelerator}@{fit.stack}, not {accelerator}@{stack}; "
            "rename the file or fix the keys accelerator and stack"
        )
    return complete(fit, path)


def complete(fit: Efficiency, path: Path) -> Efficiency:
    """The fit, if it prices every class of ops."""
    missing = [c.value for c in OpClass if c not in fit.classes]
    if missing:
        raise CatalogError(
            f"{path.name}: classes lacks {', '.join(missing)}; fit it again with `moeplan calibrate fit`"
        )
    return fit


def _assumed(accelerator: str, generation: str, path: Path) -> Efficiency:
    """[base] of default.toml with the table of the generation (or the one it is `like`) laid over it, and classes of
    the accelerator's own table over that."""
    tables = read_toml(path)
    base: dict[str, Any] = tables["base"]
    own: dict[str, Any] = tables.get(generation, {})
    if "like" in own:
        own = tables[own["like"]]
    named: dict[str, Any] = tables.get(accelerator, {}).get("classes", {})
    classes = {
        op_class: {**parameters, **own.get("classes", {}).get(op_class, {}), **named.get(op_class, {}), "assumed": True}
        for op_class, parameters in base["classes"].items()
    }
    for op_class in set(own.get("classes", {})) - set(classes):
        raise CatalogError(f"{path.name}: unknown key {generation}.classes.{op_class}")
    data = {
        **base,
        **own,
        "classes": classes,
        "accelerator": accelerator,
        "stack": DEFAULT_STACK,
        "overhead_assumed": True,
    }
    return _matching(build(Efficiency, data, path), accelerator, DEFAULT_STACK, path)
