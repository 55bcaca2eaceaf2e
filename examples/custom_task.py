"""A task of one's own: put three letters into alphabetical order. A task is two functions in a Python file.

    reinforce-lite train --task.name examples/custom_task.py --prompt.prefill "<answer>" \
        --rollout.max-new-tokens 16

The two options are for the small model of the quickstart recipe, whose worked examples are arithmetic: the
prefill opens the answer block for it. The file runs without them too, and with any other model.
"""

import re
from itertools import combinations
from random import Random
from string import ascii_lowercase

from reinforce_lite import Problem, Reward, Verdict

ANSWER_BLOCK = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
SPLITS = {"train": slice(0, 2200), "validation": slice(2200, 2400), "test": slice(2400, 2600)}


def problems(split: str) -> list[Problem]:
    """The problems of "train", "validation" or "test": the same ones in the same order at every call.

    Splits must share nothing that could be remembered. They are cut by the set of letters, since "c a b" in
    training gives away "b c a" in the test. The package refuses one question in two splits; that two
    questions are the same in other words, only you can know.
    """
    letter_sets = list(combinations(ascii_lowercase, 3))  # 2600, each in order
    Random("letter sets").shuffle(letter_sets)  # a seed of its own: problems never depend on the run
    return [make_problem("".join(letters)) for letters in letter_sets[SPLITS[split]]]


def make_problem(gold: str) -> Problem:
    """The problem whose answer is `gold`, which is sorted."""
    shuffled, random = list(gold), Random(gold)
    while "".join(shuffled) == gold:  # never in order already: copying the question must not pay in full
        random.shuffle(shuffled)
    return Problem(
        id=f"sort-{gold}",  # unique over all splits, and stable: files of several runs are matched by it
        question=f"Put these letters into alphabetical order, in <answer> tags: {' '.join(shuffled)}",
        gold=gold,  # text; whatever else the reward needs goes into `info`
    )


def reward(problem: Problem, completion: str) -> Reward:
    """The share of positions with the right letter; 1 only where the whole is right.

    `completion` is the assistant's whole response as text, the prefill included: with the prefill above it
    starts with "<answer>". It may be anything: empty, cut off at the token limit, nothing but tags. Return a
    finite number for all of it. An exception counts as a fault: the completion is not learned from.

    What is paid for is what will be learned, so close the shortcuts. Exactly one answer block: several would
    be several guesses. Division by the longer of the two: a long list of letters is no way to be right.

    Partial credit gives a small model a signal where it is never quite right; a plain 0.0 or 1.0 is a reward
    too, and harder to exploit. Whatever `value` is, the reported accuracy is `strict`'s.
    """
    blocks = ANSWER_BLOCK.findall(completion)
    if len(blocks) != 1:
        return Reward(0.0, strict=Verdict(False, None, f"{len(blocks)} answer blocks, not one"))
    letters = re.sub(r"[\s,]", "", blocks[0]).lower()
    in_place = sum(a == b for a, b in zip(letters, problem.gold, strict=False))
    right = letters == problem.gold
    reason = "right" if right else f"{in_place} letters are in place"
    return Reward(in_place / max(len(letters), len(problem.gold)), Verdict(right, letters, reason))
