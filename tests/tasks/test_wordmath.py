"""Word problems: each is recomputed from its text and its steps, without the code that generated it."""

import re
import tomllib
from collections import Counter
from functools import cache
from importlib.resources import files
from itertools import combinations
from typing import Any

import pytest

from reinforce_lite.config import TaskConfig
from reinforce_lite.tasks import check_task, load_task
from reinforce_lite.tasks.wordmath import MOVES, generate
from reinforce_lite.tasks.wordmath_stories import load_worlds
from reinforce_lite.types import Problem, Split

LEVELS = (1, 2, 3, 4)
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
Step = tuple[int, str, int, int]

GOLDEN_IDS_AND_GOLDS = {
    1: ("wordmath-1-212151a301ac", "14"),
    2: ("wordmath-2-30a8bcf4ab47", "61"),
    3: ("wordmath-3-7b994bf3059b", "168"),
    4: ("wordmath-4-ece3cf6a8f4c", "530"),
}
GOLDEN_QUESTION_1 = (
    "A chess club begins the year with 3 children. In spring 11 new children come to the chess club. "
    "How many children does the chess club have now?"
)
GOLDEN_QUESTION_4 = (
    "A shop has 10 boxes with 61 backpacks in each. A truck brings 3 more boxes with 21 backpacks in "
    "each. The owner of the shop drives 30 kilometers to work. The shop sells 259 of the backpacks. "
    "The owner of the shop buys 116 more backpacks. The door of the shop is 60 years old. How many "
    "backpacks does the shop have now?"
)
GOLDEN_SOLUTION_4 = "61 * 10 = 610\n21 * 3 = 63\n610 + 63 = 673\n673 - 259 = 414\n414 + 116 = 530"


def parse_steps(problem: Problem) -> list[Step]:
    """The solution's lines, each of the form `12 + 5 = 17`."""
    steps = []
    for line in problem.solution.split("\n"):
        match = re.fullmatch(r"(\d+) ([-+*/]) (\d+) = (\d+)", line)
        assert match, line
        steps.append((int(match[1]), match[2], int(match[3]), int(match[4])))
    return steps


def parse_numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


@cache
def all_problems(level: int) -> tuple[Problem, ...]:
    return tuple(p for split in SPLITS for p in generate(level, 0, split))


@cache
def load_toml() -> dict[str, Any]:
    return tomllib.loads((files("reinforce_lite") / "tasks" / "wordmath_stories.toml").read_text())


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def test_generate_makes_splits_of_the_documented_sizes(level: int) -> None:
    assert [len(generate(level, 0, split)) for split in SPLITS] == [4_000, 400, 1_000]


def test_every_step_is_right_and_the_last_result_is_the_gold(level: int) -> None:
    for problem in all_problems(level):
        for left, operation, right, result in parse_steps(problem):
            exact = {"+": left + right, "-": left - right, "*": left * right, "/": left / right}[operation]
            assert exact == result > 0, problem
        assert problem.gold == str(parse_steps(problem)[-1][3])


def test_every_operand_is_in_the_text_or_an_earlier_result(level: int) -> None:
    for problem in all_problems(level):
        known = set(parse_numbers(problem.question))
        for left, _, right, result in parse_steps(problem):
            assert {left, right} <= known, problem
            known.add(result)


def test_every_result_but_the_last_is_used(level: int) -> None:
    for problem in all_problems(level):
        steps = parse_steps(problem)
        for i, (_, _, _, result) in enumerate(steps[:-1]):
            assert any(result in (left, right) for left, _, right, _ in steps[i + 1 :]), problem


def test_only_levels_3_and_4_have_distractors(level: int) -> None:
    """Counted with multiplicity: a number mentioned twice must be needed twice."""
    spare = []
    for problem in all_problems(level):
        needed = Counter(n for left, _, right, _ in parse_steps(problem) for n in (left, right))
        spare.append((Counter(parse_numbers(problem.question)) - needed).total())
    most = {1: 0, 2: 0, 3: 1, 4: 2}[level]
    assert max(spare) == most
    # A distractor that equals an intermediate result does not count as spare.
    assert spare.count(most) > 0.9 * len(spare)


def test_levels_keep_their_ranges(level: int) -> None:
    lengths = {1: {1}, 2: {2}, 3: {3}, 4: {4, 5}}[level]
    largest = {1: 100, 2: 100, 3: 300, 4: 4_000}[level]
    assert {len(parse_steps(p)) for p in all_problems(level)} == lengths
    for problem in all_problems(level):
        for left, operation, right, result in parse_steps(problem):
            assert max(left, right, result) <= largest, problem
            if operation == "*":
                assert min(left, right) <= 12, problem
            if operation == "/":
                assert 2 <= right <= 12, problem
            if operation in "+-" and level == 1:
                assert max(left, right) <= 12, problem
    if level == 4:
        assert sum(max(parse_numbers(p.question)) >= 100 for p in all_problems(4)) > 0.8 * len(
            all_problems(4)
        )


