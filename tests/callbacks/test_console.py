"""What a person sees: nothing that a model writes may act on the terminal."""

import io
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich import console as rich_console
from rich.console import Console

from helpers import run_files
from helpers.paths import RECIPE
from helpers.tiny import ToyTask
from reinforce_lite.api import resolve_config
from reinforce_lite.callbacks import console as console_module
from reinforce_lite.callbacks import final_summary
from reinforce_lite.callbacks.base import SAMPLING, UPDATING
from reinforce_lite.callbacks.console import LineConsole, LiveConsole, NotebookConsole, make_console
from reinforce_lite.config import Config, ModelConfig, TaskConfig
from reinforce_lite.evaluation.evaluate import Evaluation
from reinforce_lite.runlog.records import StepMetrics
from reinforce_lite.runlog.run import Run
from reinforce_lite.runlog.runs import create_run
from reinforce_lite.runlog.summary import before_and_after
from reinforce_lite.trainer import session
from reinforce_lite.types import Completion, Group, Problem, Prompt, Rollout, Verdict
from reinforce_lite.utils import clock
from reinforce_lite.utils.text import harmless, sparkline


@pytest.mark.case(26)
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


@pytest.mark.case(26)
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
    run = session.train(settings, create_run("a"), Evil(), show)
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


class FakeIPython(ModuleType):
    """Stands for IPython.display: each output of a cell, as its versions."""

    def __init__(self) -> None:
        super().__init__("IPython.display")
        self.outputs: list[list[dict[str, str]]] = []

    def display(self, shown: Any, display_id: bool = False) -> Any:
        versions: list[dict[str, str]] = []
        self.outputs.append(versions)

        def update(shown: Any) -> None:
            versions.append(shown._repr_mimebundle_([], []))

        update(shown)
        return SimpleNamespace(update=update)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> FakeIPython:
    fake = FakeIPython()
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    monkeypatch.setattr(rich_console, "_is_jupyter", lambda: True)
    return fake


def test_a_notebook_gets_one_output_that_is_drawn_anew(
    notebook: FakeIPython, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_module, "REDRAW", 0.0)
    show = make_console()
    assert isinstance(show, NotebookConsole)
    config = resolve_config(RECIPE, settings | {"train.steps": 2, "eval.n": 4}, ToyTask())
    session.train(config, create_run("a"), ToyTask(), show)
    display, *rest = notebook.outputs
    assert len(rest) == 2  # the result and what to try next, each once
    texts = [version["text/plain"] for version in display]
    assert len(texts) > 10
    assert any("sampling completions" in text and "20" in text for text in texts)
    assert "2/2" in texts[-1]
    assert "step 2: test strict" in texts[-1]
    assert "saving the model" not in texts[-1]  # nothing goes on


