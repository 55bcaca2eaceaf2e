"""GSM8K with a model of half a billion parameters in its own answer format: prompts, rates, three seeds.

    python experiments/gsm8k_boxed.py --only prompt asked rate main    # two cores: two hours for each main
    python experiments/gsm8k_boxed.py --only full main --parallel 6     # a card of 80 GB: ten minutes

`full` trains all weights on a card for CARD_HOURS, and is evaluated on all test problems; `rate`, `main` and
`adaptive` train adapters of rank 8. The untrained model is evaluated with five prompts (`prompt`) on training
problems, so that nothing is chosen on the test problems, and with each of them on the first test problems;
and on the questions that the runs of each seed ask (`asked`), since some are easier than others
(docs/experiments.md).

The model is the folder ./qwen2.5-coder-0.5b-instruct if it exists, otherwise the hub's model of that name;
the data are the folder ./gsm8k, otherwise the hub's.
"""

import json
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import trials
from trials import Record, Trial

from reinforce_lite.config import load_config
from reinforce_lite.evaluation.statistics import mcnemar_p_value
from reinforce_lite.pipeline import Pipeline, build_pipeline
from reinforce_lite.rollout.selection import epoch_problems
from reinforce_lite.trainer.metrics import completion_records
from reinforce_lite.types import Problem, Split
from reinforce_lite.utils.environment import describe_machine, package_versions

RECIPE = "gsm8k-0.5b"
TEST = 300
"""Test problems."""
CHOOSING = 100
"""Training problems on which the prompts are compared."""
SEEDS = range(3)
RATES = ("1e-5", "3e-5", "1e-4")
RATE = "3e-5"
"""Not chosen by validation, as `rate` would: a third of 1e-4, which gained nothing on a card."""
STEPS = 40
ASKED = 320
"""Questions of a run with these steps."""
BLOCK = 10
"""Steps whose questions are compared."""
TRAINED = ("full", "main", "adaptive")
SETTINGS = {"main": (), "adaptive": ("--rollout.selection", "adaptive", "--rollout.refill", "2")}
CARD_HOURS = 0.15
"""Of each run of `full`."""
BOXED = "and put your final answer within \\boxed{}."
PROMPTS: dict[str, dict[str, Any]] = {
    "the recipe's": {},
    "in a few short lines": {"prompt.instruction": f"Please reason in a few short lines, {BOXED}"},
    "as a system message": {
        "prompt.system": f"Please reason step by step, {BOXED}",
        "prompt.instruction": "",
    },
    "####": {
        "task.answer_format": "hash",
        "prompt.instruction": "Let's think step by step and output the final answer after ####.",
    },
    "tags": {
        "task.answer_format": "tags",
        "prompt.instruction": "Show your work in <think> </think> tags, then return the final number in "
        "<answer> </answer> tags.",
    },
}
READ = trials.RESULTS / "gsm8k_boxed" / "reflection.json"
"""The completions of a run that have a word of the reflection lists, and what it does there, read by hand."""
INPUTS = (RECIPE, "--model.name", trials.HALF_BILLION, "--task.path", trials.GSM8K)
COMMON = (
    *(*INPUTS, "--adapter.rank", "8"),
    *("--update.micro-batch-tokens", "4096", "--train.save-every", "10"),
    *("--eval.every", "10", "--eval.validation-n", "100"),
)
FULL = (
    *(*INPUTS, "--rollout.prompts-per-step", "16", "--update.learning-rate", "5e-6"),
    *("--update.micro-batch-tokens", "8192", "--train.save-every", "1000"),
    *("--eval.every", "20", "--eval.validation-n", "200", "--eval.n", "1319"),
    *("--train.steps", "1000", "--train.hours", str(CARD_HOURS)),  # the hours end first
)
TRIALS = [
    *(Trial(f"full-{seed}", (*FULL, "--train.seed", str(seed))) for seed in SEEDS),
    *(Trial(f"prompt-{number}", (name,), "gsm8k_boxed.py") for number, name in enumerate(PROMPTS, 1)),
    *(Trial(f"asked-{seed}", (str(seed),), "gsm8k_boxed.py") for seed in SEEDS),
    *(
        Trial(
            f"rate-{rate}-0",
            (*COMMON, "--train.steps", "20", "--eval.n", "100", "--update.learning-rate", rate),
        )
        for rate in RATES
    ),
    *(
        Trial(
            f"{setting}-{seed}",
            (
                *(*COMMON, "--train.steps", str(STEPS), "--eval.n", str(TEST)),
                *("--update.learning-rate", RATE, "--train.seed", str(seed), *options),
            ),
        )
        for setting, options in SETTINGS.items()
        for seed in SEEDS
    ),
]


def untrained(option: str) -> Record:
    """The verdicts on greedy completions of the untrained model: with one of the prompts, or of a seed.

    With a prompt they are of the first training and test problems, with a seed of the questions that its runs
    ask, in their order.
    """
    prompt = PROMPTS.get(option, {})
    keys = {"model.name": trials.HALF_BILLION, "task.path": trials.GSM8K, **prompt}
    pipeline = build_pipeline(load_config(RECIPE, keys))
    policy = pipeline.policy
    record: Record = {
        "machine": trials.machine_name(describe_machine(policy.device, policy.dtype)),
        "versions": package_versions(),
    }
    if option not in PROMPTS:
        asked = epoch_problems(pipeline.problems("train"), 0, ASKED, int(option))
        return record | {"seed": option, "asked": _judge(pipeline, asked)}
    splits: dict[Split, int] = {"train": CHOOSING, "test": TEST}
    judged = {split: _judge(pipeline, pipeline.problems(split, n)) for split, n in splits.items()}
    return record | {"prompt": option} | judged


