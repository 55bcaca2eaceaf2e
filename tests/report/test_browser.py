"""The report in a real browser, without network: what a person can click, and that a model's text is harmless.

Needs Chromium (on Debian: `apt install chromium`). Without it these tests are skipped, unless
REINFORCE_LITE_BROWSER=required says that a missing browser is a failure, as .ci/run does.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest

from helpers import run_files as runs
from helpers.paths import RECIPE
from helpers.run_files import HOSTILE, completion, eval_completions, hostile, step
from helpers.tiny import ToyTask
from reinforce_lite import api
from reinforce_lite.learner.objective import compute_advantages
from reinforce_lite.learner.presets import PRESETS
from reinforce_lite.report.write import write_report
from reinforce_lite.runlog.records import Record
from reinforce_lite.runlog.run import Run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
REQUIRED = os.environ.get("REINFORCE_LITE_BROWSER") == "required"
QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]

if REQUIRED:
    from playwright import sync_api
else:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is in the extra browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None and not REQUIRED, reason="no Chromium here; install it to test the report's page"
)


Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")


@dataclass
class Opened:
    """An opened page, with its console messages and requests."""

    page: sync_api.Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).inner_text())

    def cards(self, selector: str = "") -> int:
        return int(self.page.locator(f"#groups .card{selector}").count())


class OpenReport(Protocol):
    """Opens the report of some runs."""

    def __call__(self, *shown: Run, width: int = 1280, scheme: Scheme = "light") -> Opened: ...


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def show(browser: sync_api.Browser, tmp_path: Path) -> Iterator[OpenReport]:
    """Open the report of some runs; at the end, the console must be empty and only the file requested."""
    opened: list[Opened] = []

    def open_report(*shown: Run, width: int = 1280, scheme: Scheme = "light") -> Opened:
        file = tmp_path / "report.html"
        write_report(shown, file)
        context = browser.new_context(
            viewport={"width": width, "height": 844}, offline=True, color_scheme=scheme
        )
        view = Opened(context.new_page())
        view.page.on("console", lambda message: view.complaints.append(message.text))
        view.page.on("pageerror", lambda error: view.complaints.append(str(error)))
        view.page.on("dialog", lambda dialog: view.complaints.append(dialog.message))
        view.page.on("request", lambda request: view.requests.append(request.url))
        view.page.goto(file.as_uri())
        opened.append(view)
        return view

    yield open_report
    for view in opened:
        assert view.complaints == []
        assert view.requests == [(tmp_path / "report.html").as_uri()]
        view.page.context.close()


def two_steps(path: Path) -> Run:
    """2 questions x 2 completions x 2 steps; 3 test problems: gained, lost and still wrong."""
    rollouts = [
        completion(1, "apples", True, 0, completion="Wait, <answer>7</answer>"),
        completion(1, "apples", False, 1, truncated=True),
        completion(1, "pears", False, 0, lenient=True),
        completion(1, "pears", False, 1),
        completion(2, "plums", True, 0),
        completion(2, "plums", True, 1, completion="I recheck: <answer>7</answer>"),
        completion(2, "figs", False, 0, completion="a needle in the hay"),
        completion(2, "figs", True, 1),
    ]
    evaluations = [
        eval_completions(0, [False, True, False]),
        eval_completions(2, [True, False, False]),
        eval_completions(0, [False], "validation"),
        eval_completions(1, [True], "validation"),
        eval_completions(2, [True], "validation"),
    ]
    lines = [step(1, reward=0.25), step(2, reward=0.75, entropy=0.125)]
    return runs.write(
        path, lines, rollouts, evaluations, stopped="steps", memory={"planned_bytes": 4e9, "peak_bytes": 5e9}
    )


def three_steps(path: Path) -> Run:
    """A question with one completion a step; 8 test problems, all gained, by every verdict."""
    return runs.write(
        path,
        [step(1), step(2), step(3)],
        [completion(n, "cherries") for n in (1, 2, 3)],
        [eval_completions(at, [at > 0] * 8, second_opinion=at > 0) for at in (0, 3)],
        stopped="steps",
    )


def test_page_has_the_result_and_every_section(show: OpenReport, tmp_path: Path) -> None:
    view = show(two_steps(tmp_path / "mine"))
    assert "solves 33.3% of 3 test problems" in view.text("h1").replace("\xa0", " ")
    assert view.page.locator(".whisker").count() == 4
    assert view.page.locator("#charts .chart").count() == 9
    assert view.page.locator("#reflection-charts .chart").count() == 3
    assert view.page.locator("#excerpts mark").all_inner_texts() == [
        "recheck",
        "Wait",
    ]  # the later step first
    assert "planned\n4.00 GB" in view.text("#costs-memory")
    assert "80.0%" in view.text("#costs-memory")
    view.page.click("summary:has-text('config.toml')")
    assert 'name = "smollm2-135m"' in view.text("#config")


def sections(view: Opened) -> list[str]:
    """The sections that are shown; the navigation has the same."""
    links = view.page.locator("nav a:visible").evaluate_all("links => links.map((a) => a.hash.slice(1))")
    shown = view.page.locator("section:visible").evaluate_all("nodes => nodes.map((node) => node.id)")
    assert links == shown
    return [str(name) for name in shown]


def test_page_has_no_section_for_what_is_not_there(show: OpenReport, tmp_path: Path) -> None:
    assert sections(show(runs.write(tmp_path / "a", planned=9))) == ["result", "costs"]
    asked = [eval_completions(0, [True])]
    view = show(runs.write(tmp_path / "b", evaluations=asked, planned=9))
    assert sections(view) == ["result", "eval-history", "costs"]
    view = show(runs.write(tmp_path / "c", [step(1)], [completion(1, "p")], planned=9))
    assert sections(view) == ["result", "curves", "completions", "costs"]
    assert not view.page.locator("#f-hit").is_visible()  # no completion has a reflection word
    view = show(two_steps(tmp_path / "d"), three_steps(tmp_path / "e"))
    view.page.select_option("#f-hit", "abc")
    everything = ["result", "curves", "completions", "eval-history", "reflection", "costs"]
    assert sections(view) == everything
    view.page.select_option("#run", "1")
    assert sections(view) == [name for name in everything if name != "reflection"]
    assert view.text("#groups-count") == "3 completions of 3 questions match"  # the hidden filter is off


def test_filters_narrow_the_completions(show: OpenReport, tmp_path: Path) -> None:
    view = show(two_steps(tmp_path / "mine"))
    count = "#groups-count"
    assert view.text(count) == "8 completions of 4 questions match"
    for control, value, expected in (
        ("#f-verdict", "right", "4 completions of 3 questions match"),
        ("#f-verdict", "wrong", "4 completions of 3 questions match"),
        ("#f-verdict", "format", "1 completion of 1 question matches"),
        ("#f-verdict", "mixed", "4 completions of 2 questions match"),
        ("#f-verdict", "", "8 completions of 4 questions match"),
        ("#f-hit", "abc", "2 completions of 2 questions match"),
        ("#f-hit", "a", "1 completion of 1 question matches"),
        ("#f-hit", "", "8 completions of 4 questions match"),
        ("#f-step", "2", "4 completions of 2 questions match"),
    ):
        view.page.select_option(control, value)
        assert view.text(count) == expected, (control, value)
    view.page.select_option("#f-step", "")
    view.page.check("#f-truncated")
    assert view.text(count) == "1 completion of 1 question matches"
    assert (view.cards(), view.cards(".dimmed")) == (2, 1)  # the rest of the group is shown, dimmed
    assert "truncated" in view.text("#groups .card:not(.dimmed)")


def test_search_covers_questions_and_completions(show: OpenReport, tmp_path: Path) -> None:
    view = show(two_steps(tmp_path / "mine"))
    view.page.fill("#f-text", "PLUMS")
    assert view.text("#groups-count") == "2 completions of 1 question match"
    assert view.text("#groups .question") == "What is plums?"
    view.page.fill("#f-text", "needle")
    assert view.text("#groups-count") == "1 completion of 1 question matches"
    view.page.fill("#f-text", "nowhere")
    assert view.cards() == 0


def test_eval_history_shows_a_question_over_time(show: OpenReport, tmp_path: Path) -> None:
    view = show(two_steps(tmp_path / "mine"))
    assert view.page.locator("#questions .head").all_inner_texts() == [
        "validation · ✗ untrained  ✓ after step 1  ✓ after step 2"
    ]  # it opens with the split evaluated most often
    view.page.select_option("#q-split", "test")
    assert view.page.locator("#questions .head").all_inner_texts() == [
        "test · ✗ untrained  ✓ after step 2",
        "test · ✓ untrained  ✗ after step 2",
        "test · ✗ untrained  ✗ after step 2",
    ]
    view.page.select_option("#q-outcome", "gained")
    assert view.page.locator("#questions .question").all_inner_texts() == ["What is test-0?"]


def test_chart_shows_values_at_the_cursor(show: OpenReport, tmp_path: Path) -> None:
    view = show(two_steps(tmp_path / "mine"))
    reward = view.page.locator("#charts .chart", has_text="mean reward")
    entropy = view.page.locator("#charts .chart", has_text="Entropy")
    assert "mean reward 0.75" in reward.inner_text()
    reward.locator("svg").hover(position={"x": 180, "y": 60})  # about the middle: step 1 of 0 to 2
    assert view.text("#at") == "at step 1"
    assert "mean reward 0.25" in reward.inner_text()
    assert "0.2" in entropy.locator(".legend").inner_text()  # all charts show the same step
    reward.locator("svg").press("ArrowRight")
    assert view.text("#at") == "at step 2"
    assert "0.125" in entropy.locator(".legend").inner_text()
    view.page.select_option("#axis", "seconds")
    reward.locator("svg").press("ArrowRight")
    assert view.text("#at") == "at 16 s"  # step 1: its 10 s, after two evaluations of 3 s


def test_difficulty_is_stacked(show: OpenReport, tmp_path: Path) -> None:
    """A quarter, then half of the questions have none right; a quarter, then none, up to a third. The picture is 160
    high from y = 168 upwards, and the steps 1 and 2 of 2 are at x = 218 and x = 390."""
    keys = [f"questions/{name}_right" for name in ("none", "few", "some", "most", "all")]
    shares = [(0.25, 0.25, 0, 0, 0.5), (0.5, 0, 0, 0, 0.5)]
    lines = [step(n, **dict(zip(keys, share, strict=True))) for n, share in enumerate(shares, 1)]
    view = show(runs.write(tmp_path / "a", lines))
    chart = view.page.locator("#charts .chart", has_text="Questions by difficulty")
    assert chart.locator("path.area").count() == 5
    few = "M218.0 128.0L390.0 88.0L390.0 88.0L218.0 88.0Z"
    assert chart.locator("path.area").nth(1).get_attribute("d") == few
    every = "M218.0 88.0L390.0 88.0L390.0 8.0L218.0 8.0Z"
    assert chart.locator("path.area").nth(4).get_attribute("d") == every
    assert "none right 50.0%" in chart.inner_text()


@pytest.mark.parametrize(
    ("n", "labels"), [(1, "0 1"), (2, "0 1 2"), (3, "0 1 2 3"), (27, "0 10 20 27"), (22, "0 10 22")]
)
def test_ticks_stand_where_their_labels_say(n: int, labels: str, show: OpenReport, tmp_path: Path) -> None:
    """Step 0 is at x = 46, the last at 390, and time likewise; a step takes 10 s."""
    view = show(runs.write(tmp_path / "a", [step(i) for i in range(1, n + 1)]))

    def ticks() -> list[tuple[str, float]]:
        below = view.page.locator("#charts .chart >> nth=0 >> svg text[y='184']")
        return [(str(t.text_content()), float(t.get_attribute("x") or 0)) for t in below.all()]

    shown = [(text.removeprefix("step "), x) for text, x in ticks()]
    assert " ".join(text for text, _ in shown) == labels
    assert [x for _, x in shown] == pytest.approx([46 + 344 * int(text) / n for text, _ in shown])
    view.page.select_option("#axis", "seconds")
    seconds = [float(text.split()[0]) * (60 if "min" in text else 1) for text, _ in ticks()]
    assert len(seconds) > 2
    assert [x for _, x in ticks()] == pytest.approx([46 + 344 * at / (10 * n) for at in seconds])


@pytest.mark.parametrize(("n", "dots"), [(1, 1), (2, 2), (3, 0)])
def test_one_or_two_steps_are_visible(n: int, dots: int, show: OpenReport, tmp_path: Path) -> None:
    shares = {f"questions/{name}_right": 0.2 for name in ("none", "few", "some", "most", "all")}
    view = show(runs.write(tmp_path / "a", [step(i, **shares) for i in range(1, n + 1)]))
    reward = view.page.locator("#charts .chart", has_text="mean reward")
    assert reward.locator("circle.lone").count() == dots
    difficulty = (
        view.page.locator("#charts .chart", has_text="Questions by difficulty").locator("path.area").first
    )
    box = difficulty.bounding_box()
    assert box is not None
    assert box["width"] > 15


def test_smoothed_is_said_only_where_it_is(show: OpenReport, tmp_path: Path) -> None:
    for n, control, told in ((4, False, False), (5, True, False), (15, True, True)):
        view = show(runs.write(tmp_path / str(n), [step(i, learning_rate=1e-4 / i) for i in range(1, n + 1)]))
        assert view.page.locator("#smoothing").is_visible() == control
        assert view.page.locator("#smoothed").is_visible() == told
        rate = view.page.locator("#charts .chart", has_text="Learning rate")
        assert rate.locator("path.raw").count() == 0  # it has no noise


def test_curves_tell_the_untrained_level_and_what_the_file_has(show: OpenReport, tmp_path: Path) -> None:
    """The gap of sampler and trainer is drawn where steps.jsonl has it. A quarter of 4 is right before training."""
    figures = {"reward_std": 0.25, "learning_rate": 1e-4, "logprob_gap/mean": 0.001, "logprob_gap/max": 0.02}
    asked = eval_completions(0, [True, False, False, False], "validation")
    run = runs.write(tmp_path / "a", [step(1, **figures)], evaluations=[asked], planned=9)
    (run.path / "evals.jsonl").write_text(json.dumps(run.evals[0] | {"best_constant": 0.75}) + "\n")
    view = show(run)
    legends = {
        name: view.page.locator("#charts .chart", has=view.page.locator(f"b:text-is('{name}')")).locator(
            ".legend"
        )
        for name in ("Accuracy", "Reward", "Reward spread", "Learning rate", "Gap between engine and update")
    }
    told = {name: legend.locator("span").all_inner_texts() for name, legend in legends.items()}
    assert told == {
        "Accuracy": [
            *("strict, sampled 50.0%", "lenient, sampled 50.0%"),
            *("validation, greedy (step 0, n = 4) 25.0%", "untrained, greedy 25.0%"),
            "best constant answer 75.0%",
        ],
        "Reward": ["mean reward 0.5", "untrained, greedy 0.25"],
        "Reward spread": ["within a group 0.25"],
        "Learning rate": ["learning rate 1e-4"],
        "Gap between engine and update": ["mean 0.001", "largest 0.02"],
    }
    assert "Gap of sampler" not in show(three_steps(tmp_path / "b")).text("#charts")


def test_unfinished_run_has_its_command(show: OpenReport, tmp_path: Path) -> None:
    run = runs.write(tmp_path / "mine", [step(1)], [completion(1, "p")], planned=9)
    (run.path / "command.txt").write_text("reinforce-lite train quickstart --run mine\n")
    assert show(run).text(".resume code") == "reinforce-lite train --run mine --resume"
    assert show(two_steps(tmp_path / "done")).page.locator(".resume").count() == 0


def test_navigation_shows_that_it_scrolls(show: OpenReport, tmp_path: Path) -> None:
    run = two_steps(tmp_path / "a")
    assert not show(run).page.locator("#nav-more").is_visible()
    view = show(run, width=390)
    more = view.page.locator("#nav-more")
    for _ in range(6):
        if more.is_visible():
            more.click()
            view.page.wait_for_timeout(60)
    assert not more.is_visible()
    assert view.page.evaluate("document.getElementById('nav-links').scrollLeft") > 100


def test_audit_is_shown_where_there_is_one(show: OpenReport, tmp_path: Path) -> None:
    audit: Record = {
        "ways": [
            {"way": "the recipe", "questions": 3, "accuracy": 0.5, "live": 0.25, "live_interval": [0.1, 0.5]},
            {"way": HOSTILE.replace("\ud83d", "")},
        ],
        "questions": [{"problem_id": str(i), "right": n, "samples": 2} for i, n in enumerate((0, 1, 1))],
        "advice": ["easier problems"],
    }
    with_audit = two_steps(tmp_path / "mine")
    with_audit.write_json("audit", audit)
    view = show(with_audit, three_steps(tmp_path / "other"))
    assert view.page.locator("#audit-told dt").all_inner_texts() == ["forecast", "outcome", "advice"]
    row = view.page.locator("#audit-ways tbody tr").first.locator("th, td").all_inner_texts()
    assert [re.sub(r"\s+", " ", cell) for cell in row] == [
        *("the recipe", "3", "50.0%", "–", "25.0% (10–50%)", "–", "–", "–"),
    ]
    heights = [
        float(bar.get_attribute("height") or 0) for bar in view.page.locator("#audit-rates rect").all()
    ]
    assert heights == [74, 148, 0]  # one question with none of two right, two with one
    view.page.select_option("#run", "1")
    assert not view.page.locator("#audit").is_visible()
    assert not view.page.locator("nav >> text=Audit").is_visible()


def with_objective(path: Path, preset: str, group: list[Record], refill: int = 1) -> Run:
    """A run of one step with one group."""
    run = runs.write(path, [step(1)], group)
    config = (path / "config.toml").read_text(encoding="utf-8")
    config = config.replace("[objective]", f"refill = {refill}\n[objective]").replace(
        "reinforce-lite", preset
    )
    (path / "config.toml").write_text(config, encoding="utf-8")
    return run


def rewarded(rewards: Sequence[float], recorded: Sequence[float], **changes: Any) -> list[Record]:
    """A group with these rewards and recorded advantages."""
    return [
        completion(1, "p", reward > 0, i, reward=reward, advantage=advantage, **changes)
        for i, (reward, advantage) in enumerate(zip(rewards, recorded, strict=True))
    ]


# The first completion's: rewards, its recorded advantage, and its origin, worked out by hand.
ORIGINS: list[tuple[str, list[float], float, str]] = [
    # others: 1, 0, 0, with mean 1/3 and deviation sqrt(1/3)
    (
        "reinforce-lite",
        [1, 1, 0, 0],
        2 / 3**0.5,
        "reward 1 − others’ mean 0.333 = 0.667\n÷ others’ deviation 0.577 = 1.15",
    ),
    (
        "reinforce-lite",
        [1, 0, 0, 0],
        2,
        "reward 1 − others’ mean 0 = 1\n÷ others’ deviation 0 (+ 1e-8, to avoid division by 0) = 100,000,000\nclipped to ±2 = 2",
    ),
    # others: 1 and eight of -1, with mean -7/9 and deviation 2/3
    (
        "article",
        [-1, 1, -1, -1, -1, -1, -1, -1, -1, -1],
        -1 / 3,
        "reward −1 − others’ mean −0.778 = −0.222\n÷ others’ deviation 0.667 = −0.333",
    ),
    ("rloo", [0, 1, 0, 0], -1 / 3, "reward 0 − others’ mean 0.333 = −0.333"),
    # all: mean 1/4, deviation 1/2
    ("grpo", [1, 0, 0, 0], 1.5, "reward 1 − group’s mean 0.25 = 0.75\n÷ group’s deviation 0.5 = 1.5"),
    ("dr-grpo", [1, 0, 0, 0], 0.75, "reward 1 − group’s mean 0.25 = 0.75"),
    ("monte-carlo", [1, 1, 1], 1, "no baseline: reward = 1"),
]


def test_origin_of_an_advantage_is_one_click_away(show: OpenReport, tmp_path: Path) -> None:
    """By mouse and by keyboard."""
    shown = [
        with_objective(tmp_path / str(n), preset, rewarded(rewards, [recorded, *rewards[1:]]))
        for n, (preset, rewards, recorded, _) in enumerate(ORIGINS)
    ]
    view = show(*shown)
    for n, (*_, origin) in enumerate(ORIGINS):
        view.page.select_option("#run", str(n))
        group = view.page.locator("#groups .advantages")
        assert not group.locator(".origin").first.is_visible()
        group.locator("summary").click() if n % 2 else group.locator("summary").press("Enter")
        assert origin in [text.replace("\xa0", " ") for text in group.locator(".origin").all_inner_texts()]


# Rewards, the recorded advantages, by hand, and the group's line. Of the others of a wrong completion one is right:
# with 8 of a group their mean is 1/7 and their deviation sqrt(1/7), with 4 they are 1/3 and sqrt(1/3).
LINES: list[tuple[str, list[float], list[float], str]] = [
    (
        "reinforce-lite",
        [0, 0, 1, *[0] * 5],
        [-1 / 7**0.5] * 2 + [2] + [-1 / 7**0.5] * 5,
        "1 of 8 right: advantage +2, clipped; the others −0.378",
    ),
    (
        "reinforce-lite",
        [1, 1, 1, 0],
        [3**-0.5] * 3 + [-2],
        "3 of 4 right: advantage +0.577 each; the other −2, clipped",
    ),
    ("dr-grpo", [0, 0.5, 1], [-0.5, 0, 0.5], "2 of 3 right: rewards 0 to 1, advantages −0.5 to +0.5"),
    ("monte-carlo", [1, 1], [1, 1], "2 of 2 right: advantage +1 each"),
    (
        "reinforce-lite",
        [0, 0, 0],
        [0, 0, 0],
        "0 of 3 right: no signal, as all rewards of the group are equal",
    ),
]


def test_a_line_tells_the_advantages_of_a_group(show: OpenReport, tmp_path: Path) -> None:
    view = show(
        *(
            with_objective(tmp_path / str(n), preset, rewarded(rewards, recorded))
            for n, (preset, rewards, recorded, _) in enumerate(LINES)
        )
    )
    for n, (*_, line) in enumerate(LINES):
        view.page.select_option("#run", str(n))
        assert view.text("#groups .advantages") == line
    view.page.select_option("#run", "0")
    view.page.click("#groups summary")
    assert view.text("#groups .advantages p") == (
        "advantage = (reward − mean of the others) ÷ (standard deviation of the others + 1e-8), clipped to ±2"
    )
    assert view.page.locator("#groups dt").all_inner_texts() == [
        "reward 1 (1 completion)",
        "reward 0 (7 completions)",
    ]


def test_lines_of_groups_that_are_not_counted(show: OpenReport, tmp_path: Path) -> None:
    """A reward that failed has the mean of the others'. With refill equal rewards do not count by any preset."""
    failed = rewarded([0, 0.5, 1], [-(0.75**0.5), 0, 0.75**0.5])
    failed[1] |= {"strict": False, "fault": "ValueError: no"}
    all_right = rewarded([1, 1, 1], [0] * 3)
    all_right[2] |= {"strict": False, "fault": "ValueError: no"}
    refill = "not counted, as with rollout.refill a group needs rewards that differ"
    unscored = "1 not counted, as the reward failed"
    cases = [
        ("reinforce-lite", failed, 1, f"1 of 3 right: advantage +0.866; the other −0.866; {unscored}"),
        ("monte-carlo", rewarded([0.5, 0.5], [0] * 2), 2, f"2 of 2 right: {refill}"),
        ("monte-carlo", all_right, 2, f"2 of 3 right: {refill}; {unscored}"),
        ("reinforce-lite", rewarded([0, 0], [-1, -1]), 1, "0 of 2 right: advantage −1 each"),
    ]
    shown = [
        with_objective(tmp_path / str(n), preset, group, refill)
        for n, (preset, group, refill, _) in enumerate(cases)
    ]
    view = show(*shown)
    for n, (*_, line) in enumerate(cases):
        view.page.select_option("#run", str(n))
        assert view.text("#groups .advantages") == line
    assert view.page.locator("#groups details").count() == 0  # the log lost the line of the right completion


