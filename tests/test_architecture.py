"""The direction of imports between rooms, the absence of circles, and what imports cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("hw_profiles", "simulator", "runtime", "calibration", "app")

# Room -> rooms that it stands on. It may import itself, those, and whatever they stand on. A room is a folder, or a
# file that stands between two folders; of a file's dotted name the longest room counts.
STANDS_ON: dict[str, tuple[str, ...]] = {
    "hw_profiles": (),
    "simulator.progress": (),
    "simulator.model": ("hw_profiles",),
    "simulator.scenario": ("simulator.model",),
    "simulator.traces": ("simulator.scenario",),
    "simulator.steady_state": ("simulator.scenario",),
    "simulator.des.primitives": (),
    "simulator.des.workload": ("simulator.des.primitives", "simulator.traces"),
    "simulator.des.records": ("simulator.des.workload",),
    "simulator.des.instance": ("simulator.des.records",),
    "simulator.des.cluster": ("simulator.des.instance", "simulator.progress"),
    "simulator.des.results": ("simulator.des.cluster",),
    "simulator.des": ("simulator.des.results",),
    "simulator.uncertainty": ("simulator.des", "simulator.steady_state"),
    "simulator.planner": ("simulator.uncertainty", "simulator.steady_state", "simulator.progress"),
    "simulator.sweep": ("simulator.planner",),
    "simulator.questions": ("simulator.sweep",),
    "simulator.deploy": ("simulator.planner",),
    "simulator": ("simulator.questions", "simulator.deploy"),
    "runtime.config": (),
    "runtime.reference": (),
    "runtime.kernels": ("runtime.reference",),
    "runtime.ops": ("runtime.kernels",),
    "runtime.cache": ("runtime.config", "runtime.reference"),
    "runtime.batch": ("runtime.cache",),
    "runtime.layers": ("runtime.ops", "runtime.batch"),
    "runtime.models": ("runtime.layers",),
    "runtime": ("runtime.models",),
    "calibration.arrays": (),
    "calibration.l2_warmth": (),
    "calibration.rate_parameters": ("simulator.model",),
    "calibration.roofline_fit": ("calibration.arrays", "calibration.l2_warmth", "calibration.rate_parameters"),
    "calibration.op_tables": ("calibration.roofline_fit",),
    "calibration.microbench": ("simulator.model", "simulator.progress", "runtime"),
    "calibration.microbench.fit": ("calibration.microbench", "calibration.op_tables"),
    "calibration.replay": ("calibration.microbench.fit", "simulator.des"),
    "calibration.launch": (),
    "calibration.results": ("calibration.launch", "hw_profiles"),
    "calibration.serving": (
        "calibration.roofline_fit",
        "calibration.results",
        "simulator.steady_state",
        "simulator.progress",
    ),
    "calibration.serving.by_des": ("calibration.serving", "simulator.planner"),
    "calibration": ("calibration.replay", "calibration.serving.by_des"),
    "app.errors": (),
    "app.output": ("app.errors", "simulator.progress"),
    "app.imports": ("app.errors", "simulator"),
    "app.scenarios": ("app.errors", "simulator.scenario"),
    "app.catalogue": ("simulator.model",),
    "app.render": ("app.catalogue", "simulator.questions", "calibration"),
    "app.commands": (
        "app.output",
        "app.render",
        "app.scenarios",
        "app.imports",
        "simulator",
        "runtime",
    ),
    "app.views": ("app.output", "app.render", "app.scenarios", "simulator"),
    "app": ("app.commands", "app.views"),
}
# Folders that are one room with the folder above them.
WITHIN = {"simulator.model.families"}
# Package -> packages that it may import only inside functions, because torch may be absent.
ONLY_LAZILY = {"calibration": {"runtime"}, "app": {"runtime", "calibration"}}


@cache
def may_import(room: str) -> frozenset[str]:
    """The room itself and everything that it stands on."""
    return frozenset({room}.union(*(may_import(below) for below in STANDS_ON[room])))


def room_of(module: str) -> str | None:
    """'simulator.des.simulate' -> 'simulator.des'; None for other people's modules."""
    parts = module.split(".")
    if parts[0] not in PACKAGES:
        return None
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in names if name in STANDS_ON), parts[0])


