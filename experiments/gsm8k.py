"""GSM8K with a model of half a billion parameters: accuracy before and after, and whether it checks itself.

    python experiments/gsm8k.py --hours 3        # repeat until all steps are done

The model is the folder ./qwen2.5-coder-0.5b-instruct if it exists, otherwise the hub's model of that name;
the data are the folder ./gsm8k, otherwise the hub's. Training uses the questions whose solution has one to
three steps, which the untrained model sometimes solves; the test uses all. The run has the article's prompt
and answer format (gsm8k.toml). It is evaluated on the test problems before and after training; as a control
the untrained model is evaluated on the same problems with two other prompts. Each record has the verdicts on
every problem. The run's also has the reflection words, with excerpts, of the test completions and of those
sampled first and last. What the word does in each excerpt was labelled by hand: hand-check.json, one label
for the completions of a step to a problem.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
import trials
from trials import Record, Trial

from reinforce_lite.config import load_config, override_config
from reinforce_lite.evaluation.reflection import REFLECTION_LISTS
from reinforce_lite.evaluation.statistics import mcnemar_p_value
from reinforce_lite.runlog.records import hits
from reinforce_lite.runlog.run import Run
from reinforce_lite.runlog.summary import best_step
from reinforce_lite.tasks import gsm8k
from reinforce_lite.tasks.hub import load_tables
from reinforce_lite.tasks.jsonl import read_table

DATA = Path("runs/gsm8k-short")
RECIPE = "experiments/gsm8k.toml"
SAMPLED = 20  # first and last steps whose completions are searched for reflection words
EXCERPTS = 20
ANSWER = "Return the final number in <answer> </answer> tags."
PROMPTS: dict[str, dict[str, Any]] = {
    "no system line, no prefill": {
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
TRIALS = [
    Trial("train-0", (RECIPE, "--model.name", trials.HALF_BILLION, "--task.path", str(DATA))),
    *(Trial(f"prompt-{number}", (name,), "gsm8k.py") for number, name in enumerate(PROMPTS, 1)),
]


def prepare() -> None:
    """Write the folder DATA: the training problems with short solutions, and every test problem."""
    DATA.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        file = Path("gsm8k") / f"{split}.jsonl"
        table = read_table(file) if file.parent.is_dir() else load_tables(gsm8k.HUB_NAME)[split]
        rows = [row for _, row in table.rows if split == "test" or 1 <= steps_of(row["answer"]) <= 3]
        (DATA / file.name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def steps_of(solution: str) -> int:
    """GSM8K marks each calculation of a solution, as in "he gets 12 * 4 = <<12*4=48>>48 dollars".

    >>> steps_of("48 / 2 = <<48/2=24>>24. Together 48 + 24 = <<48+24=72>>72. #### 72")
    2
    """
    return solution.count("<<")


def untrained(name: str) -> Record:
    """The verdicts on the untrained model with one of the prompts."""
    overrides = {"model.name": trials.HALF_BILLION, "task.path": str(DATA), **PROMPTS[name]}
    return {"prompt": name} | trials.evaluate_model(load_config(RECIPE, overrides), step=0)


def make_record(run: Run) -> Record:
    """The record of a run, with the verdicts of its best step, and reflection words before and after."""
    test = [line for line in run.read("eval_rollouts") if line["split"] == "test"]
    sampled = list(run.read("rollouts"))
    last = run.summary["steps"]
    reflection = {
        "test, untrained": words([line for line in test if line["step"] == 0]),
        "test, trained": words([line for line in test if line["step"] == last]),
        f"first {SAMPLED} steps": words([line for line in sampled if line["step"] <= SAMPLED]),
        f"last {SAMPLED} steps": words([line for line in sampled if line["step"] > last - SAMPLED]),
    }
    record = trials.record_run(run) | {"reflection": reflection}
    if (best := run.path / "best").is_dir():
        record["best"] = trials.evaluate_model(
            override_config(run.config, {"model.name": str(best)}), best_step(run.evals)
        )
    return record


def words(lines: Sequence[Record]) -> Record:
    """Which completions have a word of each list ("0110"), which are correct, their lengths, and excerpts.

    Excerpts of lists A and B come before those of C.
    """
    rare = [line for line in lines if {"a", "b"} & hits(line).keys()]
    rest = [line for line in lines if hits(line) and line not in rare]
    keys = ("step", "problem_id", "gold", "answer", "strict", "reflection", "completion")
    return {
        "hits": {name: _bits(name in hits(line) for line in lines) for name in REFLECTION_LISTS},
        "right": _bits(line["strict"] for line in lines),
        "tokens": [line["tokens"] for line in lines],
        "excerpts": [{key: line[key] for key in keys} for line in [*rare, *rest][:EXCERPTS]],
    }


def write(records: Mapping[str, Record]) -> None:
    """The table of accuracies needs the run; prompts without a record are omitted."""
    if not (run := records.get("train-0")):
        return
    controls = {"article": run, **{k["prompt"]: k for k in records.values() if "prompt" in k}}
    before = {name: trials.correct(k, 0) for name, k in controls.items()}
    after = {name: trials.correct(k, -1) for name, k in trained(run).items()}
    rows = [[f"untrained, {name}", trials.accuracy_cell(verdicts)] for name, verdicts in before.items()]
    rows += [[name, trials.accuracy_cell(verdicts)] for name, verdicts in after.items()]
    best = max(before, key=lambda name: sum(before[name]))
    against = [f"- {name}: p = {mcnemar_p_value(before[best], k):.1g}\n" for name, k in after.items()]
    first, *later = after
    for name in later:
        p = mcnemar_p_value(after[first], after[name])
        against.append(f"- {name}, against {first}: p = {p:.1g}\n")
    aha = ["list", "answers", "with a word", "right with", "without", "tokens with", "without"]
    trials.write_page(
        "gsm8k",
        trials.table([f"{len(run['verdicts']['ids'])} test problems, prompt", "strict"], rows),
        f"Paired, against the untrained model with its best prompt, {best}:\n\n{''.join(against)}",
        trials.table(aha, _aha(run)),
        trials.table(
            ["what the word does, read by hand", "answers", "with an answer that counts", "right"], _read(run)
        ),
    )
    _plot(run)


def trained(run: Record) -> dict[str, Record]:
    """The best step on validation, if it is not the last, and the last."""
    by_label = {f"after {run['steps']} steps": run}
    if best := run.get("best"):
        step = next(key for key in best["verdicts"] if key != "ids")
        by_label = {f"after {step} steps, the best on validation": best} | by_label
    return by_label


def _aha(run: Record) -> list[list[str]]:
    rows = []
    for name in REFLECTION_LISTS:
        for label, words in run["reflection"].items():
            hits, correct = ([bit == "1" for bit in bits] for bits in (words["hits"][name], words["right"]))
            indices = {wanted: [i for i, hit in enumerate(hits) if hit is wanted] for wanted in (True, False)}
            accuracy = [_mean([correct[i] for i in part], "{:.1%}") for part in indices.values()]
            length = [_mean([words["tokens"][i] for i in part], "{:.0f}") for part in indices.values()]
            rows.append([name.upper(), label, f"{sum(hits)} of {len(hits)}", *accuracy, *length])
    return rows


def _read(run: Record) -> list[list[str]]:
    """The excerpts by label; those of a new run have none yet."""
    file = trials.RESULTS / "gsm8k" / "hand-check.json"
    labels = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    by_label = defaultdict(list)
    for part in run["reflection"].values():
        for line in part["excerpts"]:
            by_label[labels.get(f"{line['step']} {line['problem_id']}", "not read")].append(line)
    rows = []
    for name, lines in sorted(by_label.items(), key=lambda item: -len(item[1])):
        ended = sum(line["answer"] is not None for line in lines)
        rows.append([name, str(len(lines)), str(ended), str(sum(line["strict"] for line in lines))])
    return rows


def _mean(values: Sequence[float], form: str) -> str:
    return form.format(fmean(values)) if values else "–"


def _bits(values: Iterable[bool]) -> str:
    return "".join(str(int(value)) for value in values)


def _plot(run: Record) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6))
    curves = {name: trials.smooth(values) for name, values in run["curves"].items() if None not in values}
    steps = range(1, run["steps"] + 1)
    axes[0].plot(steps, curves["accuracy/strict"], label="sampled completions")
    checked = [line for line in run["evals"] if line["split"] == "validation"]
    axes[0].plot(
        [line["step"] for line in checked], [line["strict"] for line in checked], "ko", label="validation"
    )
    axes[0].set_title("strict accuracy", fontsize=9)
    axes[0].legend()
    axes[1].plot(steps, curves["completions/mean_length"])
    axes[1].set_title("tokens per completion", fontsize=9)
    for name in "abc":
        axes[2].plot(steps, curves[f"reflection/list_{name}"], label=f"list {name.upper()}")
    axes[2].set_title("share of completions with a reflection word", fontsize=9)
    axes[2].legend()
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_xlabel("step")
    trials.save_figure("gsm8k", figure)


if __name__ == "__main__":
    trials.main("gsm8k", TRIALS, write, make_record, prepare, untrained)
