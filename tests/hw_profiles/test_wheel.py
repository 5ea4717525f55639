"""The data files travel in the wheel."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_catalogue_works_from_a_built_wheel(tmp_path):
    wheel = pytest.importorskip("hatchling.builders.wheel")
    built = next(wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    with zipfile.ZipFile(built) as archive:
        archive.extractall(tmp_path / "site")
    code = "from hw_profiles import catalog as c; print(c.__file__, len(c.names()), c.load('b300').stack)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    file, count, stack = done.stdout.split()
    assert Path(file).is_relative_to(tmp_path)
    assert count == str(len(list((ROOT / "hw_profiles/data/accelerators").glob("*.toml"))))
    assert stack == "default"
