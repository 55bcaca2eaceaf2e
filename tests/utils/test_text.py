"""Numbers and texts for a terminal."""

import pytest

from reinforce_lite.utils.text import (
    did_you_mean,
    duration,
    harmless,
    interval,
    one_line_error,
    percent,
    shorten,
    sparkline,
)


@pytest.mark.case(16)
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain é 😀", "plain é 😀"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b[2J", "\\u001b[2J"),  # clears the screen
        ("a\rb\x00\x7f", "a\\u000db\\u0000\\u007f"),
        ("\u202egnp.exe", "\\u202egnp.exe"),  # writes from right to left
        ("\ud83d", "\\ud83d"),  # half a character, which can't be encoded
    ],
)
def test_harmless_escapes_what_controls_a_terminal(text: str, expected: str) -> None:
    assert harmless(text) == expected


def test_shorten_gives_one_line_of_at_most_the_limit() -> None:
    assert shorten("  two\n\n lines ") == "two lines"
    assert shorten("abcde", 5) == "abcde"
    assert shorten("abcdef", 5) == "abcd…"
    assert shorten("\x1b[31m", 5) == "\\u00…"


def test_sparkline_clips_and_averages() -> None:
    assert sparkline([]) == ""
    assert sparkline([-1.0, 0.0, 0.5, 1.0, 2.0]) == "▁▁▅██"
    assert sparkline([0.0, 1.0, 1.0, 1.0, 1.0], width=3) == "▅██"  # means of two, the last of one


def test_percent_has_one_digit_and_a_dash_for_none() -> None:
    assert percent(0.275) == "27.5%"
    assert percent(0) == "0.0%"
    assert percent(None) == "–"


def test_percent_rounds_halves_up_as_javascript_does() -> None:
    assert percent(27 / 48) == "56.3%"  # 56.25
    assert percent(0.125, 0) == "13%"
    assert interval((0.125, 0.625)) == "(13–63%)"


def test_interval_is_in_whole_percent() -> None:
    assert interval((0.0, 0.049)) == "(0–5%)"
    assert interval([0.215, 1.0]) == "(22–100%)"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (754, "12 min 34 s"),
        (3600, "1 h 0 min"),
        (93_784, "26 h 3 min"),
    ],
)
def test_duration_has_two_units(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


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
