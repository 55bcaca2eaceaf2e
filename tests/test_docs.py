"""The pages agree with the code: links, file names, config keys, metrics, tables, and code that runs."""

import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest

import reinforce_lite as rl
from helpers.paths import RECIPE, ROOT
from helpers.tiny import ToyTask
from reinforce_lite.config import Config, parse_config
from reinforce_lite.runlog.run import Run

DOCS = ROOT / "docs"
PACKAGE = ROOT / "src" / "reinforce_lite"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
RECIPES = [*(PACKAGE / "recipes").glob("*.toml"), *(ROOT / "experiments").glob("*.toml")]
OLD_KEYS = r"\b(samples_per_prompt|answers_in_flight|update\.state|objective\.clamp|objective\.normalize)\b"
TERMS = """advantage, advantage clip, baseline, completion, dry run, engine, extracted answer, fault, gold, group,
group size, leave-one-out, lenient, live group, loss normalization, master weights, micro-batch, no-signal group,
policy, prefill text, preset, prompt, recipe, response, rollout, running sequences, second opinion, strict"""


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.+?)^```", read(page), re.DOTALL | re.MULTILINE)


def cases(pattern: str) -> Any:
    """(page, match) for each distinct match in a page, as test parameters; the old names in the changelog
    are left out."""
    return [
        pytest.param(page, found, id=f"{page.relative_to(ROOT)}:{found}")
        for page in PAGES
        if page.name != "CHANGELOG.md"
        for found in dict.fromkeys(re.findall(pattern, read(page)))
    ]


def anchors(page: Path) -> set[str]:
    """What a link into a page can name: its headings, as GitHub spells them, and its own anchors."""
    headings = re.findall(r"^#+ (.+)$", read(page), re.MULTILINE)
    slugs = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="(.+?)">', read(page)))


@pytest.mark.parametrize(("page", "link"), cases(r"\]\((?!https?:)([^)\s]+)\)"))
def test_link_leads_somewhere(page: Path, link: str) -> None:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    assert target.exists()
    assert not anchor or anchor in anchors(target)


@pytest.mark.parametrize(("page", "file"), cases(r"`((?:[a-z_0-9]+/)+[a-z_0-9]+\.(?:py|toml|json))`"))
def test_named_file_exists(page: Path, file: str) -> None:
    assert (ROOT / file).exists() or (PACKAGE / file).exists()


@pytest.mark.parametrize(("page", "option"), cases(r"--((?!section)[a-z]+\.[a-z0-9-]+)"))
def test_named_option_is_a_config_key(page: Path, option: str) -> None:
    section, _, key = option.replace("-", "_").partition(".")
    assert key in getattr(Config(), section).__class__.model_fields


@pytest.mark.parametrize("file", [*PAGES, *RECIPES], ids=lambda file: str(file.relative_to(ROOT)))
def test_old_keys_are_gone(file: Path) -> None:
    if file.name != "CHANGELOG.md":  # it says what they are called now
        assert re.findall(OLD_KEYS, read(file)) == []


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "toml")], ids=lambda page: page.name)
def test_recipe_fragment_is_valid(page: Path) -> None:
    for block in blocks(page, "toml"):
        parse_config(tomllib.loads(block), page.name)


# ── Reference pages ──


def documented(title: str) -> set[str]:
    """The metrics in a table of metrics.md; each has a description."""
    section = read(DOCS / "metrics.md").split(f"## {title}")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(.+?)` \| (.+?) \|", section, re.MULTILINE)
    assert all(description.strip() for _, description in rows)
    return {name for name, _ in rows}


def test_metrics_page_has_the_keys_of_a_real_run(settings: dict[str, Any]) -> None:
    run = rl.train(RECIPE, settings | {"train.steps": 1}, task=ToyTask(), run="a", quiet=True)
    greedy = rl.evaluate("a", task=ToyTask(), quiet=True).to_record()
    sampled = rl.evaluate("a", samples=2, task=ToyTask(), quiet=True).to_record()
    pass_at_1 = {"pass@1", "pass@1_interval"}
    assert documented("steps.jsonl") == set(run.steps[0])
    assert documented("evals.jsonl") == set(run.evals[0]) | pass_at_1
    assert set(greedy) == set(run.evals[0]) - {"seconds"}
    assert pass_at_1 <= set(sampled)


def test_configuration_page_is_what_its_script_writes() -> None:
    script = runpy.run_path(str(DOCS / "configuration.py"))
    assert read(script["PAGE"]) == script["page"](), "run docs/configuration.py"


def test_experiments_page_has_the_tables_that_were_written() -> None:
    script = runpy.run_path(str(DOCS / "experiments.py"))
    page = read(script["PAGE"])
    assert page == script["with_tables"](page), "run docs/experiments.py"
    for table in (DOCS / "results").glob("*.md"):
        assert f"results/{table.name}" in page


def test_glossary_is_complete_and_in_order() -> None:
    terms = re.findall(r"^(?:<a .*</a>)?\*\*(.+?)\*\* · \w", read(DOCS / "glossary.md"), re.MULTILINE)
    assert terms == sorted(terms)
    assert set(re.split(r",\s", TERMS)) <= set(terms)


def test_api_page_has_the_public_names() -> None:
    names = set(re.findall(r"^\| `rl\.(\w+)", read(DOCS / "api.md"), re.MULTILINE))
    assert names == set(rl.__all__)
    assert all(hasattr(rl, name) for name in names)


# ── Code of the pages ──


def test_task_of_the_how_to_trains(settings: dict[str, Any]) -> None:
    (block,) = blocks(DOCS / "howto" / "own-task.md", "python")
    Path("my_task.py").write_text(block)
    small = {"train.steps": 1, "rollout.prompts_per_step": 4, "task.name": "./my_task.py"}
    run = rl.train(RECIPE, settings | small, run="own", quiet=True)
    assert run.steps[0]["reward_faults"] == 0
    assert run.before
    assert run.before["n"] == 2  # the size of its test split


def test_snippet_of_getting_started_runs(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = rl.train

    def tiny_train(recipe: str, overrides: dict[str, Any]) -> Run:
        return train(RECIPE, overrides | settings | {"train.steps": 1}, task=ToyTask(), quiet=True)

    monkeypatch.setattr(rl, "train", tiny_train)
    (block,) = blocks(DOCS / "getting-started.md", "python")
    Path("snippet.py").write_text(block)
    runpy.run_path("snippet.py")
    assert "'strict'" in capsys.readouterr().out
