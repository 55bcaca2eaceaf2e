"""Environments with packages that are not among the dependencies, for slow tests of what other programs do."""

import subprocess
import venv
from pathlib import Path

import pytest


def make_environment(folder: Path, *packages: str) -> Path:
    """The Python of a fresh environment with these packages; skips the test where no index can be reached."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        *packages,
    ]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{' '.join(packages)} can't be installed: {done.stderr.strip().splitlines()[-1:]}")
    return python


def run_python(python: Path, code: str, cwd: Path) -> str:
    """What the code prints. Only the environment's own packages can be imported."""
    done = subprocess.run(
        [str(python), "-I", "-c", code], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