@pytest.mark.parametrize("split", SPLITS)
def test_operations_are_balanced_at_level_1(split: Split) -> None:
    counts = Counter(parse_steps(p)[0][1] for p in generate(1, 0, split))
    quarter = len(generate(1, 0, split)) // 4
    assert counts == {"+": quarter, "-": quarter, "*": quarter, "/": quarter}
    in_order = [parse_steps(p)[0][1] for p in generate(1, 0, split)[:8]]
    assert Counter(in_order) == {"+": 2, "-": 2, "*": 2, "/": 2}


def test_every_operation_is_common_at_every_level(level: int) -> None:
    problems = all_problems(level)
    for operation in "+-*/":
        assert sum(operation in {s[1] for s in parse_steps(p)} for p in problems) >= len(problems) / 4


def test_splits_share_no_step_at_any_level() -> None:
    steps_of: dict[str, set[tuple[str, int, int]]] = {split: set() for split in SPLITS}
    for level in LEVELS:
        for split in SPLITS:
            for problem in generate(level, 0, split):
                for left, operation, right, _ in parse_steps(problem):
                    low, high = min(left, right), max(left, right)
                    steps_of[split].add(
                        (operation, low, high) if operation in "+*" else (operation, left, right)
                    )
    for first, second in combinations(SPLITS, 2):
        assert not steps_of[first] & steps_of[second]
    total = sum(map(len, steps_of.values()))
    assert len(steps_of["train"]) / total > 0.6
    # At level 1 most possible steps occur, so each split's share of them is the configured one.
    additions = {
        split: {s for s in steps_of[split] if s[0] == "+" and s[2] <= 20 and s[1] >= 2} for split in SPLITS
    }
    n_additions = sum(map(len, additions.values()))
    assert n_additions > 180  # of the 190 unordered pairs of 2 to 20
    assert 0.6 < len(additions["train"]) / n_additions < 0.8
    assert 0.12 < len(additions["test"]) / n_additions < 0.28


def test_questions_and_ids_are_unique() -> None:
    problems = [p for level in LEVELS for p in all_problems(level)]
    assert len({p.question for p in problems}) == len(problems) == 4 * 5_400
    assert len({p.id for p in problems}) == len(problems)
    assert all(re.fullmatch(r"wordmath-[1-4]-[0-9a-f]{12}", p.id) for p in problems)


def test_generate_is_the_same_on_every_machine() -> None:
    """Golden values: a change here changes every user's problems and needs a line in the changelog."""
    first = {level: generate.__wrapped__(level, 0, "test")[0] for level in LEVELS}
    assert {level: (p.id, p.gold) for level, p in first.items()} == GOLDEN_IDS_AND_GOLDS
    assert first[1].question == GOLDEN_QUESTION_1
    assert first[4].question == GOLDEN_QUESTION_4
    assert first[4].solution == GOLDEN_SOLUTION_4


def test_generate_makes_other_problems_for_another_seed() -> None:
    first, second = ({p.question for p in generate(1, seed, "test")} for seed in (0, 1))
    assert len(first & second) < 100


def test_questions_vary_in_names_and_things() -> None:
    questions = [p.question for p in generate(1, 0, "train")]
    people = load_toml()
    used_names = {name for name in people["women"] + people["men"] if any(name in q for q in questions)}
    assert len(used_names) >= 40
    things = ("stickers", "muffins", "dollars", "passengers", "books", "tulips", "pages", "children", "lamps")
    assert all(sum(thing in q for q in questions) >= 20 for thing in things)


def test_questions_are_grammatical(level: int) -> None:
    people = load_toml()
    for problem in all_problems(level)[::3]:
        text = problem.question
        assert text[0].isupper() or text[0].isdigit()
        assert text.endswith("?")
        assert text.count("?") == 1, text
        assert not re.search(r"[{}]|  |[.?] [a-z]| [.?,]", text), text
        assert not re.search(r"\b[01] [a-z]", text), text  # "1 eggs"
        assert not re.search(r"\ba [aeiou]|\ban (?!hour)[^aeiou]", text, re.IGNORECASE), text
        women, men = ([n for n in people[k] if re.search(rf"\b{n}\b", text)] for k in ("women", "men"))
        assert len(women) <= 1 >= len(men), text
        if re.search(r"\b([Ss]he|[Hh]er)\b", text):
            assert women, text
        if re.search(r"\b([Hh]e|[Hh]im|[Hh]is)\b", text):
            assert men, text


