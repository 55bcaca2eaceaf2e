"""The notebook in a real kernel: what its cells show. Slow: it installs a kernel into an environment of its own."""

import json
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from helpers.environments import make_environment, run_python
from helpers.paths import ROOT

SETTINGS = """
overrides |= {"train.steps": 2, "eval.n": 4, "rollout.prompts_per_step": 5, "rollout.group_size": 4,
              "rollout.max_new_tokens": 6, "prompt.max_tokens": 1900, "model.name": MODEL}
"""
FAILING = ["rl.load('nothing')", "rl.train(recipe, task=print)", "1 / 0"]
EXECUTE = """
import json, nbformat, nbclient
notebook = nbformat.read("notebook.ipynb", 4)
nbclient.NotebookClient(notebook, timeout=1200, allow_errors=True).execute()
print(json.dumps([cell.get("outputs", []) for cell in notebook.cells if cell.cell_type == "code"]))
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with a kernel; the packages of the running one, and the source tree, come after its own."""
    folder = tmp_path_factory.mktemp("kernel")
    python = make_environment(folder, "ipykernel", "nbclient")
    site = run_python(python, "import sysconfig; print(sysconfig.get_path('purelib'))", folder).strip()
    paths = [str(ROOT / "src"), sysconfig.get_path("purelib")]
    (Path(site) / "dependencies.pth").write_text("\n".join(paths))
    return python


@pytest.mark.slow
def test_what_the_cells_of_the_notebook_show(kernel: Path, model_folder: Path, tmp_path: Path) -> None:
    notebook = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names = [cell["id"] for cell in cells]
    cells[0]["source"] = [*cells[0]["source"], SETTINGS.replace("MODEL", repr(str(model_folder)))]
    cells += [cells[0] | {"id": f"failing-{i}", "source": [code]} for i, code in enumerate(FAILING)]
    (tmp_path / "notebook.ipynb").write_text(json.dumps(notebook | {"cells": cells}), encoding="utf-8")
    *outputs, load_error, task_error, bug = json.loads(run_python(kernel, EXECUTE, tmp_path))
    shown: dict[str, list[dict[str, Any]]] = dict(zip(names, outputs, strict=True))
    assert not [output for cell in outputs for output in cell if output["output_type"] == "error"]

    displays = [output for output in shown["train"] if output["output_type"] == "display_data"]
    assert len(displays) == 3  # the display, the result, what to try next
    assert "2/2" in displays[0]["data"]["text/plain"]
    (result,) = shown["result"]
    assert "after (n = 4)" in result["data"]["text/html"]
    assert "<svg" in result["data"]["text/html"]
    assert "untrained: " in shown["ask"][-1]["text"]

    for (error,) in (load_error, task_error):
        assert error["ename"] == "UsageError"
        assert len(error["traceback"]) == 2
    assert len(bug[0]["traceback"]) > 2
