"""The program's version where it is installed and where it is not."""

import importlib.metadata

import pytest

import reinforce_lite
from reinforce_lite.utils import program
from reinforce_lite.utils.environment import package_versions


def test_versions_without_metadata_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the folder of the sources was copied to another machine and put on PYTHONPATH."""

    def version(name: str) -> str:
        if name == "reinforce-lite":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(program, "version", version)
    versions = package_versions()
    assert versions["torch"] == "1.0"
    assert versions["reinforce-lite"] == reinforce_lite.__version__
    assert "unknown" in reinforce_lite.__version__
