"""The program and TRL's GRPOTrainer on the quickstart for a quarter of an hour each.

    pip install -e ".[experiments,bench]" && python experiments/against_trl.py

Both have the same model, prompts, reward, group size, sampling, learning rate, three warm-up steps (TRL's
first has learning rate 0) and training problems. TRL has bfloat16 weights and autocast and no activation
checkpointing, its fastest setting (benchmarks/step.py). For TRL the quarter of an hour is training alone; the
program also loads, evaluates and saves within it. Afterwards the same code evaluates both on the same test
problems.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import trials
from trials import Record, Trial

from reinforce_lite.config import load_config, override_config
from reinforce_lite.evaluation.statistics import mcnemar_p_value
from reinforce_lite.pipeline import build_pipeline
from reinforce_lite.types import Problem

HOURS = 0.25
TRIALS = [
    Trial("ours-0", ("quickstart", "--train.hours", str(HOURS), "--train.steps", "10000")),
    Trial("trl-bfloat16-0", (), "against_trl.py"),
]


def train(hours: float) -> Record:
    """TRL's trainer until the first step that ends after `hours`; its model is evaluated as ours is."""
    from transformers import TrainerCallback

    sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
    from trl_setup import make_inputs, make_trainer

    recipe = load_config("quickstart")
    pipeline = build_pipeline(recipe)
    scorer = pipeline.scorer
    seconds: list[float] = []
    rewards: list[float] = []

    def reward(problems: Sequence[Problem], completions: Sequence[str], _: Any) -> list[float]:
        values = [scorer(p, c)[0].value for p, c in zip(problems, completions, strict=True)]
        rewards.append(sum(values) / len(values))
        return values

    class StopAfter(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, _: Any, __: Any, control: Any, **___: Any) -> None:
            seconds.append(round(time.perf_counter() - self.start, 1))
            control.should_training_stop = seconds[-1] >= 3600 * hours

    with tempfile.TemporaryDirectory() as folder:
        inputs = make_inputs(pipeline, pipeline.problems("train", 1000), folder)
        trainer = make_trainer(
            inputs,
            reward,
            StopAfter(),
            folder,
            bfloat16=True,
            use_cpu=True,
            num_generations=recipe.rollout.group_size,
            max_completion_length=recipe.rollout.max_new_tokens,
            temperature=recipe.rollout.temperature,
            top_p=recipe.rollout.top_p,
            learning_rate=recipe.update.learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=recipe.update.warmup_steps,
            max_steps=10_000,
        )
        trainer.train()
        trainer.save_model(inputs.model)
        record = trials.evaluate_model(override_config(recipe, {"model.name": inputs.model}), len(seconds))
    versions = record["versions"] | {"trl": version("trl")}
    curves = {"seconds": seconds, "reward": rewards}
    return record | {"versions": versions, "steps": len(seconds), "curves": curves}


def write(records: Mapping[str, Record]) -> None:
    """Both against the untrained model, which the program evaluates before it trains."""
    if records.keys() != {t.name for t in TRIALS}:
        return
    ours, trl = (records[t.name] for t in TRIALS)
    before = trials.correct(ours, 0)
    rows = [["untrained", "0", trials.accuracy_cell(before), ""]]
    for name, record in (("Reinforce-Lite", ours), ("TRL", trl)):
        after = trials.correct(record, -1)
        p = f"{mcnemar_p_value(before, after):.1g}"
        rows.append([name, str(record["steps"]), trials.accuracy_cell(after), p])
    header = ["a quarter of an hour", "steps", "strict", "p against untrained"]
    trials.write_page("against_trl", trials.table(header, rows))
    _plot(
        {
            "Reinforce-Lite": (trials.cumulative_minutes(ours["curves"]["step_time"]), ours),
            "TRL": ([seconds / 60 for seconds in trl["curves"]["seconds"]], trl),
        }
    )


def _plot(lines: Mapping[str, tuple[Sequence[float], Record]]) -> None:
    """The reward of the sampled completions over the minutes of training."""
    figure, axis = plt.subplots(figsize=(7, 3))
    for name, (minutes, record) in lines.items():
        axis.plot(minutes, trials.smooth(record["curves"]["reward"]), ".-", label=name)
    axis.set_xlabel("minutes in training steps")
    axis.set_ylabel("reward, mean of 5 steps")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    trials.save_figure("against_trl", figure)


if __name__ == "__main__":
    if "--out" in sys.argv:  # the trial with TRL
        parser = argparse.ArgumentParser()
        parser.add_argument("--out", type=Path, required=True)
        out = parser.parse_args().out
        out.write_text(trials.dump_json({"trial": out.stem} | train(HOURS)), encoding="utf-8")
    else:
        trials.main("against_trl", TRIALS, write)