def test_origin_of_an_advantage_in_a_warm_start(show: OpenReport, tmp_path: Path) -> None:
    """Of two equal right completions the second is not counted. The warm start ends after step 1."""
    group = rewarded([1, 1, 0], [1, 0, 0]) + [line | {"step": 2} for line in rewarded([1, 1, 1], [0] * 3)]
    run = with_objective(tmp_path / "a", "reinforce-lite", group)
    with (run.path / "config.toml").open("a", encoding="utf-8") as file:
        file.write("warm_start = 1\n")
    view = show(run)
    assert view.text("#groups summary >> nth=0") == "2 of 3 right: warm start, 1 learned from"
    assert view.page.locator("#groups .origin").all_text_contents() == [
        "warm start: 1 for each right completion",
        "warm start: not counted, since it repeats a completion of its group",
        "warm start: 0 for all other completions",
        "no signal, as all rewards of the group are equal",
    ]


def test_right_completions_come_first_among_those_that_match(show: OpenReport, tmp_path: Path) -> None:
    group = [completion(1, "p", right, i, truncated=i == 2) for i, right in enumerate((False, True, False))]
    view = show(runs.write(tmp_path / "a", [step(1)], group), width=390)
    verdicts = view.page.locator("#groups .verdict b")
    assert verdicts.all_inner_texts() == ["✓ right", "✗ wrong", "✗ wrong"]
    view.page.check("#f-truncated")
    assert verdicts.all_inner_texts() == ["✗ wrong", "✓ right", "✗ wrong"]


