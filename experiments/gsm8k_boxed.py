"""GSM8K with a model of half a billion parameters in its own answer format: prompts, rates, three seeds.

    python experiments/gsm8k_boxed.py --only prompt rate     # first these
    python experiments/gsm8k_boxed.py

Adapters of rank 8. The untrained model is evaluated with five prompts on training problems, so that nothing
is chosen on the test problems, and with each of them on the first test problems. The learning rate is to be
chosen by validation after 20 steps; until then RATE is the usual one of adapters.

The model is the folder ./qwen2.5-coder-0.5b-instruct if it exists, otherwise the hub's model of that name;
the data are the folder ./gsm8k, otherwise the hub's.
"""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import trials
from trials import Record, Trial

from reinforce_lite.config import load_config
from reinforce_lite.evaluation.statistics import mcnemar_p_value
from reinforce_lite.pipeline import build_pipeline
from reinforce_lite.trainer.metrics import completion_records
from reinforce_lite.types import Split
from reinforce_lite.utils.environment import describe_machine, package_versions

RECIPE = "gsm8k-0.5b"
FOLDER = "qwen2.5-coder-0.5b-instruct"
MODEL = f"./{FOLDER}" if Path(FOLDER).is_dir() else "Qwen/Qwen2.5-Coder-0.5B-Instruct"
DATA = "gsm8k" if Path("gsm8k").is_dir() else ""
TEST = 300
"""Test problems."""
CHOOSING = 100
"""Training problems on which the prompts are compared."""
SEEDS = range(3)
RATES = ("5e-5", "1e-4", "2e-4")
RATE = "1e-4"
STEPS = 40
BOXED = "and put your final answer within \\boxed{}."
PROMPTS: dict[str, dict[str, Any]] = {
    "the recipe's": {},
    "in a few short lines": {"prompt.instruction": f"Please reason in a few short lines, {BOXED}"},
    "as a system line": {
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
COMMON = (
    *(RECIPE, "--model.name", MODEL, "--task.path", DATA, "--adapter.rank", "8"),
    *("--update.micro-batch-tokens", "4096", "--train.save-every", "10"),
    *("--eval.every", "10", "--eval.validation-n", "100"),
)
TRIALS = [
    *(Trial(f"prompt-{number}", (name,), "gsm8k_boxed.py") for number, name in enumerate(PROMPTS, 1)),
    *(
        Trial(
            f"rate-{rate}-0",
            (*COMMON, "--train.steps", "20", "--eval.n", "100", "--update.learning-rate", rate),
        )
        for rate in RATES
    ),
    *(
        Trial(
            f"main-{seed}",
            (
                *(*COMMON, "--train.steps", str(STEPS), "--eval.n", str(TEST)),
                *("--update.learning-rate", RATE, "--train.seed", str(seed)),
            ),
        )
        for seed in SEEDS
    ),
]


def untrained(name: str) -> Record:
    """The verdicts on greedy completions of the untrained model with one of the prompts."""
    keys = {"model.name": MODEL, "task.path": DATA, **PROMPTS[name]}
    pipeline = build_pipeline(load_config(RECIPE, keys))
    policy = pipeline.policy
    record: Record = {
        "prompt": name,
        "machine": trials.machine_name(describe_machine(policy.device, policy.dtype)),
        "versions": package_versions(),
    }
    splits: dict[Split, int] = {"train": CHOOSING, "test": TEST}
    for split, n in splits.items():
        groups = pipeline.eval_groups(pipeline.problems(split, n))
        lines = completion_records(0, groups, split="test")
        record[split] = trials.verdicts(lines) | {
            "tokens": round(fmean(line["tokens"] for line in lines), 1),
            "cut": round(fmean(line["truncated"] for line in lines), 4),
        }
    return record


def write(records: Mapping[str, Record]) -> None:
    """Tables of prompts, rates, and the main runs."""
    prompts = {record["prompt"]: record for record in records.values() if "prompt" in record}
    rates, main = (
        [run for name, run in records.items() if name.startswith(start)] for start in ("rate-", "main-")
    )
    parts = []
    if prompts:
        header = [
            "prompt",
            f"strict, {CHOOSING} training",
            "lenient",
            f"strict, {TEST} test",
            "lenient",
            "tokens",
            "cut",
        ]
        parts.append(trials.table(header, [_prompt_row(record) for record in prompts.values()]))
    parts += [_curves(runs) for runs in (rates, main) if runs]
    if main:
        parts.append(trials.table(trials.result_header(), [trials.result_row(run) for run in main]))
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


def _curves(runs: list[Record]) -> str:
    checked = [trials.validation(run) for run in runs]
    steps = sorted({step for by_step in checked for step in by_step})
    rows = [
        [run["trial"], *(f"{by_step[step]:.1%}" if step in by_step else "" for step in steps)]
        for run, by_step in zip(runs, checked, strict=True)
    ]
    return trials.table(["strict on validation after steps", *map(str, steps)], rows)


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
