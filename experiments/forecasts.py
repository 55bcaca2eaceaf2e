"""Does the audit's forecast come true? Each recipe is audited, then trained for 20 steps.

    python experiments/forecasts.py --parallel 2

The forecasts "likely" and "slowly" say that the model learns, "unlikely" and "nothing left" that it does not.
It has learned if its strict accuracy on 200 test problems is significantly above the untrained model's (exact
McNemar test, p < 0.05). The table also has what one and the same answer to all problems would reach. The
thresholds (trainer/audit_advice.py) were chosen beforehand. Of these recipes only the quickstart was used for
that, so it is not counted.

GSM8K is the folder ./gsm8k if it exists, otherwise the hub's; the model of the recipes that begin with 0.5b
is the folder ./qwen2.5-coder-0.5b-instruct if it exists, otherwise the hub's of that name.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import trials
from trials import Record, Trial

from reinforce_lite.evaluation.statistics import constant_hint, mcnemar_p_value, wilson_interval
from reinforce_lite.runlog.run import Run

MINUTES = "2"
SIGNIFICANT = 0.05
LEARNS = {"likely": True, "slowly": True, "unlikely": False, "nothing left": False}
"""Whether a forecast says that the model learns."""
QUICKSTART = ("quickstart", "--train.steps", "20", "--eval.validation-n", "24", "--eval.every", "100")
LEVEL2 = ("experiments/level2.toml", *QUICKSTART[1:])
BASE = "experiments/forecasts.toml"


def wordmath(level: int, *options: str) -> tuple[str, ...]:
    """Word problems of a level, without worked examples."""
    return (BASE, "--task.name", "wordmath", "--task.level", str(level), *options)


def gym(task: str, *params: str, examples: Sequence[tuple[str, str, str]] = ()) -> tuple[str, ...]:
    """A task of reasoning-gym, with its parameters and worked examples (question, thinking, answer)."""
    options = (BASE, "--task.name", "gym", "--task.path", task)
    options += ("--task.params", *params) if params else ()
    return options + (worked(*examples) if examples else ())


def worked(*examples: tuple[str, str, str]) -> tuple[str, ...]:
    """A prompt of worked examples alone, as the quickstart's is."""
    written = [
        {"question": question, "answer": f"<think>{thinking}</think>\n<answer>{answer}</answer>"}
        for question, thinking, answer in examples
    ]
    return ("--prompt.instruction", "", "--prompt.examples", json.dumps(written))


def sums(*examples: tuple[str, str]) -> list[tuple[str, str, str]]:
    """Worked examples of sums."""
    asked = "State the final answer to the following arithmetic problem:"
    return [(f"{asked} {left} =", f"{left} = {right}", right) for left, right in examples]


APPLES = ("Tom has 3 apples. He buys 4 more apples. How many apples does Tom have now?", "3 + 4 = 7", "7")
GCD = "Find the Greatest Common Divisor (GCD) of these numbers:"
ONLY_GCD = "Give only the GCD as your final answer."
LETTERS = 'How many times does the letter "{}" appear in the text:'
BACKWARD = "Spell this word backward (example: sun -> nus):"
LEGS = (
    "Your task is to count how many legs there are in total when given a list of animals.\n\n"
    "Now, how many legs are there in total if you have"
)
BITS = "How many 1 bits are there in the binary representation of the number"
HALF_BILLION = (
    *("--model.name", trials.HALF_BILLION),
    *("--adapter.rank", "8", "--update.learning-rate", "5e-5"),
)
"""With an adapter, since the optimizer's state for all weights of two runs would not fit at the same time."""
GSM8K = (BASE, "--task.name", "gsm8k", "--task.path", trials.GSM8K)
NOT_COUNTED = "quickstart"
"""The recipe that the thresholds were chosen with."""
RECIPES: dict[str, tuple[str, ...]] = {
    NOT_COUNTED: QUICKSTART,
    "level-1": wordmath(1),
    "level-1-boxed": wordmath(1, "--task.answer-format", "boxed"),
    "level-1-hash": wordmath(1, "--task.answer-format", "hash"),
    "level-2": wordmath(2),
    "level-2-examples": LEVEL2,
    "level-3": wordmath(3),
    "level-4": wordmath(4),
    "gsm8k": (*GSM8K, "--rollout.max-new-tokens", "160"),
    "gsm8k-boxed": (*GSM8K, "--rollout.max-new-tokens", "160", "--task.answer-format", "boxed"),
    "sum-2-digits": gym("chain_sum", "max_terms", "2", "min_digits", "2", "max_digits", "2"),
    "sum-3-terms": gym("chain_sum", "min_terms", "3", "max_terms", "3", "max_digits", "1"),
    "sum": gym("chain_sum"),
    "product": gym("products", "max_digits", "2"),
    "product-2-digits": gym("products", "min_digits", "2", "max_digits", "2"),
    "level-1-one-example": wordmath(1, *worked(APPLES)),
    "sum-2-digits-examples": gym(
        *("chain_sum", "max_terms", "2", "min_digits", "2", "max_digits", "2"),
        examples=sums(("37 - 98", "-61"), ("42 + 49", "91")),
    ),
    "gcd-50-examples": gym(
        *("gcd", "max_value", "50"),
        examples=[
            (f"{GCD} 45, 39. {ONLY_GCD}", "45 = 3 * 15, 39 = 3 * 13", "3"),
            (f"{GCD} 20, 30. {ONLY_GCD}", "20 = 10 * 2, 30 = 10 * 3", "10"),
        ],
    ),
    "letters-1-word-examples": gym(
        *("letter_counting", "min_words", "1", "max_words", "1"),
        examples=[(f'{LETTERS.format("d")} "do"?', "d is d, o is not d", "1")],
    ),
    "backward-3-examples": gym(
        *("spell_backward", "max_word_len", "3"),
        examples=[(f"{BACKWARD} den", "d e n, n e d", "ned"), (f"{BACKWARD} say", "s a y, y a s", "yas")],
    ),
    "equations-2-terms-examples": gym(
        *("simple_equations", "max_terms", "2", "max_value", "10"),
        examples=[
            ("Find the value of d in the equation: 5*d + 4 = 9", "5*d = 9 - 4 = 5, d = 5 / 5 = 1", "1")
        ],
    ),
    "legs-2-animals-examples": gym(
        *("leg_counting", "min_animals", "1", "max_animals", "2", "max_instances", "9"),
        examples=[(f"{LEGS} 7 shrimps?", "7 * 10 = 70", "70"), (f"{LEGS} 3 tigers?", "3 * 4 = 12", "12")],
    ),
    "bits-1000-examples": gym(
        *("count_bits", "max_n", "1000"),
        examples=[(f"{BITS} 121?", "121 = 64 + 32 + 16 + 8 + 1", "5")],
    ),
}
RECIPES |= {
    f"0.5b-{name}": (*RECIPES[name], *HALF_BILLION)
    for name in (
        "level-2-examples",
        "gcd-50-examples",
        "backward-3-examples",
        "equations-2-terms-examples",
    )
}
TRIALS = [Trial(name, (name,), "forecasts.py") for name in RECIPES]