def test_origins_lead_to_the_advantages_that_training_takes(show: OpenReport, tmp_path: Path) -> None:
    """Graded rewards, by every preset: the last number of each origin is the recorded advantage.

    The page rounds rewards to five digits, which the second group's differ by.
    """
    groups = ([0.123456, 0.7, 0.7, -0.25, 1.0, 0.98], [0.500014, 0.5, 0.5])
    recorded = {
        name: [compute_advantages([rewards], objective)[0].tolist() for rewards in groups]
        for name, objective in PRESETS.items()
    }
    view = show(
        *(
            with_objective(tmp_path / name, name, [*rewarded(groups[0], first), *rewarded(groups[1], second)])
            for name, (first, second) in recorded.items()
        )
    )
    every = "current.groups.flatMap((group) => group.completions.map((c) => originOf(c, group).at(-1)))"
    for n, (name, expected) in enumerate(recorded.items()):
        view.page.select_option("#run", str(n))
        origins = view.page.evaluate(every)
        ends = [float(origin.rpartition("\xa0")[2].replace("−", "-")) for origin in origins]
        assert ends == pytest.approx([*expected[0], *expected[1]], rel=0.01), name


def test_smoothing_keeps_the_raw_line(show: OpenReport, tmp_path: Path) -> None:
    run = runs.write(tmp_path / "a", [step(n, reward=float(n % 2)) for n in range(1, 41)])
    view = show(run)
    reward = view.page.locator("#charts .chart", has_text="mean reward")
    assert (reward.locator("path.raw").count(), reward.locator("path.line").count()) == (1, 1)
    view.page.select_option("#smoothing", "0")
    assert (reward.locator("path.raw").count(), reward.locator("path.line").count()) == (0, 1)


