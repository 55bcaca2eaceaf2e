"""The package is complete: installed without the source tree it answers --help, plans, and trains.

And an index can show it: its description has no dead links, and the source distribution is small.
"""

import re
import runpy
import subprocess
import sys
import sysconfig
import tarfile
import venv
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import pytest

from helpers.environments import make_environment
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


def build(kind: str, root: Path, folder: Path) -> Path:
    """The project's wheel or sdist, built without a package index."""
    pytest.importorskip("hatchling", reason='needs the extra "dev"')
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", folder], cwd=root, check=True
    )
    (file,) = folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return file


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


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


LARGEST_SDIST = 600_000  # bytes
LINKS = re.compile(r"\]\(([^)\s]+)\)")


def files(wheel: Path) -> dict[str, bytes]:
    with ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_sdist_has_source_and_pages_and_builds_the_same_wheel(
    sdist: Path, wheel: Path, tmp_path: Path
) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(tmp_path, filter="data")
    assert {name.partition("/")[0] for name in names} == {
        *("src", "docs", "examples", "hatch_build.py", "pyproject.toml", "PKG-INFO", "LICENSE", ".gitignore"),
        *("README.md", "CHANGELOG.md", "CITATION.cff"),
    }
    assert {"docs/run-files.md", "docs/howto/own-task.md", "examples/quickstart.ipynb"} <= names
    assert {Path(name).suffix for name in names if name.startswith("docs/")} == {".md"}
    assert not [name for name in names if name.startswith("docs/results/")]
    assert sdist.stat().st_size < LARGEST_SDIST
    (root,) = tmp_path.iterdir()
    assert files(build("wheel", root, tmp_path)) == files(wheel)


def test_description_of_the_package_has_no_dead_links(wheel: Path) -> None:
    (metadata,) = [data for name, data in files(wheel).items() if name.endswith("/METADATA")]
    message = message_from_bytes(metadata)
    assert message["Description-Content-Type"] == "text/markdown"
    assert message["License-Expression"] == "MIT"
    assert message["Project-URL"].startswith("Article, https://")
    assert message["Author"] == "The Reinforce-Lite authors"
    text = str(message.get_payload(decode=True), "utf-8")  # type: ignore[arg-type]
    links = LINKS.findall(text)
    assert links
    assert [link for link in links if not link.startswith("https://")] == []
    assert "docs/report.png" not in text
    assert "an adapter of rank 8" in text  # of a link only the text is left


def test_links_of_the_description_lead_into_a_repository_that_is_known() -> None:
    pytest.importorskip("hatchling", reason='needs the extra "dev"')
    index_readme = runpy.run_path(str(ROOT / "hatch_build.py"))["index_readme"]
    readme, url = (ROOT / "README.md").read_text(encoding="utf-8"), "https://example.org/us/it"
    text = index_readme(readme, url)
    before, after = LINKS.findall(readme), LINKS.findall(text)
    assert len(before) == len(after) > 10
    for old, new in zip(before, after, strict=True):
        if not old.startswith("https://"):
            kind = "raw" if old.endswith(".png") else "blob"
            assert new == f"{url}/{kind}/main/{old}"
    assert index_readme("see [a\nb](docs/x.md#y), ![c](d.png) [e](#f) [g](https://h)", "") == (
        "see a\nb,  [e](#f) [g](https://h)"
    )


@pytest.mark.slow
def test_twine_accepts_wheel_and_sdist(
    wheel: Path, sdist: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    python = make_environment(tmp_path_factory.mktemp("twine"), "twine", "readme-renderer[md]")
    command: list[str | Path] = [python, "-m", "twine", "check", "--strict", wheel, sdist]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2
