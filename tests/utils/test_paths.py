"""Paths and hub names: what is expanded, what is left alone, and what is refused without asking the hub."""

from pathlib import Path

import pytest

from reinforce_lite.utils.paths import (
    exists,
    expand_home,
    is_dir,
    is_file,
    is_path,
    local_or_hub_name,
    without_folders,
    without_folders_in,
)


@pytest.mark.parametrize("name", ["gpt2", "owner/name", "openai/gsm8k", "name-1.5b"])
def test_a_hub_name_is_left_alone(name: str, in_tmp: Path) -> None:
    assert local_or_hub_name(name) == name


def test_a_tilde_is_the_home_folder(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(in_tmp))
    (in_tmp / "models").mkdir()
    assert local_or_hub_name("~/models") == str(in_tmp / "models")
    assert local_or_hub_name("models") == "models"


@pytest.mark.parametrize(
    "name", ["./x", "../x", "/x/y", "~/x", "~no-such-user/x", "a/b/c", "x.jsonl", "my_task.py"]
)
def test_a_path_where_nothing_is_is_refused(name: str, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(in_tmp))
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        local_or_hub_name(name)


def test_nothing_is_at_a_path_that_no_file_can_have() -> None:
    for name in ("x" * 300, "./" + "x" * 300, "~/" + "x" * 5000, "nul\0", "~nul\0"):
        assert not exists(expand_home(name))
        assert not is_file(name)
        assert not is_dir(name)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        local_or_hub_name("./" + "x" * 300)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("/home/ann/data.jsonl", "data.jsonl"),
        ("~/models/mine", "mine"),
        ("../tasks/add.py", "add.py"),
        ("here/there", "there"),
        ("openai/gsm8k", "openai/gsm8k"),
        ("openai/gsm8k:main", "openai/gsm8k:main"),
        ("my_task.py", "my_task.py"),
        ("gone/dir/mine", "mine"),
        ("gone/my recipe.toml", "my recipe.toml"),
        ("gone/data.json", "data.json"),
        ("https://example.org/licenses/LICENSE.txt", "https://example.org/licenses/LICENSE.txt"),
        ("Is 1/2 more than 3/4/5?" * 100, "Is 1/2 more than 3/4/5?" * 100),
        ("", ""),
    ],
)
def test_of_a_path_only_the_last_part_is_published(name: str, published: str, in_tmp: Path) -> None:
    (in_tmp / "here" / "there").mkdir(parents=True)
    assert without_folders(name) == published


def test_the_texts_in_a_json_value_are_published_without_folders() -> None:
    value = {"n": 2, "file": "/home/ann/x.json", "more": [{"a": "~/b.csv"}, None, "openai/gsm8k"]}
    assert without_folders_in(value) == {
        "n": 2,
        "file": "x.json",
        "more": [{"a": "b.csv"}, None, "openai/gsm8k"],
    }


def test_what_is_a_path(in_tmp: Path) -> None:
    (in_tmp / "here" / "there").mkdir(parents=True)
    names = ("here", "here/there", "/gone", "gone/a/b", "~no-such-user", "gone.json")
    assert all(map(is_path, names))
    assert not any(map(is_path, ("there", "owner/name", "openai/gsm8k:main")))