@pytest.mark.parametrize(("scheme", "first", "second"), [("light", 255, 18), ("dark", 18, 255)])
def test_theme_can_be_switched(
    scheme: Scheme, first: int, second: int, show: OpenReport, tmp_path: Path
) -> None:
    view = show(two_steps(tmp_path / "mine"), scheme=scheme)

    def paper() -> int:
        colour = view.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return int(re.findall(r"\d+", colour)[0])

    assert paper() == first
    view.page.click("#theme")
    assert paper() == second


def test_page_compares_two_runs(show: OpenReport, tmp_path: Path) -> None:
    view = show(two_steps(tmp_path / "mine"), three_steps(tmp_path / "other"))
    rows = [
        [re.sub(r"\s", " ", cell) for cell in row.locator("th, td").all_inner_texts()]
        for row in view.page.locator("#compared tbody tr").all()
    ]
    assert [row[:3] + row[5:] for row in rows] == [
        ["mine", "33.3% (6–79%)", "33.3% (6–79%)", "p = 1", "2", "3", "1.7"],
        ["other", "0.0% (0–32%)", "100.0% (68–100%)", "p = 0.0078", "3", "8", "2.0"],
    ]
    assert "second opinion" not in view.text("#compared")  # it equals the lenient verdict
    strict = view.page.locator("#charts .chart", has_text="Accuracy: strict, sampled")
    assert strict.locator("path.line.s0").count() == strict.locator("path.line.s1").count() == 1
    assert view.text("#groups-count") == "8 completions of 4 questions match"
    view.page.select_option("#run", "1")
    assert view.page.locator("#groups .question").all_inner_texts() == ["What is cherries?"] * 3
    assert (
        "steps\n3, each of 1 question with 1 completion each\ncompletions\n3 with 60 tokens in total\n"
        in view.text("#facts")
    )


