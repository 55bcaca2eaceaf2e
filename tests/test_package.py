"""The wheel is complete: installed without the source tree it answers --help, plans, and trains."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from helpers.paths import RECIPE, ROOT

PACKAGE = ROOT / "src" / "reinforce_lite"
DATA_SUFFIXES = {".toml", ".typed", ".js", ".css", ".html"}
TINY_RUN = (
    "--train.steps",
    "1",
    "--rollout.max-new-tokens",
    "4",
    "--prompt.max-tokens",
    "300",
    "--eval.n",
    "2",
)


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command without the source tree on its path; return stdout."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "HOME": str(cwd)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built without a package index."""
    pytest.importorskip("hatchling", reason='needs the extra "dev"')
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True
    )
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a fresh environment with the wheel; dependencies are those of the running one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    # Lines of a .pth file that are paths go to the end of sys.path, so the wheel's copy comes first.
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = (sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index")
    subprocess.run([*pip, "--quiet", "--ignore-installed", wheel], check=True)
    return folder / "bin"


def test_wheel_has_every_module_and_data_file(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.startswith("reinforce_lite/")}
    files = {
        str(Path("reinforce_lite") / path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert names == files
    assert {Path(name).suffix for name in names} == DATA_SUFFIXES | {".py"}
    for name in (
        "py.typed",
        "recipes/quickstart.toml",
        "tasks/wordmath_stories.toml",
        "report/static/page.html",
    ):
        assert f"reinforce_lite/{name}" in names


def test_installed_wheel_runs_from_another_folder(
    installed: Path, model_folder: Path, tmp_path: Path
) -> None:
    program = installed / "reinforce-lite"
    where = "import reinforce_lite; print(reinforce_lite.__file__)"
    assert run(installed / "python", "-c", where, cwd=tmp_path).startswith(str(installed.parent))
    assert "train" in run(program, "--help", cwd=tmp_path)
    model = ("--model.name", str(model_folder))
    assert "rollout" in run(program, "plan", RECIPE, *model, "--json", cwd=tmp_path)
    run(program, "train", RECIPE, *model, *TINY_RUN, "--run", "tiny", cwd=tmp_path)
    assert {"report.html", "summary.json", "model"} <= {
        path.name for path in (tmp_path / "runs/tiny").iterdir()
    }
