"""Create .venv and install the project into it: `python3 .ci/install.py base|dev`.

Needs only a bare python3 (Debian's, without python3-venv, will do). uv installs several times faster than pip
and is used where it can be had. Where this machine's python already has a torch that suits, the virtual
environment sees it and nothing is replaced; elsewhere the CPU build is asked for by a constraints file.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
CONSTRAINTS = ROOT / ".ci" / "constraints-cpu.txt"


def run(*command: str | Path, env: dict[str, str] | None = None) -> bool:
    return subprocess.run([str(c) for c in command], cwd=ROOT, env=env).returncode == 0


def has_system_torch() -> bool:
    """A torch of at least 2.6 in the python that creates the environment."""
    if importlib.util.find_spec("torch") is None:
        return False
    try:
        major, minor = re.match(r"(\d+)\.(\d+)", importlib.metadata.version("torch")).groups()  # type: ignore[union-attr]
    except (importlib.metadata.PackageNotFoundError, AttributeError):
        return False
    return (int(major), int(minor)) >= (2, 6)


def create_venv(system_packages: bool) -> None:
    flags = ["--system-site-packages"] if system_packages else []
    if importlib.util.find_spec("ensurepip"):
        done = run(sys.executable, "-m", "venv", *flags, VENV)
    else:
        done = run(sys.executable, "-m", "venv", "--without-pip", *flags, VENV) and bootstrap_pip()
    if not done:
        sys.exit(f"install: could not create the virtual environment {VENV}")


def bootstrap_pip() -> bool:
    """Debian leaves ensurepip out of python3: take pip's wheel from the package index; it installs itself."""
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/") + "/pip/"
    with urllib.request.urlopen(index, timeout=60) as page:
        links = re.findall(r'href="([^"]+\.whl[^"]*)"', page.read().decode())
    version = re.compile(r"pip-(\d+)\.(\d+)(?:\.(\d+))?-py3")
    newest = max(
        (link for link in links if version.search(link)),
        key=lambda link: tuple(int(n or 0) for n in version.search(link).groups()),  # type: ignore[union-attr]
    )
    url = urllib.parse.urldefrag(urllib.parse.urljoin(index, newest)).url
    with tempfile.TemporaryDirectory() as folder:
        wheel = Path(folder) / url.rsplit("/", 1)[-1]
        with urllib.request.urlopen(url, timeout=120) as response:
            wheel.write_bytes(response.read())
        return run(PYTHON, f"{wheel}/pip", "install", "-q", "--no-index", wheel)


def uv_environment() -> dict[str, str]:
    """uv does not read pip's configuration: hand over its find-links and indexes."""
    env = dict(os.environ)
    for pip_key, uv_key in (
        ("find-links", "UV_FIND_LINKS"),
        ("index-url", "UV_DEFAULT_INDEX"),
    ):
        value = subprocess.run(
            [str(PYTHON), "-m", "pip", "config", "get", f"global.{pip_key}"], capture_output=True, text=True
        ).stdout.strip()
        value = os.environ.get("PIP_" + pip_key.upper().replace("-", "_"), value)
        if value and uv_key not in env:
            env[uv_key] = value.replace("\n", ",").replace(" ", ",")
    return env


def install(extra: str, system_packages: bool) -> None:
    target = f".[{extra}]" if extra else "."
    constraints = [] if system_packages else ["-c", CONSTRAINTS]
    # uv does not count packages seen through --system-site-packages as installed; pip does.
    if not system_packages and run(PYTHON, "-m", "pip", "install", "-q", "--disable-pip-version-check", "uv"):
        uv = VENV / "bin" / "uv"
        arguments = [uv, "pip", "install", "-q", "--python", PYTHON, *constraints, "-e", target]
        if run(*arguments, env=uv_environment()):
            return
        print("install: uv could not finish, trying pip", file=sys.stderr)
    if not run(PYTHON, "-m", "pip", "install", "-q", *constraints, "-e", target):
        sys.exit("install: the packages could not be installed; see the messages above")


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036  any python3 may run this file
        found = sys.version.split()[0]
        sys.exit(f"install: python {found} is too old; moeplan needs 3.11 or newer (make PYTHON=python3.12)")
    if len(sys.argv) != 2 or sys.argv[1] not in ("base", "dev"):
        sys.exit("usage: python3 .ci/install.py base|dev")
    kind = sys.argv[1]
    system_packages = has_system_torch()
    if not PYTHON.exists():
        create_venv(system_packages)
    print(f"install: setting up .venv ({kind}); a minute or two the first time", file=sys.stderr)
    install("dev" if kind == "dev" else "", system_packages)
    (VENV / ".base").touch()
    if kind == "dev":
        (VENV / ".dev").touch()


main()
