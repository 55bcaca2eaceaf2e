"""docs/metrics.md names every metric that a real run writes, and none that it does not; pages hold the tables
that were made."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from helpers.paths import RECIPE, ROOT
from helpers.tiny import ToyTask
from reinforce_lite import api

TEXT = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")


def documented(title: str) -> set[str]:
    section = TEXT.split(f"## {title}")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(.+?)` \| (.+?) \|", section, re.MULTILINE)
    assert all(said.strip() for _, said in rows)
    return {name for name, _ in rows}


def test_every_metric_is_documented(model_folder: Path, in_tmp: Path) -> None:
    settings: dict[str, Any] = {"train.steps": 1, "model.name": str(model_folder)}
    run = api.train(RECIPE, settings, task=ToyTask(), run="a", quiet=True)
    assert documented("steps.jsonl") == set(run.steps[0])
    sampled = api.evaluate("a", samples=1, task=ToyTask(), quiet=True).to_record()
    pass_at = {"pass@1", "pass@1_interval"}
    assert documented("evals.jsonl") == set(run.evals[0]) | pass_at
    assert set(sampled) == set(run.evals[0]) - {"seconds"}
    sampled = api.evaluate("a", samples=2, task=ToyTask(), quiet=True).to_record()
    assert pass_at <= set(sampled)


@pytest.mark.parametrize("link", re.findall(r"\]\(\.\./([^)]+)\)", TEXT))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_tables_are_those_that_were_made() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "results.py"))
    pages = [page.read_text(encoding="utf-8") for page in script["PAGES"]]
    assert pages == [script["included"](page) for page in pages], "run docs/results.py"
    made = sorted(f"results/{file.name}" for file in (ROOT / "docs" / "results").glob("*.md"))
    assert sorted(name for page in pages for _, name, _ in script["INCLUDED"].findall(page)) == made