def test_page_compares_what_two_runs_were_asked(show: OpenReport, tmp_path: Path) -> None:
    """Test problems 0 to 2 are common: after training the first run has the first right, the second has all.

    The interval is 3/5 - 1/5 ± 1.96 sqrt((0.8 - 0.16) / 5), cut at 1.
    """
    mine, other = two_steps(tmp_path / "mine"), three_steps(tmp_path / "other")
    view = show(mine, other)
    cells = view.page.locator("#differences tbody").locator("th, td").all_inner_texts()
    assert [re.sub(r"\s", " ", cell) for cell in cells] == [
        *("other", "+66.7 points", "−30.1 to +100.0", "not more than chance explains p = 0.5"),
        *("3", "2", "0"),
    ]
    rows = {
        row.locator("th").inner_text(): row.locator("td").all_inner_texts()
        for row in view.page.locator("#settings tbody tr").all()
    }
    assert rows == {
        "rollout.prompts_per_step": ["2", "1"],
        "rollout.group_size": ["2", "1"],
        "train.steps": ["2", "3"],
    }
    assert view.page.locator("#differences").count() == 1
    assert show(mine).page.locator("#differences, #settings").count() == 0


def test_arrow_keys_reach_the_steps_of_every_run(show: OpenReport, tmp_path: Path) -> None:
    """The shorter run ends at step 2, so its legend has a dash at step 3."""
    view = show(two_steps(tmp_path / "mine"), three_steps(tmp_path / "other"))
    picture = view.page.locator("#charts .chart", has_text="Reward").locator("svg")
    seen = []
    for _ in range(4):
        picture.press("ArrowRight")
        seen.append(view.text("#at"))
    assert seen == ["at step 1", "at step 2", "at step 3", "at step 3"]
    legend = view.page.locator("#charts .chart", has_text="Reward").locator(".legend")
    assert legend.locator("span").all_inner_texts() == ["mine –", "other 0.5"]
    box = picture.bounding_box()
    assert box is not None
    picture.hover(position={"x": box["width"] - 20, "y": 60})
    assert view.text("#at") == "at step 3"


