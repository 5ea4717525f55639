"""The direction of imports, read from the source, and what imports cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("hw_profiles", "simulator", "runtime", "calibration", "app")

# Room -> rooms that it may import, itself included.
MAY_IMPORT = {
    "hw_profiles": {"hw_profiles"},
    "simulator.model": {"hw_profiles", "simulator.model"},
    "simulator.steady_state": {"hw_profiles", "simulator.model", "simulator.steady_state"},
    "simulator.des": {"hw_profiles", "simulator.model", "simulator.des"},
    "simulator.planner": {"hw_profiles", "simulator.model", "simulator.des", "simulator.planner"},
    "simulator": set(),
    "runtime": {"runtime"},
    "calibration": {
        "hw_profiles",
        "simulator.model",
        "simulator.des",
        "simulator.planner",
        "calibration",
        "runtime",
    },
    "app": {
        "hw_profiles",
        "simulator.model",
        "simulator.des",
        "simulator.planner",
        "calibration",
        "runtime",
        "app",
    },
}
# Room -> rooms that it may import only inside functions, because torch may be absent.
ONLY_LAZILY = {"calibration": {"runtime"}, "app": {"runtime", "calibration"}}


def room_of(module: str) -> str | None:
    """'simulator.des.simulate' -> 'simulator.des'; None for other people's modules."""
    parts = module.split(".")
    if parts[0] not in PACKAGES:
        return None
    return ".".join(parts[:2]) if parts[0] == "simulator" and len(parts) > 1 else parts[0]


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
    found = []
    package = module if is_package else module.rpartition(".")[0]
    for target, top in imports(ast.parse(source), package):
        there = room_of(target)
        if there is None:
            continue
        if there not in MAY_IMPORT[here]:
            found.append(f"{module} imports {target}: {here} may not know {there}")
        elif top and there in ONLY_LAZILY.get(here, set()):
            found.append(f"{module} imports {target} at module level: only inside functions")
    return found


SOURCES = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    assert problems(module, path.read_text(encoding="utf-8"), is_package=is_package) == []


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
    ],
)
def test_the_check_sees_what_is_forbidden(module: str, source: str) -> None:
    assert len(problems(module, source)) == 1


@pytest.mark.parametrize("head", ["def f():", "if TYPE_CHECKING:"])
def test_the_check_lets_lazy_imports_pass(head: str) -> None:
    assert problems("app.commands.runtime", f"{head}\n    from runtime.engine import Engine") == []


def test_type_checking_is_no_way_around_the_direction() -> None:
    assert len(problems("simulator.des.cluster.cluster", "if TYPE_CHECKING:\n    from app.cli import main")) == 1


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