def for_type_checkers(node: ast.AST) -> bool:
    """`if TYPE_CHECKING:`, which never runs."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(tree: ast.AST, package: str) -> Iterator[tuple[str, bool]]:
    """(module, whether it is imported at module level) of every import statement."""

    def visit(node: ast.AST, top: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    base = ".".join([*package.split(".")[: len(package.split(".")) - child.level + 1], base]).rstrip(
                        "."
                    )
                yield from ((f"{base}.{alias.name}", top) for alias in child.names)
            else:
                later = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                yield from visit(child, top and not later and not for_type_checkers(child))

    return visit(tree, True)


def problems(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """Imports of one module that the layout forbids."""
    here = room_of(module)
    assert here
    package = module if is_package else module.rpartition(".")[0]
    found = []
    for target, top in imports(ast.parse(source), package):
        there = room_of(target)
        if there is None:
            continue
        if there not in may_import(here):
            found.append(f"{module} imports {target}: {here} may not know {there}")
        elif top and there.split(".")[0] in ONLY_LAZILY.get(here.split(".")[0], set()):
            found.append(f"{module} imports {target} at module level: only inside functions")
    return found


SOURCES = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]
BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))


def module_of(path: Path) -> str:
    """'simulator/des/__init__.py' -> 'simulator.des'."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert problems(module_of(path), source, is_package=path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("hw_profiles.catalog", "from simulator.model import kv"),
        ("simulator.model.kv", "import simulator.des.simulate"),
        ("simulator.des.simulate", "def f():\n    from simulator.planner import search"),
        ("simulator.des.simulate", "from ..planner import search"),
        ("simulator.planner.search", "from app import cli"),
        ("runtime.engine", "import hw_profiles"),
        ("app.cli", "from runtime.engine import Engine"),
        ("app.cli", "if True:\n    import calibration.roofline_fit"),
        ("simulator.scenario.keys", "from simulator.des.primitives import clock"),
        ("simulator.des.primitives.clock", "from simulator.scenario import Scenario"),
        ("simulator.des.instance.instance", "def f():\n    from simulator.des.cluster.spec import InstanceSpec"),
        ("simulator.steady_state.waits", "from simulator.des.results.cost import Cost"),
        ("simulator.planner.search", "from simulator import plan"),
        ("runtime.reference.topk", "from runtime.kernels.topk import topk"),
        ("runtime.models.base", "from runtime import engine"),
        ("calibration.op_tables.tables", "from calibration.microbench.bench import Bench"),
        ("calibration.serving.predict", "from calibration.replay import twin"),
        ("app.render.plan", "from app.commands import plan"),
    ],
)
def test_the_check_sees_what_is_forbidden(module: str, source: str) -> None:
    assert len(problems(module, source)) == 1


@pytest.mark.parametrize("head", ["def f():", "if TYPE_CHECKING:"])
def test_the_check_lets_lazy_imports_pass(head: str) -> None:
    assert problems("app.commands.runtime", f"{head}\n    from runtime.engine import Engine") == []


def test_type_checking_is_no_way_around_the_direction() -> None:
    assert len(problems("simulator.des.cluster.cluster", "if TYPE_CHECKING:\n    from app.cli import main")) == 1


def test_every_folder_is_a_room() -> None:
    """A new folder has to say what it stands on."""
    folders = {module_of(path) for path in SOURCES if path.name == "__init__.py"}
    assert folders - set(STANDS_ON) == WITHIN


