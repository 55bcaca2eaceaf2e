"""Which answers a scorer may see: values of bounded size, and nothing that runs or computes for long."""

import time

import pytest

from reinforce_lite.tasks.answer_bounds import refusal

CODE = "run as code"


@pytest.mark.parametrize(
    ("answer", "scorer"),
    [
        ("[[1, -2], [3, 4]]", "binary_matrix"),
        ("1 2 3\n4 5 6", "binary_matrix"),
        ("Zoey is a knave, and Riley is a knight.", "knights_knaves"),
        ('[{"Agent": "move(box_red, square[0.5, 1.5])"}, {"a": null}]', "boxnet"),
        ("6 * (5 + 4) - 3/2", "countdown"),
        ("2*x**2 + sin(x) + C", "simple_integration"),
        ("(x**2 + 1)**(3/2)/3 + exp(x**2)", "intermediate_integration"),
        ("x**2*exp(-2*x)*2**(x/3)", "intermediate_integration"),
        ("+".join(f"12345*z**{i}" for i in range(40)), "polynomial_multiplication"),
        ("0x3e4567", "bitwise_arithmetic"),  # not 3 * 10^4567
        ("3a1e4567", "base_conversion"),
        ("9" * 1_000, "products"),
        ("1e1000", "coin_flip"),
        ("R2 U' F", "rubiks_cube"),
        ("infeasible", "shortest_path"),
        ("Nancy", "needle_haystack"),
        ("", "chain_sum"),
        ("(" * 9_000, "leg_counting"),  # no Python: nothing could evaluate it
    ],
)
def test_refusal_passes_what_states_a_value(answer: str, scorer: str) -> None:
    assert refusal(answer, scorer) == ""


@pytest.mark.parametrize(
    ("answer", "scorer", "reason"),
    [
        ("open('x', 'w')", "binary_matrix", CODE),
        ("[print(1)]", "n_queens", CODE),
        ("(1).__class__", "n_queens", CODE),
        ("[x for x in (1, 2)]", "n_queens", CODE),
        ("f'{1}'", "n_queens", CODE),
        ("lambda: 1", "n_queens", CODE),
        ("{**{}}", "n_queens", CODE),
        ("[*(1, 2)]", "n_queens", CODE),
        ("oracle_answer", "string_insertion", CODE),  # a variable of the scorer
        ("eval('1')", "countdown", CODE),
        ("sqrt(4)", "countdown", CODE),
        ("sin('1')", "simple_integration", CODE),  # sympy evaluates strings
        ("sin(x).diff()", "simple_integration", CODE),
        ("open(x)! + 3", "countdown", CODE),  # not Python until sympy has rewritten it
        ("log(x, evaluate=x)", "simple_integration", CODE),
        ("[0]*10**10", "spiral_matrix", CODE),  # memory
        ("'a'*10**10", "string_insertion", CODE),
        ("'%9999999999d' % 1", "string_insertion", CODE),
        ("1 << 9999999999", "spiral_matrix", "shift"),
        ("9**9**9", "countdown", "tower"),
        ("2**(1/(1/10**9))", "puzzle24", "tower"),
        ("9**99999", "spiral_matrix", "power above 100"),
        ("9**(50*50)", "spiral_matrix", "power above 100"),
        ("9**-99999", "spiral_matrix", "power above 100"),
        ("((9**99)**99)**99", "puzzle24", "digits"),
        ("9**99*" * 200 + "1", "spiral_matrix", "digits"),
        ("1e1001", "coin_flip", "exponent"),
        ("-1E+9_9_9_9", "coin_flip", "exponent"),
        ("3, 1e٩٩٩٩٩٩٩٩", "coin_flip", "exponent"),  # Fraction reads these digits
        ("9" * 1_001, "prime_factorization", "1,000 digits"),
        ("a" * 10_001, "leg_counting", "10,000 characters"),
        ("x+" * 200 + "x+sin(cos(x))" * 20, "simple_integration", "500 characters"),
        ("∧".join("P" * 200), "propositional_logic", "300 characters"),
        ("R9999999999", "rubiks_cube", "moves"),
        ("R99 U99 " * 6, "rubiks_cube", "moves"),
        ("F+9999999999", "rush_hour", "moves"),
        ("nan", "complex_arithmetic", "finite"),
        ("NaN + 1i", "complex_arithmetic", "finite"),
        ("['nan', -Infinity]", "number_sorting", "finite"),
        ("1+" * 4_000 + "1", "binary_matrix", "nested"),
        ("-" * 5_000 + "1", "binary_matrix", "nested"),
    ],
)
def test_refusal_names_what_computes_or_runs(answer: str, scorer: str, reason: str) -> None:
    assert reason in refusal(answer, scorer)


@pytest.mark.case(23)
@pytest.mark.parametrize(
    "piece", ["9,", "1e", "1,1e", "[", "((1)", "1_", "nan", "inf", "e+", "<", "\n", "1+", "R9 "]
)
def test_refusal_is_quick_for_any_text(piece: str) -> None:
    start = time.process_time()
    refusal((piece * 10_000)[:10_000], "rubiks_cube")
    refusal(piece * 300_000, "rubiks_cube")
    assert time.process_time() - start < 1  # 0.1 s
