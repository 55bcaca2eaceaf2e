"""How options become a config."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from helpers import run_files as runs
from reinforce_lite.cli.args import parse_train
from reinforce_lite.config import dump_config, load_config
from reinforce_lite.errors import UsageError


def test_task_params_take_text_numbers_and_json(tmp_path: Any) -> None:
    words = ["size", "3", "share", "0.5", "kind", "odd one", "deep", "True", "flat", "false"]
    words += ["colors", '["red", "blue"]', "datasets", '[{"name": "a", "config": {"n": 2}}]']
    _, config = parse_train(["--task.params", *words])
    assert config.task.params == {
        "size": 3,
        "share": 0.5,
        "kind": "odd one",
        "deep": True,
        "flat": False,
        "colors": ["red", "blue"],
        "datasets": [{"name": "a", "config": {"n": 2}}],
    }
    recipe = tmp_path / "mine.toml"
    recipe.write_text(dump_config(config))
    assert load_config(str(recipe)).task == config.task
    _, again = parse_train([str(recipe)])  # a recipe's tables are defaults of the options
    assert again.task == config.task


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a", "1", "b"], "'b'"),
        (["a", "[null]"], "NoneType"),
        (["a", "NaN"], "NaN and infinity"),
        (["a", "[" * 3000], "brackets"),
        (["a", "\udcff"], "not UTF-8"),
    ],
)
def test_task_params_that_cannot_be_read_or_stored_are_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_train(["--task.params", *words])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_task_params_keep_a_recipes_dates(tmp_path: Any) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text("[task.params]\nday = 2020-01-01")
    _, config = parse_train([str(recipe), "--train.steps", "3"])
    assert config.task.params == {"day": date(2020, 1, 1)}


def test_bytes_that_are_not_utf_8_are_refused_where_they_become_a_prompt(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_train(["--prompt.system", "be \udcff"])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "prompt" in said
    assert "system" in said
    assert "not UTF-8" in said


def test_a_resume_with_an_emptied_config_says_that_it_is_damaged(in_tmp: Path) -> None:
    path = runs.write(Path("runs/a"), [runs.step(1)]).path
    (path / "config.toml").write_text("\n")
    with pytest.raises(UsageError, match=r"runs/a/config\.toml is damaged: it is empty"):
        parse_train(["--run", "a", "--resume"])


def test_task_columns_can_name_several_columns_for_the_question() -> None:
    _, config = parse_train(["--task.columns", "question", "{Body} {Question}", "answer", "Answer"])
    assert config.task.columns == {"question": "{Body} {Question}", "answer": "Answer"}


def test_worked_examples_are_a_list_in_json(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_train(["--prompt.examples", "[]"])[1].prompt.examples == ()
    _, config = parse_train(["--prompt.examples", '[{"question": "1 + 1?", "answer": "2\\n"}]'])
    assert [(e.question, e.answer) for e in config.prompt.examples] == [("1 + 1?", "2\n")]
    assert parse_train([])[1].prompt.examples == load_config("quickstart").prompt.examples
    for bad in ("none", '[{"question": "1 + 1?"}]'):
        with pytest.raises(SystemExit) as caught:
            parse_train(["--prompt.examples", bad])
        assert caught.value.code == 2
        assert "prompt.examples" in capsys.readouterr().err