def test_pronouns_refer_to_the_subject_named_last(level: int) -> None:
    """As a reader understands them, sentence by sentence: "Ben has 5 more than Ana. He …" is Ben."""
    people = load_toml()
    gender = dict.fromkeys(people["women"], "she") | dict.fromkeys(people["men"], "he")
    for problem in all_problems(level)[::3]:
        subject = None
        for sentence in re.split(r"(?<=[.?]) ", problem.question):
            named = [gender[w] for w in re.findall(r"\w+", sentence) if w in gender]
            pronouns = re.findall(r"\b(she|he|her|him|his)\b", sentence.lower())
            genders = ["she" if word in ("she", "her") else "he" for word in pronouns]
            if named:
                subject = named[0]
            assert all(word == subject for word in genders), problem.question


# One world by hand: from the pattern of each sentence to what it does to the number of passengers.
PASSENGERS = [
    (r"There are (\d+) passengers on a \w+\.", lambda c, n: n),
    (r"A \w+ leaves with (\d+) passengers\.", lambda c, n: n),
    (r"A \w+ is empty until (\d+) passengers get on\.", lambda c, n: n),
    (r"A \w+ is empty until (\d+) groups of (\d+) passengers get on\.", lambda c, k, n: k * n),
    (r"On a \w+ there are (\d+) groups of (\d+) passengers and nobody else\.", lambda c, k, n: k * n),
    (r"At the next stop (\d+) more passengers get on\.", lambda c, n: c + n),
    (r"Then (\d+) more passengers get on\.", lambda c, n: c + n),
    (r"The \w+ stops and takes on (\d+) more passengers\.", lambda c, n: c + n),
    (r"At the next stop (\d+) passengers get off\.", lambda c, n: c - n),
    (r"Then (\d+) of the passengers get off\.", lambda c, n: c - n),
    (r"The \w+ stops and (\d+) passengers leave it\.", lambda c, n: c - n),
    (r"Then (\d+) more groups of (\d+) passengers get on\.", lambda c, k, n: c + k * n),
    (
        r"The \w+ makes (\d+) stops, and (\d+) more passengers get on at each of them\.",
        lambda c, k, n: c + k * n,
    ),
    (r"Then (\d+) groups of (\d+) passengers get off\.", lambda c, k, n: c - k * n),
    (r"The \w+ makes (\d+) stops, and (\d+) passengers get off at each of them\.", lambda c, k, n: c - k * n),
    (r"The \w+ is \d+ years old\.", lambda c: c),
    (r"The whole trip takes \d+ minutes\.", lambda c: c),
    (r"The \w+ has \d+ windows\.", lambda c: c),
    (r"How many passengers (are on the \w+|does the \w+ carry)( now| in all)?\?", lambda c, *_: c),
    (r"At the last stop all the passengers get off and form (\d+) equal groups\.", lambda c, n: c // n),
    (r"How many passengers are in each group\?", lambda c: c),
    (r"At the last stop all .* go on in vans, (\d+) passengers in each van\.", lambda c, n: c // n),
    (r"How many vans are there\?", lambda c: c),
    (r"Each passenger on the \w+(?: now)? has a ticket for \$(\d+)\.", lambda c, n: c * n),
    (r"How many dollars did these tickets cost in all\?", lambda c: c),
]


def test_text_of_one_world_has_the_gold_by_a_second_parser(level: int) -> None:
    stories = [p for p in all_problems(level) if "passengers" in p.question]
    assert len(stories) > 300
    for problem in stories:
        count = 0
        for sentence in re.split(r"(?<=[.?]) ", problem.question):
            readings = [(do, m) for form, do in PASSENGERS if (m := re.fullmatch(form, sentence))]
            assert len(readings) == 1, sentence
            do, match = readings[0]
            count = do(count, *(int(g) for g in match.groups() if g and g.isdigit()))  # type: ignore[operator]
        assert str(count) == problem.gold, problem


def test_worlds_have_phrases_for_known_moves_only() -> None:
    """A misspelt key in wordmath_stories.toml would silently never be used."""
    for world in load_worlds():
        assert world.moves <= MOVES.keys() | {"aside"}, world.things
        assert {"have", "groups", "gain", "lose", "ask", "share", "pack", "aside"} <= world.moves
        assert len(world.phrases["aside"]) >= 2  # level 4 needs two different ones
    assert len(load_worlds()) >= 12
    assert set().union(*(world.moves for world in load_worlds())) == MOVES.keys() | {"aside"}


def test_load_task_makes_word_problems_that_pass_the_checks(level: int) -> None:
    task = load_task(TaskConfig(name="wordmath", level=level))
    check_task(task)
    problem = task.problems("test")[0]
    assert task.problems("test") is task.problems("test")
    right = task.reward(problem, f"<think>…</think><answer>{problem.gold}</answer>")
    wrong = task.reward(problem, f"<think>…</think><answer>{problem.gold}1</answer>")
    assert not isinstance(right, float)
    assert not isinstance(wrong, float)
    assert (right.value, wrong.value) == (1.0, 0.0)