def import_graph(sources: Mapping[str, str], packages: set[str]) -> dict[str, set[str]]:
    """Module -> modules that it imports anywhere: at module level, in functions, for type checkers.

    Importing a.b.c runs a and a.b as well, unless the importer is itself inside of them.
    """
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        package = module if module in packages else module.rpartition(".")[0]
        graph[module] = set()
        for target, _ in imports(ast.parse(source), package):
            parts = target.split(".")
            prefixes = {".".join(parts[:length]) for length in range(1, len(parts) + 1)} & sources.keys()
            asked = max(prefixes, key=len, default=None)
            graph[module] |= {name for name in prefixes if name == asked or not f"{module}.".startswith(f"{name}.")}
        graph[module].discard(module)
    return graph


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Sets of modules that reach each other: strongly connected components of more than one.

    Reference: Tarjan, "Depth-first search and linear graph algorithms", SIAM Journal on Computing, 1972.
    """
    found: list[list[str]] = []
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    open_path: list[str] = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        open_path.append(module)
        for target in sorted(graph[module]):
            if target not in order:
                visit(target)
                lowest[module] = min(lowest[module], lowest[target])
            elif target in open_path:
                lowest[module] = min(lowest[module], order[target])
        if lowest[module] == order[module]:
            start = open_path.index(module)
            if len(open_path) - start > 1:
                found.append(sorted(open_path[start:]))
            del open_path[start:]

    for module in sorted(graph):
        if module not in order:
            visit(module)
    return found


def test_no_circle_of_imports() -> None:
    sources = {module_of(path): path.read_text(encoding="utf-8") for path in (*SOURCES, *BENCHMARKS)}
    packages = {module_of(path) for path in (*SOURCES, *BENCHMARKS) if path.name == "__init__.py"}
    assert circles(import_graph(sources, packages)) == []


@pytest.mark.parametrize(
    ("sources", "circle"),
    [
        ({"p": "", "p.a": "import p.b", "p.b": "from p import a"}, ["p.a", "p.b"]),
        ({"p": "", "p.a": "import p.b", "p.b": "def f():\n    import p.a"}, ["p.a", "p.b"]),
        ({"p": "", "p.a": "import p.b", "p.b": "if TYPE_CHECKING:\n    from p.a import A"}, ["p.a", "p.b"]),
        ({"p": "", "p.a": "from .b import B", "p.b": "from . import a"}, ["p.a", "p.b"]),
        ({"p": "", "p.a": "import p.b", "p.b": "import p.c", "p.c": "import p.a"}, ["p.a", "p.b", "p.c"]),
        ({"p": "from p.a import A", "p.a": "from p import A"}, ["p", "p.a"]),
        ({"p": "import q", "p.a": "", "q": "from p.a import A"}, ["p", "q"]),
    ],
    ids=["modules", "inside a function", "for type checkers", "relative", "of three", "of a package", "parent"],
)
def test_the_check_sees_circles(sources: dict[str, str], circle: list[str]) -> None:
    assert circles(import_graph(sources, {"p"})) == [circle]


def test_a_package_that_shows_its_modules_is_no_circle() -> None:
    sources = {"p": "from p.a import A\nfrom p.b import B", "p.a": "", "p.b": "from p.a import A", "q": "import p.b"}
    assert circles(import_graph(sources, {"p"})) == []


def aliases(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(name, type) of the module's aliases of arrays and of functions."""
    for node in tree.body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Subscript)
            and isinstance(node.value.value, ast.Name)
            and node.value.value.id in ("NDArray", "Callable")
        ):
            yield node.targets[0].id, ast.unparse(node.value)


def test_an_alias_of_a_type_has_one_home() -> None:
    """One name for a type, one type for a name, defined in one module."""
    found = [
        (module_of(path), *alias)
        for path in (*SOURCES, *BENCHMARKS)
        for alias in aliases(ast.parse(path.read_text(encoding="utf-8")))
    ]
    for place in (1, 2):
        homes: dict[str, list[str]] = {}
        for alias in found:
            homes.setdefault(alias[place], []).append(alias[0])
        assert {alias: modules for alias, modules in homes.items() if len(modules) > 1} == {}


def run_python(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_package_is_this_checkouts_folder(tmp_path: Path) -> None:
    """Catches a stranger's `app` or `runtime` that comes first on the path."""
    names = ", ".join(PACKAGES)
    code = f"import {names}\nfor m in ({names}): print(m.__file__)"
    found = [Path(line).resolve() for line in run_python(code, tmp_path).splitlines()]
    assert found == [ROOT / name / "__init__.py" for name in PACKAGES]


@pytest.mark.parametrize(
    "module",
    [
        "simulator",
        "simulator.des.simulate",
        "simulator.planner.search",
        "app.cli",
        "app.commands.plan",
        "app.commands.simulate",
        "app.commands.catalogue",
        "app.render.plan",
        "app.views.plan",
    ],
)
def test_works_without_torch(module: str, tmp_path: Path) -> None:
    blocked = "import sys; sys.modules.update(torch=None, triton=None)\n"
    run_python(f"{blocked}import {module}", tmp_path)


def test_planning_imports_neither_scipy_nor_pandas(tmp_path: Path) -> None:
    """They take longer to import than a small plan takes, in each process that checks designs."""
    code = "import sys, simulator.planner.verify\nassert not {'scipy', 'pandas'} & set(sys.modules)"
    run_python(code, tmp_path)


def test_help_needs_no_heavy_import(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom app.cli import main\nsys.argv = ['moeplan', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'scipy', 'pandas', 'numpy', 'simpy', 'streamlit', 'plotly', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert "catalogue" in run_python(code, tmp_path)
