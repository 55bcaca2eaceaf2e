"""Which variables are secrets, and what is left of their values."""

from pathlib import Path

import pytest

from reinforce_lite.utils.secrets import mask, mask_all
from reinforce_lite.utils.text import harmless, one_line_error, shorten

pytestmark = pytest.mark.case(28)


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "db_passwd", "SOME_CREDENTIALS"],
)
def test_a_secret_becomes_the_name_of_its_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "abcdefgh")
    assert mask("x abcdefgh, xabcdefghx") == f"x [{name}], x[{name}]x"


def test_other_variables_short_values_and_paths_are_no_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key.json"
    file.touch()
    for name, value in {"HOME_PAGE": "abcdefgh", "PIN_KEY": "1234567", "KEY_FILE": str(file)}.items():
        monkeypatch.setenv(name, value)
    text = f"abcdefgh 1234567 {file}"
    assert mask(text) == text


def test_a_change_of_the_environment_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mask("abcdefgh") == "abcdefgh"
    monkeypatch.setenv("A_TOKEN", "abcdefgh")
    assert mask("abcdefgh") == "[A_TOKEN]"
    monkeypatch.setenv("A_TOKEN", "ijklmnop")
    assert mask("abcdefgh ijklmnop") == "abcdefgh [A_TOKEN]"


def test_the_longer_of_two_secrets_is_masked_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "abcdefgh")
    monkeypatch.setenv("B_TOKEN", "abcdefgh.ijkl")
    assert mask("abcdefgh.ijkl abcdefgh") == "[B_TOKEN] [A_TOKEN]"


def test_each_line_of_a_secret_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIVATE_KEY", "-- begin --\nabcdefgh\n-- end --\n")
    assert mask("-- begin --\nabcdefgh\n-- end --") == "[PRIVATE_KEY]"
    assert mask("line 2 is abcdefgh") == "line 2 is [PRIVATE_KEY]"


def test_texts_inside_a_record_are_masked_and_numbers_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "12345678")
    record = {
        "n": 12345678,
        "ok": True,
        "none": None,
        "x": ["12345678", ("a 12345678",)],
        "y": {"z": "12345678"},
    }
    expected = {
        "n": 12345678,
        "ok": True,
        "none": None,
        "x": ["[A_KEY]", ["a [A_KEY]"]],
        "y": {"z": "[A_KEY]"},
    }
    assert mask_all(record) == expected


def test_a_secret_is_masked_before_a_text_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "abcd\x1befgh")
    error = ValueError("x" * 290 + "abcd\x1befgh")
    assert "abcd" not in one_line_error(error)
    assert shorten("12345 abcd\x1befgh", 12) == "12345 [A_TO…"
    assert harmless("abcd\x1befgh") == "[A_TOKEN]"
