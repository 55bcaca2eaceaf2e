"""The last number of a running text, by hand."""

import pytest

from reinforce_lite.tasks.numbers import UnreadableError
from reinforce_lite.tasks.running_text import read_last_number

UNREADABLE = None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # where a number's clause begins
        ("72", "72"),
        ("so 8 * 9 = 72", "72"),
        ("so 8 * 9 = 72. Done", "72"),
        ("72 and then 5", "5"),
        ("it is 72, not more", "72"),
        ("Total:\n72", "72"),
        ("10\n72", "72"),
        ("70, 72", "72"),
        ("**Answer:** 72", "72"),
        ("Answer: **72**", "72"),
        ("a total of 72", "72"),
        ("total (72)", "72"),
        ("(8 * 9 = 72)", "72"),
        ("8 * 9 = <<8*9=72>>72", "72"),
        ("<b>72</b>", "72"),
        ("<think>72", "72"),
        ("so <b>= 72", "72"),
        (r"\boxed{\mathbf{72}}", "72"),
        ("72 (eggs)", "72"),
        ("increased by 72", "72"),
        (r"\[ 72 \]", "72"),
        (r"so $x = 72$.", "72"),
        (r"\boxed{72", "72"),
        (r"&= 72 \\", "72"),
        ('the answer is "72"', "72"),
        ("costs $1,234.50 a month", "2469/2"),
        ("it is 5 1/2 miles", "11/2"),
        (r"so it is \frac{1}{2}.", "1/2"),
        ("the total is -72", "-72"),
        ("x = - 72", "-72"),
        ("Answer - 72", "-72"),
        ("it costs Rs. 72", "72"),
        ("it costs USD 72", "72"),
        ("a loss of -Rs. 72", "-72"),
        ("= - USD 72", "-72"),
        ("area is 72 cm^2", "72"),
        ("area is 72 m^{2}.", "72"),
        (r"area is 72\text{ cm}^2", "72"),
        ("= 72?", "72"),
        ("72<|im_end|>", "72"),
        ("72 apples, half of them red", "72"),
        # operands, lists and points
        ("so 8 * 9", UNREADABLE),
        ("80-72", UNREADABLE),
        ("80 - 72", UNREADABLE),
        ("x - 72", UNREADABLE),
        ("apples + 72", UNREADABLE),
        ("5 -\n72", UNREADABLE),
        ("10 72", UNREADABLE),
        ("choose from 70,71,72", UNREADABLE),
        ("0,125", UNREADABLE),
        ("1.2.3", UNREADABLE),
        ("10:30", UNREADABLE),
        ("3 : 72", UNREADABLE),
        ("12/25/2024", UNREADABLE),
        ("(1, 72)", UNREADABLE),
        ("[0, 72]", UNREADABLE),
        ("f(72)", UNREADABLE),
        ("5(72)", UNREADABLE),
        # something before the number changes it
        ("that is minus 72", UNREADABLE),
        ("negative $72", UNREADABLE),
        ("minus\n72", UNREADABLE),
        ("minus USD 72", UNREADABLE),
        ("minus Rs. 72", UNREADABLE),
        ("**minus** 72", UNREADABLE),
        ("–<b>72</b>", UNREADABLE),
        ("- <b>72</b>", UNREADABLE),
        ("–72", UNREADABLE),
        ("it is—72", UNREADABLE),
        ("Answer-72", UNREADABLE),
        ("--72", UNREADABLE),
        ("half of 72", UNREADABLE),
        ("more than 72", UNREADABLE),
        ("144 divided by 2", UNREADABLE),
        ("8 multiplied by 9", UNREADABLE),
        ("70 added to 2", UNREADABLE),
        ("2 subtracted from 74", UNREADABLE),
        ("144 over 2", UNREADABLE),
        ("74 less 2", UNREADABLE),
        ("2 to the power of 3", UNREADABLE),
        ("9 out of 72", UNREADABLE),
        ("it isn't 72", UNREADABLE),
        ("x < 72", UNREADABLE),
        ("x >= 72", UNREADABLE),
        ("x ≠ 72", UNREADABLE),
        (r"x \le 72", UNREADABLE),
        (r"= \sqrt{72}", UNREADABLE),
        ("√72", UNREADABLE),
        ("2^72", UNREADABLE),
        ("2^{72}", UNREADABLE),
        ("x_{72}", UNREADABLE),
        (r"\frac{a}{72}", UNREADABLE),
        ("step72", UNREADABLE),
        # something after it does
        ("72 million dollars", UNREADABLE),
        ("The answer is:\n- 72 eggs", UNREADABLE),  # an item of a list, or negative
        ("x = 5\n  - 72", UNREADABLE),
        ("The change is:\n-72 dollars", "-72"),
        ("The change is - 72 dollars", "-72"),
        ("Sums:\n- Ann has 72 eggs", "72"),
        ("- the total = 72", "72"),
        ("72 and a half", UNREADABLE),
        (r"72 \text{ million}", UNREADABLE),
        ("72 (thousand)", UNREADABLE),
        ("72 (in thousands)", UNREADABLE),
        ("72 or more", UNREADABLE),
        (r"72\pi", UNREADABLE),
        ("72π", UNREADABLE),
        ("72 x", UNREADABLE),
        ("72x", UNREADABLE),
        ("a run of 72km", UNREADABLE),
        ("72(apples)", UNREADABLE),
        ("72 + x", UNREADABLE),
        ("72 < x", UNREADABLE),
        ("72²", UNREADABLE),
        ("72!", UNREADABLE),
        ("4.666...", UNREADABLE),
        ("the 72-year", UNREADABLE),
        ("72 万", UNREADABLE),
        ("7２", UNREADABLE),
        (r"\frac{72}{a}", UNREADABLE),
    ],
)
def test_read_last_number_reads_it_right_or_not_at_all(text: str, value: str | None) -> None:
    for whole in (text, "It was 5.\n" + text, "word " * 10_000 + text):
        try:
            assert str(read_last_number(whole).value) == value
        except UnreadableError:
            assert value is None


def test_read_last_number_looks_for_a_sign_through_any_distance() -> None:
    with pytest.raises(UnreadableError):
        read_last_number("-" + " " * 100_000 + "72")


@pytest.mark.parametrize("text", ["", "none", "٧٢", "m²"])
def test_read_last_number_finds_none(text: str) -> None:
    with pytest.raises(UnreadableError, match="no number"):
        read_last_number(text)


@pytest.mark.parametrize("text", ["- 72 eggs", "  - 72", "− 72 eggs"])
def test_a_response_that_is_an_item_of_a_list_is_not_read(text: str) -> None:
    with pytest.raises(UnreadableError):
        read_last_number(text)
