"""Texts for people: suggestions and errors in one line."""

import pytest

from reinforce_lite.utils.text import did_you_mean, one_line_error


def test_did_you_mean_names_the_nearest_or_the_alternative() -> None:
    assert did_you_mean("wordmth", ["gsm8k", "wordmath"]) == "did you mean 'wordmath'?"
    assert did_you_mean("chess", ["gsm8k", "wordmath"]) == ""
    assert did_you_mean("chess", ["gsm8k", "wordmath"], otherwise="known are …") == "known are …"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("bad value"), "ValueError: bad value"),
        (ValueError(" first\n\n\tsecond "), "ValueError: first second"),
        (ValueError(), "ValueError"),
        (KeyError("key"), "KeyError: 'key'"),
    ],
)
def test_one_line_error_has_type_and_message(error: Exception, expected: str) -> None:
    assert one_line_error(error) == expected


def test_one_line_error_is_cut_at_the_limit() -> None:
    assert one_line_error(ValueError("x" * 1000)) == "ValueError: " + "x" * 288
    assert one_line_error(ValueError("x" * 1000), limit=15) == "ValueError: xxx"
