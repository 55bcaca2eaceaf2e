"""GSM8K with a model of half a billion parameters: accuracy before and after, and whether it checks itself.

    python experiments/gsm8k.py --hours 3        # and again, until it has done all its steps

The model is the folder ./qwen2.5-coder-0.5b-instruct where there is one, otherwise the hub's model of that
name; the data are the folder ./gsm8k, otherwise the hub's. As a control the untrained model answers the same
test problems with three prompts: the article's, which is the one trained with, and two others. Each kept file
has every problem's verdicts; the run's has its reflection words too, with excerpts.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
import trials
from trials import Kept, Trial

from reinforce_lite import config, evaluation, reflection
from reinforce_lite.runlog import Line, Run

FOLDER = "qwen2.5-coder-0.5b-instruct"
MODEL = f"./{FOLDER}" if Path(FOLDER).is_dir() else "Qwen/Qwen2.5-Coder-0.5B-Instruct"
DATA = ("--task.path", "./gsm8k") if Path("gsm8k").is_dir() else ()
N = 200
STEPS = 100
EXCERPTS = 20
ANSWER = "Return the final number in <answer> </answer> tags."
PROMPTS: dict[str, dict[str, Any]] = {
    "article": {},
    "no system line, nothing begun": {
        "prompt.system": "",
        "prompt.prefill": "",
        "prompt.instruction": f"Let's think step by step. {ANSWER}",
    },
    "two worked examples": {
        "prompt.system": "",
        "prompt.prefill": "",
        "prompt.instruction": "",
        "prompt.examples": [
            {
                "question": "A baker sells 12 loaves a day for $4 each. How many dollars does he get in "
                "5 days?",
                "answer": "<think>In a day he gets 12 * 4 = 48 dollars. In 5 days he gets 48 * 5 = 240 "
                "dollars.</think>\n<answer>240</answer>",
            },
            {
                "question": "Lea has 30 stamps. She gives a third of them to her brother and buys 8 new "
                "ones. How many stamps does she have now?",
                "answer": "<think>She gives away 30 / 3 = 10 stamps. Then she has 30 - 10 = 20. With the "
                "new ones she has 20 + 8 = 28.</think>\n<answer>28</answer>",
            },
        ],
    },
}
TRAIN = (
    *("gsm8k-0.5b", "--model.name", MODEL, *DATA, "--train.steps", str(STEPS), "--train.save-every", "5"),
    *("--update.learning-rate", "5e-6", "--update.warmup-steps", "5", "--update.micro-batch-tokens", "4096"),
    *("--eval.n", str(N), "--eval.validation-n", "50", "--eval.every", "25"),
)
TRIALS = [
    *(Trial(f"prompt-{number}", (name,), "gsm8k.py") for number, name in enumerate(PROMPTS)),
    Trial("train-0", TRAIN),
]


def untrained(name: str) -> Kept:
    """The untrained model's verdicts with one of the prompts."""
    data = {"task.path": DATA[1]} if DATA else {}
    settings = {"model.name": MODEL, "eval.n": N, **data, **PROMPTS[name]}
    lines = trials.tested(config.load("gsm8k-0.5b", settings), step=0)
    return {"prompt": name, "verdicts": trials.verdicts(lines), "reflection": words(lines)}


def keep(run: Run) -> Kept:
    """A run, with its reflection words before and after."""
    lines = [line for line in run.read("eval_rollouts") if line["split"] == "test"]
    by_step = {step: [line for line in lines if line["step"] == step] for step in {x["step"] for x in lines}}
    found = {str(step): words(by_step[step]) for step in sorted(by_step)}
    return trials.of_run(run) | {"reflection": found}


def words(lines: Sequence[Line]) -> Kept:
    """Which answers have a word of each list ("0110"), their lengths, and excerpts: first of lists A and B,
    then of C."""
    hits = {
        name: "".join(str(int(name in line["reflection"])) for line in lines) for name in reflection.LISTS
    }
    rare = [line for line in lines if {"a", "b"} & set(line["reflection"])]
    rest = [line for line in lines if line["reflection"] and line not in rare]
    kept = ("problem_id", "gold", "answer", "strict", "reflection", "completion")
    excerpts = [{key: line[key] for key in kept} for line in [*rare, *rest][:EXCERPTS]]
    return {"hits": hits, "tokens": [line["tokens"] for line in lines], "excerpts": excerpts}


def write(kept: Mapping[str, Kept]) -> None:
    controls = {k["prompt"]: k for name, k in kept.items() if name.startswith("prompt")}
    rows = [
        [f"untrained, {name}", *(trials.share(trials.right(k, 0, kind)) for kind in ("strict", "lenient"))]
        for name, k in controls.items()
    ]
    parts = []
    if run := kept.get("train-0"):
        after = {kind: trials.right(run, -1, kind) for kind in ("strict", "lenient")}
        rows.append([f"after {run['steps']} steps, article", *(trials.share(v) for v in after.values())])
        for kind, verdicts in after.items():
            best = max((trials.right(k, 0, kind) for k in controls.values()), key=sum)
            p = evaluation.paired_p(best, verdicts)
            parts.append(f"p of {kind} against the best prompt untrained (paired): {p:.2g}\n")
        header = ["list", "answers", "with a word", "right with", "right without"]
        parts.append(trials.table(header, _aha(run)))
        _plot(run)
    trials.write("gsm8k", trials.table([f"{N} test problems, prompt", "strict", "lenient"], rows), *parts)


def _aha(run: Kept) -> list[list[str]]:
    rows = []
    for name in reflection.LISTS:
        for label, step in (("untrained", min), ("trained", max)):
            key = str(step(int(k) for k in run["reflection"]))
            hits = [bit == "1" for bit in run["reflection"][key]["hits"][name]]
            right = trials.right(run, int(key))
            cells = [
                _accuracy([r for r, hit in zip(right, hits, strict=True) if hit is wanted])
                for wanted in (True, False)
            ]
            rows.append([name.upper(), label, f"{sum(hits)} of {len(hits)}", *cells])
    return rows


def _accuracy(right: Sequence[bool]) -> str:
    return f"{fmean(right):.1%} of {len(right)}" if right else "–"


def _plot(run: Kept) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6))
    curves = run["curves"]
    for kind, label in (("accuracy/strict", "strict"), ("accuracy/lenient", "lenient")):
        axes[0].plot(trials.smooth(curves[kind]), label=label)
    axes[0].set_title("accuracy of sampled answers")
    axes[0].legend()
    axes[1].plot(trials.smooth(curves["completions/mean_length"]))
    axes[1].set_title("tokens an answer")
    for name in "abc":
        axes[2].plot(trials.smooth(curves[f"reflection/list_{name}"]), label=f"list {name.upper()}")
    axes[2].set_title("share of answers with a reflection word")
    axes[2].legend()
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_xlabel("step")
    trials.save("gsm8k", figure)


if __name__ == "__main__":
    if "--out" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("prompt", choices=list(PROMPTS))
        parser.add_argument("--out", type=Path)
        arguments = parser.parse_args()
        arguments.out.write_text(trials.dump(untrained(arguments.prompt)), encoding="utf-8")
    else:
        trials.main("gsm8k", TRIALS, write, keep)
