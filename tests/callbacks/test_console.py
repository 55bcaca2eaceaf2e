"""What a person sees: nothing that a model writes may act on the terminal."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from helpers.tiny import ToyTask
from reinforce_lite.api import resolve_config
from reinforce_lite.callbacks import console as screen
from reinforce_lite.callbacks.console import LineConsole, LiveConsole
from reinforce_lite.runlog.run import create_run
from reinforce_lite.trainer import trainer
from reinforce_lite.types import Completion, Group, Problem, Prompt, Rollout, Verdict
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
    found = screen.right_and_wrong(
        [group({"a": True, "b": True}), group({"c": False, "d": True, "e": False})]
    )
    assert found is not None
    assert (found[1].response, found[2].response) == ("d", "c")
    assert screen.right_and_wrong([group({"a": False})]) is None


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
        "reinforce-lite ask a",
    ):
        assert part in text
    assert "step 0: test strict" in text
    if terminal:
        assert "2/2" in text
    else:
        assert "step 2/2  reward" in text
        assert "\x1b" not in text
    assert run.summary["steps"] == 2


def test_the_live_display_counts_answers() -> None:
    show = LiveConsole(Console(file=io.StringIO(), force_terminal=True, width=120))
    show.phase("answering", 64)
    show.advance(16)
    show.console.print(show._draw())
    text = show.console.file.getvalue()  # type: ignore[attr-defined]
    assert "answering" in text
    assert "16/64" in text
    assert "answers a second" in text


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
    console = Console(file=io.StringIO(), width=120)
    console.print(screen.before_after_table(evals))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "+50.0 points (significant, p = 1e-09)" in text
    assert "+2.0 points (not significant, p = 0.4)" in text


def test_lines_tell_of_long_phases_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 0, 10, 20 and 40 seconds; a line every 15."""
    times = iter([0.0, 0.0, 10.0, 20.0, 20.0, 21.0, 40.0, 40.0])
    monkeypatch.setattr("reinforce_lite.callbacks.console.time.monotonic", lambda: next(times))
    show = LineConsole(Console(file=io.StringIO(), width=120))
    show.phase("answering", 200)
    for finished in (50, 30, 0, 20, 20):
        show.advance(finished)
    text = show.console.file.getvalue()  # type: ignore[attr-defined]
    assert text.split() == ["answering:", "80/200", "answering:", "120/200"]