def test_a_notebook_is_drawn_at_most_twice_a_second(
    notebook: FakeIPython, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(clock, "now", lambda: now)
    with make_console() as show:
        for _ in range(100):
            now += 0.125
            show.advance(1)
    (versions,) = notebook.outputs
    assert len(versions) == 1 + 25 + 1


@pytest.mark.case(26)
def test_text_of_a_model_is_no_html_in_a_notebook(
    notebook: FakeIPython, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_module, "REDRAW", 0.0)
    with make_console() as show:
        show.phase("<img src=x onerror=alert(1)> \x1b[31m")
    html = notebook.outputs[0][1]["text/html"]
    assert "<img" not in html
    assert "\x1b" not in html
    assert "&lt;img" in html


def test_live_console_counts_completions() -> None:
    show = LiveConsole(Console(file=io.StringIO(), force_terminal=True, width=120))
    show.phase("sampling", 64)
    show.advance(16)
    show.console.print(show._draw())
    text = show.console.file.getvalue()  # type: ignore[attr-defined]
    assert "sampling" in text
    assert "16/64" in text
    assert "per second" in text


def drawn(show: LiveConsole) -> str:
    """What is on the screen now."""
    with show.console.capture() as captured:
        show.console.print(show._draw())
    return captured.get()


def test_live_console_counts_only_what_has_a_count() -> None:
    show = LiveConsole(Console(file=io.StringIO(), force_terminal=True, width=120))
    show.phase(UPDATING)
    assert "0/" not in drawn(show)
    show.phase(SAMPLING, 64)
    show.advance(0)
    assert "0/64" in drawn(show)
    assert "per second" not in drawn(show)


def test_live_console_shows_the_step_and_its_eta_until_the_next_phase(in_tmp: Path) -> None:
    show = LiveConsole(Console(file=io.StringIO(), force_terminal=True, width=160, height=50))
    show.started(
        resolve_config("quickstart", {"train.steps": 6}, None), create_run("a"), 0, "cpu", lambda: 115.0
    )
    assert "6 steps" in drawn(show)
    (metrics,) = metrics_of([{"reward": 0.0}])
    show.stepped(metrics, [])
    assert "1/6" in drawn(show)
    assert "ETA 1 min 55 s" in drawn(show)
    assert "elapsed" in drawn(show)
    show.phase("evaluating on test", 8)
    assert "ETA" not in drawn(show)
    assert "evaluating" in drawn(show)
    show.__exit__()
    assert "evaluating" not in drawn(show)


def metrics_of(steps: list[dict[str, Any]]) -> list[StepMetrics]:
    return [
        StepMetrics.from_record(run_files.step(i, **{"updated": True} | s)) for i, s in enumerate(steps, 1)
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_step_of_the_warm_start_is_not_called_without_signal(terminal: bool, in_tmp: Path) -> None:
    out = io.StringIO()
    show: LiveConsole | LineConsole
    console = Console(file=out, width=160, height=50, force_terminal=terminal)
    show = LiveConsole(console) if terminal else LineConsole(console)
    config = resolve_config("quickstart", {"train.steps": 6, "train.warm_start": 2}, None)
    show.started(config, create_run("a"), 0, "cpu", lambda: 115.0)
    learned, idle, after = metrics_of(
        [
            {"warm_start": True, "frac_reward_zero_std": 1.0},
            {"warm_start": True, "frac_reward_zero_std": 1.0, "updated": False},
            {"warm_start": False, "frac_reward_zero_std": 1.0, "updated": False},
        ]
    )
    texts = []
    for metrics in (learned, idle, after):
        out.truncate(0)
        show.stepped(metrics, [])
        texts.append(drawn(show) if isinstance(show, LiveConsole) else out.getvalue())
    assert ["warm start" in text for text in texts] == [True, True, False]
    assert ["no-signal groups 100%" in text for text in texts] == [False, False, True]
    assert ["no update: no completion was right" in text for text in texts] == [False, True, False]
    assert "no update: every group had equal rewards" in texts[2]


def finished_run(path: Path, **summary: Any) -> Run:
    """A run of 48 test problems, of which 27 are right before and after: 56.25%."""
    tests = [run_files.eval_completions(at, [True] * 27 + [False] * 21) for at in (0, 1)]
    run = run_files.write(
        path,
        [run_files.step(1)],
        [run_files.completion(1, "p")],
        evaluations=[*tests, run_files.eval_completions(0, [True], "validation")],
        stopped="steps",
    )
    values = {"warnings": [], "best_step": 0, "test_problems": 48, "steps": 1} | summary
    evals = before_and_after(run, 1)
    run.write_json("summary", run.summary | values | {"evals": evals})
    return run


def test_the_end_in_a_log_has_no_padding_and_repeats_no_warning(tmp_path: Path) -> None:
    show = line_console()
    show.finished(finished_run(tmp_path / "a", warnings=["the reward collapsed"]))
    lines = lines_of(show)
    assert [line for line in lines if line != line.rstrip()] == []
    assert "collapsed" not in "".join(lines)
    assert any("56.3%" in line for line in lines)  # half of 0.1 is rounded up, as in the report


def test_the_example_question_is_one_that_the_model_learned(tmp_path: Path) -> None:
    """Of three: solved already, learned, and not solved; without one, the first."""
    before, after = [True, False, False], [True, True, False]
    for name, last, wanted in (("a", after, 1), ("b", before, 0)):
        evaluations = [run_files.eval_completions(n, right) for n, right in ((0, before), (1, last))]
        run = run_files.write(tmp_path / name, [run_files.step(1)], evaluations=evaluations)
        questions = [line["question"] for line in run.read("eval_rollouts")]
        assert final_summary._example_question(run) == questions[wanted]


def test_what_to_try_next_fits_the_run(tmp_path: Path) -> None:
    plain = final_summary.next_commands(finished_run(tmp_path / "a")).plain
    assert "--train.steps 2" in plain
    assert "--eval.n" not in plain  # eval.n = 200 took all 48
    more = final_summary.next_commands(finished_run(tmp_path / "b", test_problems=300)).plain
    assert "--eval.n 300" in more
    late = final_summary.next_commands(finished_run(tmp_path / "d", stopped="hours")).plain
    assert "--resume --train.hours 1" in late
    warned = final_summary.next_commands(finished_run(tmp_path / "c", warnings=["nothing is learned"])).plain
    assert "nothing-is-learned.md" in warned
    assert "--train.steps" not in warned


@pytest.mark.parametrize(
    ("strict", "second", "n", "step", "warns"),
    [
        (0.0, 0.2, 20, 0, True),
        (0.0, 0.2, 20, None, True),  # the command eval
        (0.0, 0.2, 20, 5, False),
        (0.0, 0.19, 20, 0, False),
        (0.0, None, 20, 0, False),
        (0.0, 0.9, 19, 0, False),
        (0.1, 0.9, 20, 0, False),
    ],
)
def test_a_format_that_the_prompt_does_not_show_is_told_before_training(
    strict: float, second: float | None, n: int, step: int | None, warns: bool
) -> None:
    interval = None if second is None else (0.0, 1.0)
    result = Evaluation(
        step,
        "test",
        n,
        1,
        strict,
        (0.0, 1.0),
        None,
        None,
        second,
        interval,
        None,
        strict,
        0,
        9.0,
        0.0,
        {},
        {},
        {},
    )
    show = line_console()
    show.evaluated(result)
    assert any("prompt.examples" in line for line in lines_of(show)) == warns


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
    assert "+50.0 points, more than chance" in text
    assert "+2.0 points, not more than chance" in text
    assert "p = 1e-09" in text
    assert "p = 0.4" in text


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
    assert lines_of(show) == ["  loading x ...", "  evaluating on test (8 completions) ..."]


def test_line_console_is_never_silent_for_longer_than_a_heartbeat(wall: list[float]) -> None:
    """A phase of 200 completions from second 0; looked at after 4, 12, 15 and 31 seconds."""
    show = line_console()
    show.phase("evaluating", 200)
    for seconds, finished in ((4, 50), (12, 30), (15, 0), (31, 20)):
        wall[0] = 100.0 + seconds
        show.advance(finished)
    assert lines_of(show)[1:] == [
        "  evaluating: 80 of 200 completions, 12 s",
        "  evaluating: 100 of 200 completions, 31 s",
    ]


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


ACTS = "\x1b]0;evil\x07[red]\ud83d"
"""A terminal escape, rich's markup and half a character."""


@pytest.mark.case(26)
@pytest.mark.case(31)
@pytest.mark.parametrize("terminal", [True, False])
def test_no_name_or_reason_acts_on_the_terminal(
    terminal: bool, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of models, tasks, runs and phases, and a reward's reasons, are as foreign as completions."""
    monkeypatch.setenv("SOME_TOKEN", "hf_abcdefgh")
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=300, height=50, highlight=False)
    show = LiveConsole(console) if terminal else LineConsole(console)
    names = {"model.name": f"model{ACTS}", "task.name": f"task{ACTS} hf_abcdefgh"}
    config = Config(model=ModelConfig(name="x"), task=TaskConfig(name="y")).model_copy(
        update={
            "model": ModelConfig.model_construct(name=names["model.name"]),
            "task": TaskConfig.model_construct(name=names["task.name"], level=1),
        }
    )
    run = finished_run(in_tmp / "run\x1b]0;evil\x07[red]")
    show.started(config, run, 0, "cpu", lambda: 1.0)
    show.phase(f"loading {names['model.name']}")
    answered = group({f"right {ACTS}": True, f"wrong {ACTS}": False, "failed": False})
    right, wrong, failed = answered.rollouts
    wrong = replace(wrong, strict=Verdict(False, None, f"reason {ACTS}"))
    failed = replace(failed, fault=f"fault {ACTS}")
    (metrics,) = metrics_of([{"reward": 0.0, "reward_faults": 1}])
    show.stepped(metrics, [replace(answered, rollouts=(right, failed, wrong))])
    if isinstance(show, LiveConsole):
        out.write(drawn(show))
    show.finished(run)
    text = out.getvalue()
    assert "\x1b]0;" not in text
    assert "\x07" not in text
    assert "hf_abcdefgh" not in text
    text.encode()
    for name in ("model", "task", "run", "right ", "wrong ", "reason ", "failed 1 times, first: fault "):
        assert f"{name}\\u001b]0;evil\\u0007[red]" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_the_loss_scale_of_float16_is_shown(in_tmp: Path, terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=160, height=50, highlight=False)
    show = LiveConsole(console) if terminal else LineConsole(console)
    show.started(resolve_config("quickstart", {}, None), create_run("a"), 0, "cpu", lambda: 115.0)

    def shown(line: dict[str, Any]) -> str:
        (metrics,) = metrics_of([{"reward": 0.0} | line])
        show.stepped(metrics, [])
        return drawn(show) if isinstance(show, LiveConsole) else out.getvalue()

    assert "loss scale" not in shown({})
    assert "32,768" in shown({"loss_scale": 32768.0})


def test_json_stays_off_standard_output_without_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    make_console(json=True).phase("loading")
    assert capsys.readouterr().out == ""