def test_second_opinions_are_shown(show: OpenReport, tmp_path: Path) -> None:
    """A task without a lenient verdict: the second opinion doubts one of the rewarded completions."""
    rollouts = [
        completion(1, "p", True, s, lenient=None, second_opinion=second)
        for s, second in enumerate((True, False, None))
    ]
    rollouts.append(completion(1, "p", False, 3, lenient=None, second_opinion=True))
    evaluations = [
        eval_completions(at, [True] * 4, lenient=None, second_opinion=[True, True, True, None])
        for at in (0, 1)
    ]
    run = runs.write(tmp_path / "a", [step(1)], rollouts, evaluations, stopped="steps")
    view = show(run, two_steps(tmp_path / "mine"))
    tags = [card.locator(".tag").all_inner_texts() for card in view.page.locator("#groups .card").all()]
    assert tags == [[], ["second opinion: wrong"], [], ["second opinion: right"]]
    view.page.select_option("#f-verdict", "doubted")
    assert view.text("#groups-count") == "1 completion of 1 question matches"
    assert "second opinion: wrong" in view.text("#groups .card:not(.dimmed)")
    head = view.page.locator("#compared thead th").all_inner_texts()
    row = view.page.locator("#compared tbody tr").first.locator("td").all_inner_texts()
    assert row[head.index("second opinion after") - 1] == "100.0%\n(44–100%)"
    assert row[head.index("lenient after") - 1] == "–"


