"""What an extracted answer may be before a reasoning-gym scorer sees it.

Scorers read the answer, a model's text, with `eval`, sympy, `Fraction`, `int` and others of the kind. An
answer passes only if it can do no more than state a value of bounded size: text that would run as code, that
would compute for hours (`9**9**9`) or that would fill the memory (`[0] * 10**10`) is refused with a reason.

Left out: expressions that sympy alone takes long to simplify.
"""

import ast
import re

MAX_LENGTH = 10_000  # characters, and digits of an expression's exact value
MAX_DIGITS = 1_000  # of an integer literal
MAX_EXPONENT = 1_000  # of scientific notation
MAX_POWER = 100  # sympy expands powers of sums
MAX_MOVES = 1_000

# Scorers that pass the answer to eval(), where a name could be one of their own variables.
_EVALUATED = frozenset(["binary_matrix", "n_queens", "spiral_matrix", "string_insertion"])
# Scorers that pass it to sympy's parse_expr, which rewrites text into Python before it evaluates it.
_INTEGRALS = frozenset(["simple_integration", "intermediate_integration"])
_PARSED_BY_SYMPY = _INTEGRALS | {"countdown", "puzzle24", "polynomial_multiplication"}
# Characters for scorers that are slower than linear; their golds have fewer than half as many.
_MAX_LENGTHS = {"propositional_logic": 300, **dict.fromkeys(_INTEGRALS, 500)}
# Scorers that repeat a move as often as the number after it says.
_COUNTED_MOVES = frozenset(["rubiks_cube", "rush_hour"])

_TRIGONOMETRY = ("acos", "asin", "atan", "cos", "cot", "csc", "sec", "sin", "tan")
_FUNCTIONS = frozenset(["Abs", "Integral", "exp", "ln", "log", "sqrt", *_TRIGONOMETRY])

_LONG_NUMBER = re.compile(rf"[\d_]{{{MAX_DIGITS + 1}}}")
_SCIENTIFIC = re.compile(r"(?<![\w.,])[\d_.,]+[eE][-+]?([\d_]+)")
# Numbers of which one is no number: several scorers compare it in a way that holds for NaN.
_NOT_FINITE = re.compile(r"(?=.*(?:nan|inf))(?:nan|inf(?:inity)?|[-+*/.,()\[\]\"'\s\deij])+", re.I | re.S)
_CODE = "an answer that the scorer would run as code or could not read"


class _RefusedError(Exception):
    """The reason is its message."""


def refusal(answer: str, scorer: str) -> str:
    """Why the answer must not reach this scorer; "" if it may.

    >>> refusal("[[1, 2], [3, 4]]", "binary_matrix"), refusal("sin(x)*2", "simple_integration")
    ('', '')
    >>> refusal("__import__('os').getcwd()", "binary_matrix"), refusal("9**9**9", "countdown")
    ('an answer that the scorer would run as code or could not read', 'a tower of powers')
    """
    try:
        _check_text(answer, scorer)
        _check_code(answer, scorer)
    except _RefusedError as refused:
        return str(refused)
    except RecursionError:
        return "an answer nested too deeply"
    return ""


def _check_text(answer: str, scorer: str) -> None:
    """Bounds for scorers that read numbers out of the text."""
    if len(answer) > (limit := _MAX_LENGTHS.get(scorer, MAX_LENGTH)):
        raise _RefusedError(f"an answer of more than {limit:,} characters")
    if _LONG_NUMBER.search(answer):
        raise _RefusedError(f"a number of more than {MAX_DIGITS:,} digits")
    if any(_to_int(exponent) > MAX_EXPONENT for exponent in _SCIENTIFIC.findall(answer)):
        raise _RefusedError(f"an exponent above {MAX_EXPONENT:,}")
    if _NOT_FINITE.fullmatch(answer):
        raise _RefusedError("not a finite number")
    if scorer in _COUNTED_MOVES and sum(map(_to_int, re.findall(r"\d+", answer))) > MAX_MOVES:
        raise _RefusedError(f"more than {MAX_MOVES:,} moves")


def _to_int(digits: str) -> int:
    return int(digits.replace("_", "") or 0)


def _check_code(answer: str, scorer: str) -> None:
    """Bounds for scorers that evaluate the text."""
    try:
        tree = ast.parse(answer.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError):
        if scorer in _PARSED_BY_SYMPY:
            raise _RefusedError(_CODE) from None  # sympy could rewrite it into something that runs
        return  # eval() can't parse it either
    if scorer in _PARSED_BY_SYMPY:
        _digits(tree, _FUNCTIONS if scorer in _INTEGRALS else frozenset())
    elif scorer in _EVALUATED and any(isinstance(node, ast.Name) for node in ast.walk(tree)):
        raise _RefusedError(_CODE)
    else:
        _check_value(tree)


def _check_value(node: ast.expr | None) -> None:
    """Literals, containers of them, comparisons, and arithmetic with numbers only: `[0] * n` is none."""
    match node:
        case ast.Constant():
            pass
        case ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Set(elts=parts) | ast.BoolOp(values=parts):
            for part in parts:
                _check_value(part)
        case ast.Dict(keys=keys, values=values):
            for key_or_value in (*keys, *values):
                _check_value(key_or_value)
        case ast.Compare(left=left, comparators=others):
            for part in (left, *others):
                _check_value(part)
        case _:
            _digits(node, frozenset())


def _digits(node: ast.AST | None, functions: frozenset[str]) -> float:
    """At most how many digits the exact value of this arithmetic has, a name counted as one."""
    match node:
        case ast.Constant(value=int() as value):
            return value.bit_length() / 3 + 1
        case ast.Constant(value=float() | complex()) | ast.Name():
            return 1
        case ast.UnaryOp(operand=operand):
            return _digits(operand, functions)
        case ast.BinOp(op=ast.LShift() | ast.RShift()):
            raise _RefusedError("a shift")
        case ast.BinOp(op=ast.Pow()):
            if (power := _exponent(node.right)) > MAX_POWER:
                raise _RefusedError(f"a power above {MAX_POWER}")
            digits = _digits(node.left, functions) * max(1.0, power)
        case ast.BinOp():
            digits = _digits(node.left, functions) + _digits(node.right, functions)
        case ast.Call(func=ast.Name(id=name), keywords=[]) if name in functions:
            digits = sum(_digits(argument, functions) for argument in node.args)
        case _:
            raise _RefusedError(_CODE)
    if digits > MAX_LENGTH:
        raise _RefusedError("an expression of too many digits")
    return digits


def _exponent(node: ast.AST) -> float:
    """At most how large this exponent is, a name counted as one."""
    match node:
        case ast.Constant(value=int() | float() as value):
            return abs(value)
        case ast.Name():
            return 1
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            return _exponent(operand)
        case ast.BinOp(op=ast.Add() | ast.Sub()):
            return _exponent(node.left) + _exponent(node.right)
        case ast.BinOp(op=ast.Mult()):
            return _exponent(node.left) * _exponent(node.right)
        case ast.BinOp(op=ast.Div(), right=ast.Constant(value=int(divisor))) if divisor:
            return _exponent(node.left)
        case _:
            raise _RefusedError("a tower of powers")
