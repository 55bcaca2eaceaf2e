"""The package has the folders and modules of its architecture, and no module imports itself in a circle."""

from graphlib import TopologicalSorter

import grimp

from helpers.paths import ROOT

PACKAGE = ROOT / "src" / "reinforce_lite"
LAYOUT = [
    "api.py",
    "callbacks/",
    "cli/",
    "config.py",
    "engines/",
    "errors.py",
    "evaluation/",
    "learner/",
    "models/",
    "pipeline.py",
    "planner/",
    "py.typed",
    "recipes/",
    "report/",
    "rollout/",
    "runlog/",
    "tasks/",
    "trainer/",
    "types.py",
    "utils/",
]


def test_layout_is_that_of_the_architecture() -> None:
    names = {f"{path.name}/" if path.is_dir() else path.name for path in PACKAGE.iterdir()}
    assert sorted(names - {"__init__.py", "__main__.py", "__pycache__/"}) == sorted(LAYOUT)


def test_imports_have_no_circle_through_a_package() -> None:
    """The contract acyclic_siblings compares modules of one folder; this one includes each folder's __init__."""
    graph = grimp.build_graph("reinforce_lite", exclude_type_checking_imports=True, cache_dir=None)
    TopologicalSorter(
        {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    ).prepare()