def test_print_is_light_and_unclipped(show: OpenReport, tmp_path: Path) -> None:
    won = [eval_completions(at, [at > 0] * 8, question="long " * 2000) for at in (0, 2)]
    run = runs.write(tmp_path / "a", [step(1)], [completion(1, "p")], won, stopped="steps")
    for scheme in SCHEMES:
        view = show(run, scheme=scheme)
        if scheme == "light":
            view.page.click("#theme")
        assert view.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 26)"
        view.page.emulate_media(media="print", color_scheme=scheme)
        assert view.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert view.page.evaluate("getComputedStyle(document.body).color") == "rgb(28, 33, 40)"
        for place in ("#groups .text", ".example .text", "#questions .question", ".example .question"):
            style = "node => getComputedStyle(node).maxHeight"
            assert view.page.locator(place).first.evaluate(style) == "none", place


def test_page_shows_texts_that_are_numbers_or_none(show: OpenReport, tmp_path: Path) -> None:
    for gold, shown in ((72, "72"), (None, "–")):
        fields: dict[str, Any] = {"gold": gold, "reason": gold, "answer": gold, "completion": "Wait."}
        run = runs.write(
            tmp_path / shown,
            [step(1)],
            [completion(1, "p", False, **fields)],
            [eval_completions(0, [False], **fields)],
        )
        view = show(run)
        assert view.text("#groups .gold") == f"gold answer {shown}"
        assert view.text("#questions .gold") == f"gold answer {shown}"
        assert (
            view.text("#excerpts .why")
            == f"extracted answer {'none' if gold is None else shown}, gold {shown}"
        )


def test_page_without_memory_figures_has_no_empty_chart(show: OpenReport, tmp_path: Path) -> None:
    lines = [step(1, **{"memory/peak_bytes": None})]
    view = show(runs.write(tmp_path / "a", lines, [completion(1, "p")]))
    assert view.text("#costs-memory") == ""
    assert view.text("#groups-shown") == "All completions of training are here (1)."


