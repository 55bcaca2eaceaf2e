"""What a person sees: nothing that a model writes may act on the terminal."""

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from helpers.tiny import ToyTask
from reinforce_lite.api import resolve_config
from reinforce_lite.callbacks import console as console_module
from reinforce_lite.callbacks import final_summary
from reinforce_lite.callbacks.base import SAMPLING
from reinforce_lite.callbacks.console import LineConsole, LiveConsole
from reinforce_lite.runlog.run import create_run
from reinforce_lite.trainer import trainer
from reinforce_lite.types import Completion, Group, Problem, Prompt, Rollout, Verdict
from reinforce_lite.utils import clock
from reinforce_lite.utils.text import harmless, sparkline


def test_text_that_acts_on_a_terminal_is_shown_instead() -> None:
    assert (
        harmless("a\x1b[2Jb\x07\u202ec\x9b1m\x00\n\td") == "a\\u001b[2Jb\\u0007\\u202ec\\u009b1m\\u0000\n\td"
    )
    assert harmless("٧ – 72 ½ 🥚") == "٧ – 72 ½ 🥚"


def test_spark_by_hand() -> None:
    assert sparkline([0, 1 / 7, 1]) == "▁▂█"
    assert sparkline([0.0] * 40 + [1.0] * 40, width=2) == "▁█"


def group(turns: dict[str, bool]) -> Group:
    rollouts = [
        Rollout(Completion((2,), t, False, (0.0,)), t, float(ok), Verdict(ok, None, "another number"), None)
        for t, ok in turns.items()
    ]
    return Group(Problem("p", "evil \x1b[31m question", "1"), Prompt((1,)), tuple(rollouts))


def test_one_question_with_a_right_and_a_wrong_answer() -> None:
    found = console_module.right_and_wrong(
        [group({"a": True, "b": True}), group({"c": False, "d": True, "e": False})]
    )
    assert found is not None
    assert (found[1].response, found[2].response) == ("d", "c")
    assert console_module.right_and_wrong([group({"a": False})]) is None


@pytest.mark.parametrize("terminal", [True, False])
def test_a_whole_run_on_the_screen(terminal: bool, model_folder: Path, in_tmp: Path) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, height=50, highlight=False)
    show = LiveConsole(console) if terminal else LineConsole(console)

    class Evil(ToyTask):
        def problems(self, split: str) -> list[Problem]:
            return [Problem(p.id, p.question + "\x1b]0;evil\x07", p.gold) for p in super().problems(split)]

    overrides = {"model.name": str(model_folder), "rollout.max_new_tokens": 5, "train.steps": 2, "eval.n": 4}
    overrides |= {"rollout.prompts_per_step": 4, "eval.validation_n": 2}
    settings = resolve_config("quickstart", overrides, Evil())
    run = trainer.train(settings, create_run("a"), Evil(), show)
    text = out.getvalue()
    assert "\x1b]0;evil" not in text
    for part in (
        "into runs/a",
        "accuracy on 4 test problems",
        "before",
        "runs/a/model",
        "runs/a/report.html",
        "ask a",
        "train --run a --resume --train.steps 4",
    ):
        assert part in text
    assert "step 0: test strict" in text
    if terminal:
        assert "2/2" in text
    else:
        assert "step 2/2  reward" in text
        assert "\x1b" not in text
    assert run.summary["steps"] == 2


def test_live_console_counts_completions() -> None:
    show = LiveConsole(Console(file=io.StringIO(), force_terminal=True, width=120))
    show.phase("sampling", 64)
    show.advance(16)
    show.console.print(show._draw())
    text = show.console.file.getvalue()  # type: ignore[attr-defined]
    assert "sampling" in text
    assert "16/64" in text
    assert "per second" in text


def test_the_table_says_whether_the_change_is_real() -> None:
    evals = {
        "before": {
            "strict": 0.1,
            "strict_interval": [0.07, 0.15],
            "lenient": 0.3,
            "lenient_interval": [0.2, 0.4],
            "n": 200,
        },
        "after": {
            "strict": 0.6,
            "strict_interval": [0.5, 0.7],
            "lenient": 0.32,
            "lenient_interval": [0.3, 0.4],
            "n": 200,
        },
        "paired_p": {"strict": 1e-9, "lenient": 0.4},
    }
    output = io.StringIO()
    Console(file=output, width=120).print(final_summary.before_after_table(evals))
    text = output.getvalue()
    assert "+50.0 points (significant, p = 1e-09)" in text
    assert "+2.0 points (not significant, p = 0.4)" in text


def lines_of(console: LineConsole) -> list[str]:
    output = console.console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue().splitlines()


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock: its only element is the time."""
    time = [100.0]
    monkeypatch.setattr(clock, "now", lambda: time[0])
    return time


def line_console() -> LineConsole:
    return LineConsole(Console(file=io.StringIO(), width=120))


def test_line_console_announces_each_phase() -> None:
    show = line_console()
    show.phase("loading x")
    show.phase("evaluating on test", 8)
    assert lines_of(show) == ["  loading x ...", "  evaluating on test (8) ..."]


def test_line_console_is_never_silent_for_longer_than_a_heartbeat(wall: list[float]) -> None:
    """A phase of 200 completions from second 0; looked at after 4, 12, 15 and 31 seconds."""
    show = line_console()
    show.phase("evaluating", 200)
    for seconds, finished in ((4, 50), (12, 30), (15, 0), (31, 20)):
        wall[0] = 100.0 + seconds
        show.advance(finished)
    assert lines_of(show)[1:] == ["  evaluating: 80 of 200, 12 s", "  evaluating: 100 of 200, 31 s"]


def test_line_console_beats_by_itself(wall: list[float]) -> None:
    show = line_console()
    with show:
        show.phase("updating")
        wall[0] += 11
        deadline = time.monotonic() + 10
        while len(lines_of(show)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert lines_of(show)[1:] == ["  updating: 11 s"]


def test_line_console_leaves_out_the_phases_of_quick_steps() -> None:
    show = line_console()
    show.slow_steps = False
    show.phase(SAMPLING, 64)
    show.phase("saving a checkpoint")
    assert lines_of(show) == ["  saving a checkpoint ..."]
