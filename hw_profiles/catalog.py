"""The catalogue: accelerator files by name, alias or path, joined with prices and efficiency."""

from __future__ import annotations

import difflib
import os
import re
from functools import lru_cache
from pathlib import Path

from hw_profiles.efficiency import Efficiency
from hw_profiles.efficiency_files import DEFAULT_STACK, complete, load_efficiency, read_fit, read_json
from hw_profiles.loading import CatalogError, build, read_toml
from hw_profiles.profile import HardwareProfile, profile_of
from hw_profiles.schema import Accelerator, Price, PriceList

__all__ = [
    "CatalogError",
    "fits",
    "fitted",
    "load",
    "names",
    "own_folder",
    "own_names",
    "read_accelerator",
    "read_folder",
    "read_prices",
    "stacks_of",
]

DATA = Path(__file__).parent / "data"
SHIPPED_REMEMBERED = 256  # profiles of the catalogue; assumed: it holds fewer
OWN_REMEMBERED = 64  # profiles of one's own; assumed: few have more
NEAREST_ASKED, NEAREST_SHOWN = 5, 3  # words close to an unknown one, and accelerators named for them; assumed
SIMILAR = 0.5  # of such words (difflib's ratio) [-]; assumed
OWN_PROFILES = "MOEPLAN_PROFILES"  # environment variable: folder of one's own profiles


def names() -> list[str]:
    """Every accelerator of the catalogue."""
    return sorted(_catalogue())


def own_names() -> list[str]:
    """Machines that the catalogue does not have, but the folder of one's own profiles does."""
    return sorted({fit.accelerator for fit in _own_fits() if fit.part is not None} - set(_catalogue()))


def load(name_or_path: str | Path, stack: str = DEFAULT_STACK) -> HardwareProfile:
    """Profile of a catalogue part (name or alias, any case, - or _), or of a .toml file of one's own.

    A fitted profile is asked for by its stack, or by the path of its .json file; fits in the folder that
    MOEPLAN_PROFILES names come before the catalogue's.
    """
    text = str(name_or_path)
    if text.endswith(".json"):
        path = Path(text).expanduser()
        return fitted(complete(read_fit(path), path))
    mine = _own_fits_of(text)
    if stack in mine:
        return fitted(mine[stack])
    part = next((fit.part for fit in mine.values() if fit.part is not None), None) or _find(name_or_path)
    priced = tuple(Price(accelerator=part.name, convention=c, usd_per_hour=f) for c, f in part.prices.items())
    listed = tuple(p for p in _prices() if p.accelerator == part.name and p.convention not in part.prices)
    efficiency = _shipped(part.name, part.generation, stack, tuple(mine))
    return profile_of(part, efficiency, priced + listed)


@lru_cache(maxsize=SHIPPED_REMEMBERED)
def _shipped(accelerator: str, generation: str, stack: str, elsewhere: tuple[str, ...]) -> Efficiency:
    """The catalogue's own; read once, for plans ask for the same few hundreds of times."""
    return load_efficiency(accelerator, generation, stack, DATA / "efficiency", elsewhere)


def fits(name: str) -> dict[str, Efficiency]:
    """Fitted efficiencies of an accelerator by stack: one's own, then the catalogue's."""
    shipped = (DATA / "efficiency").glob(f"{_key(name)}@*.json")
    found = {path.stem.partition("@")[2]: read_fit(path) for path in shipped} | _own_fits_of(name)
    return dict(sorted(found.items()))


def stacks_of(name: str | Path) -> tuple[tuple[str, ...], bool]:
    """Stacks to plan with where none is named, and whether they are one's own: those fit to serving or kernels of one's
    own, else the catalogue's fits, else the assumed one."""
    own = _own_fits_of(str(name))
    if own:
        return tuple(sorted(own)), True
    return tuple(fits(str(name))) or (DEFAULT_STACK,), False


def _own_fits_of(word: str) -> dict[str, Efficiency]:
    """Of one's own profiles those of the accelerator that a word stands for, by stack."""
    return {fit.stack: fit for fit in _own_fits() if _key(fit.accelerator) == _key(word)}


def own_folder() -> Path | None:
    """The folder of one's own profiles, where MOEPLAN_PROFILES names one."""
    folder = os.environ.get(OWN_PROFILES, "")
    if not folder:
        return None
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise CatalogError(f"{folder} (--profiles, {OWN_PROFILES}) is not a folder; name one with profiles in it")
    return path