def _judge(pipeline: Pipeline, problems: Sequence[Problem]) -> Record:
    lines = completion_records(0, pipeline.eval_groups(problems), split="test")
    return trials.verdicts(lines) | {
        "tokens": round(fmean(line["tokens"] for line in lines), 1),
        "cut": round(fmean(line["truncated"] for line in lines), 4),
    }


def write(records: Mapping[str, Record]) -> None:
    """Tables of prompts, of validation by step, and of each setting's runs."""
    prompts = {record["prompt"]: record for record in records.values() if "prompt" in record}
    asked = [record for record in records.values() if "asked" in record]
    runs = {name: record for name, record in records.items() if "options" in record}
    parts = []
    if prompts:
        header = ["prompt", f"strict, {CHOOSING} training", "lenient", f"strict, {TEST} test", "lenient"]
        rows = [_prompt_row(record) for record in prompts.values()]
        parts.append(trials.table([*header, "tokens", "cut"], rows))
    if runs:
        parts.append(_curves(runs))
    if asked:
        parts.append(_questions(asked, runs))
    ends = [
        [setting, str(run["steps"]), *trials.result_row(run)]
        for setting, seeds in trials.by_setting(runs).items()
        if setting in TRAINED
        for run in seeds
    ]
    if ends:
        parts.append(trials.table(["", "steps", *trials.result_header()], ends))
    if READ.exists():
        parts.append(_second_looks(json.loads(READ.read_text(encoding="utf-8"))))
    main = trials.by_setting(runs)["main"]
    if main and prompts:
        parts.append(_against_best_prompt(prompts, main))
    trials.write_page("gsm8k_boxed", *parts, *trials.machine_lines(records.values()))


def _prompt_row(record: Record) -> list[str]:
    test = record["test"]
    accuracies = [
        trials.accuracy_cell(_bits(record[s], kind)) for s in ("train", "test") for kind in trials.KINDS
    ]
    return [record["prompt"], *accuracies, f"{test['tokens']:.0f}", f"{test['cut']:.1%}"]


def _bits(verdicts: Record, kind: str) -> list[bool]:
    return [bit == "1" for bit in verdicts["0"][kind]]


def _curves(runs: Mapping[str, Record]) -> str:
    checked = {name: trials.validation(run) for name, run in runs.items()}
    steps = sorted({step for by_step in checked.values() for step in by_step})
    rows = [
        [name, *(f"{by_step[step]:.1%}" if step in by_step else "" for step in steps)]
        for name, by_step in checked.items()
    ]
    return trials.table(["strict on validation after steps", *map(str, steps)], rows)


def _questions(asked: list[Record], runs: Mapping[str, Record]) -> str:
    """Whether a reward that rises or falls is learning, or due to the questions that are asked then."""
    steps = [f"{step + 1} to {step + BLOCK}" for step in range(0, STEPS, BLOCK)]
    rows = []
    for record in asked:
        bits = _bits(record["asked"], "strict")
        size = len(bits) * BLOCK // STEPS
        blocks = [bits[i : i + size] for i in range(0, len(bits), size)]
        rows.append([f"untrained, greedy, seed {record['seed']}", *map(trials.accuracy_cell, blocks)])
        for name, run in runs.items():
            if trials.seed_of(run) == record["seed"] and name.startswith(("rate", "main")):
                rewards = run["curves"]["reward"]
                parts = [rewards[i : i + BLOCK] for i in range(0, STEPS, BLOCK)]
                rows.append([f"{name}, sampled", *(f"{fmean(part):.1%}" if part else "" for part in parts)])
    return trials.table(["strict on the questions of steps", *steps], rows)


def _second_looks(kept: Record) -> str:
    """How often a word of the lists is a second look at the model's own result, and whether it helped."""
    rows = []
    for group, counts in kept["groups"].items():
        read = [line for line in kept["read"] if line["group"] == group]
        looks = [line for line in read if line["label"] == "second look"]
        without, right = counts["completions"] - len(read), counts["right"] - sum(r["right"] for r in read)
        cells = [
            counts["completions"],
            len(read),
            len(looks),
            *(sum(r[k] for r in looks) for k in ("right", "cut")),
        ]
        rows.append([group, *map(str, cells), f"{right / without:.1%}"])
    header = ["completions of main-0", "in all", "with a word of the lists", "second look", "of these right"]
    return trials.table([*header, "of these cut", "right without a word"], rows)


def _against_best_prompt(prompts: Mapping[str, Record], main: list[Record]) -> str:
    """Paired tests against the untrained model with the prompt that is best on training problems."""
    best = max(prompts, key=lambda name: sum(_bits(prompts[name]["train"], "lenient")))
    text = f"Against the untrained model with its best prompt on training problems ({best}):\n\n"
    assert all(run["verdicts"]["ids"] == prompts[best]["test"]["ids"] for run in main), "different problems"
    for kind in trials.KINDS:
        before = _bits(prompts[best]["test"], kind)
        values = [mcnemar_p_value(before, trials.correct(run, -1, kind)) for run in main]
        mean = fmean(trials.final_accuracies(main, kind))
        p = ", ".join(f"{value:.1g}" for value in values)
        text += f"- {kind}: {fmean(before):.1%}, after {mean:.1%} in the mean of {len(main)} seeds, p = {p}\n"
    return text


if __name__ == "__main__":
    trials.main("gsm8k_boxed", TRIALS, write, script=untrained)