def forecast_and_train(name: str) -> Record:
    """The audit's figures for the recipe as it is, and the record of the run that follows and keeps them."""
    program = [sys.executable, "-m", "reinforce_lite"]
    run = Run(Path("runs") / f"forecasts-{name}")
    if not run.audit:
        subprocess.run([*program, "audit", *RECIPES[name], "--minutes", MINUTES], check=True)
    subprocess.run([*program, "train", *RECIPES[name], "--run", run.path.name, "--resume"], check=True)
    keys = ("forecast", "live", "live_interval", "accuracy", "questions")
    asked = {key: run.audit["ways"][0][key] for key in keys}
    record = {"trial": name, "options": list(RECIPES[name]), "audit": asked, "advice": run.audit["advice"]}
    return record | trials.record_run(run)


def write(records: Mapping[str, Record]) -> None:
    """A row for each recipe, and how many forecasts came true."""
    rows, right, no_better = [], [], []
    for name, run in records.items():
        before, after = trials.correct(run, 0), trials.correct(run, -1)
        p, audit = mcnemar_p_value(before, after), run["audit"]
        learned = p < SIGNIFICANT and fmean(after) > fmean(before)
        is_right = LEARNS[audit["forecast"]] == learned
        if name != NOT_COUNTED:
            right.append(is_right)
        constant = trials.best_constant(run)
        shown = {
            "strict": fmean(after),
            "strict_interval": wilson_interval(sum(after), n := len(after)),
            "n": n,
        }
        if learned and constant_hint(shown | {"best_constant": constant}):
            no_better.append(name)
        low, high = audit["live_interval"]
        rows.append(
            [
                name,
                f"{audit['live']:.0%} ({100 * low:.0f}–{100 * high:.0f})",
                f"{audit['accuracy']:.0%}",
                audit["forecast"],
                trials.accuracy_cell(before),
                trials.accuracy_cell(after),
                f"{constant:.1%}",
                f"{p:.1g}",
                "right" if is_right else "wrong",
            ]
        )
    header = [
        "recipe",
        "live groups",
        "pass@1",
        "forecast",
        "strict before",
        "strict after",
        "best constant",
        "p",
        "forecast was",
    ]
    low, high = wilson_interval(sum(right), len(right))
    share = f"{sum(right)} of {len(right)} forecasts were right ({100 * low:.0f}–{100 * high:.0f}%)"
    note = f"{share}; {NOT_COUNTED} is not counted, since the thresholds were chosen with it.\n"
    constant = f"Not clearly above the best constant answer, though learned: {', '.join(no_better)}.\n"
    machines = trials.machine_lines(records.values())
    trials.write_page("forecasts", trials.table(header, rows), note, constant, *machines)


if __name__ == "__main__":
    trials.main("forecasts", TRIALS, write, script=forecast_and_train)