def _own_fits() -> list[Efficiency]:
    """Profiles in the folder that MOEPLAN_PROFILES names, whatever their files are called; other JSON is left alone."""
    folder = own_folder()
    if folder is None:
        return []
    files: dict[tuple[str, str], Path] = {}
    found = []
    for file in sorted(folder.glob("*.json")):
        about = file.stat()
        fit = _own_fit(file, about.st_mtime_ns, about.st_size)
        if fit is None:
            continue
        before = files.setdefault((_key(fit.accelerator), fit.stack), file)
        if before != file:
            raise CatalogError(
                f"{before.name} and {file.name} in {folder} both describe {fit.accelerator}@{fit.stack}; remove one, "
                "or give it another `stack`"
            )
        found.append(fit)
    return found


@lru_cache(maxsize=OWN_REMEMBERED)
def _own_fit(path: Path, _changed_ns: int, _size: int) -> Efficiency | None:
    """A profile of one's own; None for JSON of another kind. A name with an @ must tell what the profile describes."""
    data = read_json(path)
    part, at, stack = path.stem.partition("@")
    if not at and not (isinstance(data, dict) and {"accelerator", "stack", "classes"} <= set(data)):
        return None
    fit = complete(read_fit(path), path)
    if at and (_key(part), stack) != (_key(fit.accelerator), fit.stack):
        raise CatalogError(
            f"{path.name}: it describes {fit.accelerator}@{fit.stack}, not {path.stem}; rename the file or fix the "
            "keys accelerator and stack"
        )
    return fit


def fitted(efficiency: Efficiency) -> HardwareProfile:
    """A fit with the accelerator it carries, or the catalogue's."""
    part = efficiency.part or _find(efficiency.accelerator)
    if part.name != efficiency.accelerator:
        raise CatalogError(f"a fit of {efficiency.accelerator!r} carries the part {part.name!r}; make them the same")
    return profile_of(part, efficiency, tuple(p for p in _prices() if p.accelerator == part.name))


def read_accelerator(path: Path) -> Accelerator:
    """One accelerator file; CatalogError names file and key of whatever is wrong with it."""
    return build(Accelerator, read_toml(path), path)


def read_folder(folder: Path) -> tuple[dict[str, Accelerator], dict[str, str]]:
    """All accelerator files of a folder: parts by name, and names by every normalised name and alias."""
    parts: dict[str, Accelerator] = {}
    owner: dict[str, str] = {}
    for path in sorted(folder.glob("*.toml")):
        part = read_accelerator(path)
        if part.name != path.stem:
            raise CatalogError(f"{path.name}: name = {part.name!r} must be the file's own name, {path.stem!r}")
        parts[part.name] = part
        for key, word in [("name", part.name), *(("aliases", alias) for alias in part.aliases)]:
            taken = owner.setdefault(_normal(word), part.name)
            if taken != part.name:
                raise CatalogError(f"{path.name}: {key}: {word!r} already stands for {taken}; choose another")
    return parts, owner


def read_prices(path: Path) -> tuple[Price, ...]:
    """All figures of a price file."""
    listed = build(PriceList, read_toml(path), path).root
    return tuple(
        Price(accelerator=part, convention=convention, usd_per_hour=figure)
        for part, table in listed.items()
        for convention, figure in table.items()
    )


def _normal(word: str) -> str:
    """'H200-SXM', 'h200 sxm' and 'h200_sxm' are one."""
    return re.sub(r"[^a-z0-9]+", "_", word.lower()).strip("_")


def _key(word: str) -> str:
    """The same for a part's name and its aliases: 'b200' and 'B200-SXM' are one."""
    word = _normal(word)
    return _read_catalogue()[1].get(word, word)


@lru_cache(maxsize=1)
def _read_catalogue() -> tuple[dict[str, Accelerator], dict[str, str]]:
    return read_folder(DATA / "accelerators")


def _catalogue() -> dict[str, Accelerator]:
    return _read_catalogue()[0]


@lru_cache(maxsize=1)
def _prices() -> tuple[Price, ...]:
    return read_prices(DATA / "prices.toml")


def _find(name_or_path: str | Path) -> Accelerator:
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml") or os.sep in text:
        return read_accelerator(Path(name_or_path).expanduser())
    parts, owner = _read_catalogue()
    word = _normal(text)
    if word in owner:
        return parts[owner[word]]
    words = difflib.get_close_matches(word, owner, n=NEAREST_ASKED, cutoff=SIMILAR)
    close = list(dict.fromkeys(owner[word] for word in words))
    hint = f"the closest names are {', '.join(close[:NEAREST_SHOWN])}" if close else f"use one of {', '.join(parts)}"
    raise CatalogError(f"unknown accelerator {text!r}; {hint}, or give the path of a .toml file")