def test_page_of_a_real_run(show: OpenReport, in_tmp: Path, model_folder: Path) -> None:
    """The page shows what training writes: 10 steps of 5 questions x 4 completions, an evaluation every 3 steps."""
    recipe, settings = RECIPE, {"model.name": str(model_folder)}
    run = api.train(recipe, settings, task=ToyTask(), run="real", quiet=True)
    view = show(run)
    after = run.summary["evals"]["after"]["strict"]
    assert f"After 10 steps, tiny solves {after:.1%} of 6 test problems" in view.text("h1")
    assert view.text("#groups-count") == "200 completions of 50 questions match"
    origins = "current.groups.flatMap((group) => group.completions.map((c) => originOf(c, group)))"
    assert [bool(origin) for origin in view.page.evaluate(origins)] == [True] * 200
    assert view.page.locator("#charts .chart").count() == 14
    assert re.sub("[✓✗] ", "", view.text("#questions .head >> nth=0")) == (
        "validation · untrained  after step 3  after step 6  after step 9  after step 10"
    )
    assert view.text("#questions-count") == "25 completions of 5 questions match"
    assert f"torch {run.summary['versions']['torch']}" in view.text("#facts")
    view.page.select_option("#q-split", "test")
    assert view.text("#questions-count") == "12 completions of 6 questions match"
    assert "of 6 test problems, compared with" in (run.path / "report.html").read_text(encoding="utf-8")


@pytest.mark.case(16)
@pytest.mark.case(26)
def test_hostile_completion_is_shown_and_inert(show: OpenReport, tmp_path: Path) -> None:
    view = show(hostile(tmp_path / "<img src=x onerror=window.__hit=4>"))
    view.page.fill("#f-text", "onerror")
    assert view.page.evaluate("window.__hit") is None
    assert view.page.locator("img").count() == 0
    assert view.page.locator("script").count() == 2
    shown = (
        HOSTILE.replace("\x1b", "\\u001b")
        .replace("\x00", "\\u0000")
        .replace("\u202e", "\\u202e")
        .replace("\ud83d", "\\ud83d")
    )
    shown = re.sub(r"\s", "", shown)  # U+2028 is a line's end to some
    for place in (
        "#groups .card .text",
        "#groups .card .why code",
        "#groups .question",
        "#groups .gold",
        "#groups .facts",
        "#questions .text",
        "#excerpts .text",
        "#result .example .text",
    ):
        first = view.page.locator(place).first
        assert shown in re.sub(r"\s", "", first.inner_text()), place
        assert first.is_visible()
    assert view.page.locator("#groups mark").first.inner_text() == "Wait"
    assert view.page.evaluate("window.__hit") is None


def test_phone_needs_no_horizontal_scrolling(show: OpenReport, tmp_path: Path) -> None:
    long = "x" * 3000  # no line break possible
    lines = [
        completion(1, "p", n > 2, n, completion=long, question=long, gold=long, answer=long) for n in range(6)
    ]
    run = runs.write(
        tmp_path / long[:120],
        [step(1)],
        lines,
        [eval_completions(0, [True] * 8), eval_completions(1, [True] * 8)],
        "steps",
    )
    for shown in ([run], [run, two_steps(tmp_path / "mine")]):
        view = show(*shown, width=390)
        assert view.page.evaluate("document.documentElement.scrollWidth") == 390


def test_fifty_thousand_completions_are_filtered_quickly(show: OpenReport, tmp_path: Path) -> None:
    view = show(runs.large(tmp_path / "a"))
    assert "of 50,000 completions" in view.text("#groups-shown")
    milliseconds = view.page.evaluate("""() => {
        const text = document.getElementById("f-text"), took = [];
        const timed = (act) => { const start = performance.now(); act(); document.body.offsetHeight; took.push(performance.now() - start); };
        const choose = (id, value) => timed(() => { const s = document.getElementById(id); s.value = value; s.dispatchEvent(new Event("change")); });
        choose("f-verdict", "wrong"); choose("f-verdict", "mixed"); choose("f-hit", "abc"); choose("f-hit", ""); choose("f-verdict", "");
        for (const typed of ["1", "12", "12 + 3", "nowhere", ""]) timed(() => { text.value = typed; text.dispatchEvent(new Event("input")); });
        return took;
    }""")
    print("filter, ms:", [round(m) for m in milliseconds])
    assert max(milliseconds) < 1000  # at most 160 on two cores that do little else


def test_print_cuts_no_table(show: OpenReport, tmp_path: Path) -> None:
    """On paper 16 cm wide, where nothing scrolls."""
    view = show(
        two_steps(tmp_path / "a-run-of-some-length"), three_steps(tmp_path / "another-run"), width=605
    )
    view.page.emulate_media(media="print")
    for table in view.page.locator("#result .wide table").all():
        assert table.evaluate("node => node.getBoundingClientRect().right") <= 605
