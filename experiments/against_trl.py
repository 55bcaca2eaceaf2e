"""The program and TRL's GRPOTrainer on the quickstart for half an hour each, with all weights and an adapter.

    pip install -e ".[experiments,bench]" && python experiments/against_trl.py --parallel 2

Two trials at a time share the machine, and each has half of its cores. Both programs have the same model,
prompts, reward, group size, sampling and learning rate, no warm-up, and the same training problems in an
order of their own. An adapter has rank 8 in both. Otherwise TRL has its defaults, but no activation
checkpointing, which is faster, and one of these settings:

- autocast: float32 weights with bfloat16 products, usual for training
- bfloat16: bfloat16 weights too, which takes less memory
- float32: its defaults, with activation checkpointing
- rank8: an adapter over bfloat16 weights

For TRL the half hour is training alone; the program also loads, evaluates and saves within it. Afterwards
the same code evaluates both on the same test problems. Short runs of the program tell what it learns in as
many steps.
"""

import argparse
import itertools
import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
import torch
import trials
from trials import Record, Trial

from reinforce_lite.config import Config, load_config, override_config
from reinforce_lite.evaluation.statistics import mcnemar_p_value
from reinforce_lite.pipeline import build_pipeline
from reinforce_lite.types import Problem
from reinforce_lite.utils.environment import describe_machine

HOURS = 0.5
SHORT = 8
"""Steps of the program's short runs: what TRL takes in half an hour on one core of the Xeon."""
SEEDS = range(3)
OURS = {"ours": "quickstart", "ours-rank8": "quickstart-adapter"}
"""The recipes, by setting."""
TRL = {
    "trl-autocast": "quickstart",
    "trl-rank8": "quickstart-adapter",
    "trl-bfloat16": "quickstart",
    "trl-float32": "quickstart",
}
"""The recipe whose values TRL has, by setting."""
TITLES = {
    "ours": "Reinforce-Lite, all weights",
    "trl-autocast": "TRL, float32 weights, bfloat16 autocast",
    "trl-bfloat16": "TRL, bfloat16 weights",
    "trl-float32": "TRL, float32",
    "ours-short": f"Reinforce-Lite, all weights, {SHORT} steps",
    "ours-rank8": "Reinforce-Lite, rank 8",
    "ours-rank8-short": f"Reinforce-Lite, rank 8, {SHORT} steps",
    "trl-rank8": "TRL, rank 8, bfloat16",
}
WINDOW = 4
"""Steps at whose mean reward the programs are compared."""


def _trials(seed: int) -> list[Trial]:
    """Those of a seed, so that two at a time are the two programs with the same weights trained."""
    half_an_hour = ("--train.hours", str(HOURS), "--train.steps", "10000")
    lengths = {"": half_an_hour, "-short": ("--train.steps", str(SHORT))}
    ours = [
        Trial(
            f"{name}{length}-{seed}",
            (OURS[name], "--train.seed", str(seed), "--update.warmup-steps", "0", *options),
        )
        for length, options in lengths.items()
        for name in OURS
    ]
    trl = [Trial(f"{name}-{seed}", (name, "--seed", str(seed)), "against_trl.py") for name in TRL]
    pairs = itertools.zip_longest(ours, trl)
    return [trial for pair in pairs for trial in pair if trial]


TRIALS = [trial for seed in SEEDS for trial in _trials(seed)]


def train(setting: str, seed: int, hours: float) -> Record:
    """TRL's trainer until the first step that ends after `hours`; its model is evaluated as ours is."""
    from transformers import TrainerCallback

    sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
    from trl_setup import make_inputs, make_trainer, save_model

    recipe = override_config(load_config(TRL[setting]), {"update.warmup_steps": 0})
    exact = {"model.dtype": "float32"}  # for weights in every dtype, and after merging an adapter
    pipeline = build_pipeline(override_config(load_config("quickstart"), exact))
    scorer = pipeline.scorer
    autocast = setting != "trl-float32"
    step_times: list[float] = []
    rewards: list[float] = []

    def reward(problems: Sequence[Problem], completions: Sequence[str], _: Any) -> list[float]:
        values = [scorer(p, c)[0].value for p, c in zip(problems, completions, strict=True)]
        rewards.append(fmean(values))
        return values

    class StopAfter(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, _: Any, __: Any, control: Any, **___: Any) -> None:
            spent = time.perf_counter() - self.start
            step_times.append(round(spent - sum(step_times), 2))
            control.should_training_stop = spent >= 3600 * hours

    with tempfile.TemporaryDirectory() as folder:
        inputs = make_inputs(pipeline, pipeline.problems("train", 1000), folder)
        del pipeline  # so that the memory is TRL's
        trainer = make_trainer(
            inputs,
            reward,
            StopAfter(),
            folder,
            weights="float32" if setting in ("trl-autocast", "trl-float32") else "bfloat16",
            autocast=autocast,
            adapter=recipe.adapter,
            shuffle_dataset=True,
            seed=seed,
            use_cpu=True,
            max_steps=10_000,
            **trl_settings(recipe),
        )
        trainer.train()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        save_model(trainer, inputs.model)
        del trainer
        trained = override_config(load_config("quickstart"), exact | {"model.name": inputs.model})
        record = trials.evaluate_model(trained, len(step_times))
    products = torch.bfloat16 if autocast else torch.float32
    return record | {
        "machine": trials.machine_name(describe_machine(torch.device("cpu"), products)),
        "versions": record["versions"] | {"trl": version("trl")},
        "steps": len(step_times),
        "peak_memory_bytes": memory,
        "curves": {"step_time": step_times, "reward": rewards},
    }


def trl_settings(recipe: Config) -> dict[str, Any]:
    """The recipe's values as fields of GRPOConfig."""
    return {
        "num_generations": recipe.rollout.group_size,
        "max_completion_length": recipe.rollout.max_new_tokens,
        "temperature": recipe.rollout.temperature,
        "top_p": recipe.rollout.top_p,
        "learning_rate": recipe.update.learning_rate,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": recipe.update.warmup_steps,
    }


def write(records: Mapping[str, Record]) -> None:
    """A row for each run, against the untrained model, which the program evaluates before it trains."""
    if "ours-0" not in records:
        return
    before = {kind: trials.correct(records["ours-0"], 0, kind) for kind in trials.KINDS}
    by_setting = trials.by_setting(records)
    runs = {name: by_setting[name] for name in TITLES if name in by_setting}
    compared = min(len(run["curves"]["reward"]) for group in runs.values() for run in group)
    rows = []
    for name, group in runs.items():
        for run in group:
            after = {kind: trials.correct(run, -1, kind) for kind in trials.KINDS}
            p = max(mcnemar_p_value(before[kind], after[kind]) for kind in trials.KINDS)
            rows.append(
                [
                    TITLES[name],
                    trials.seed_of(run),
                    str(run["steps"]),
                    f"{fmean(run['curves']['reward'][compared - WINDOW : compared]):.2f}",
                    *(trials.accuracy_cell(after[kind]) for kind in trials.KINDS),
                    f"{p:.1g}",
                    f"{run['peak_memory_bytes'] / 1e9:.1f} GB",
                ]
            )
    untrained = [trials.accuracy_cell(before[kind]) for kind in trials.KINDS]
    rows.insert(0, ["untrained", "", "0", "", *untrained, "", ""])
    header = [
        "half an hour, where no steps are named",
        "seed",
        "steps",
        f"reward in steps {compared - WINDOW + 1} to {compared}",
    ]
    header += ["strict", "lenient", "p against untrained", "memory, at most"]
    trials.write_page("against_trl", trials.table(header, rows), *trials.machine_lines(records.values()))
    _plot({name: group for name, group in runs.items() if not name.endswith("-short")})


def _plot(runs: Mapping[str, Sequence[Record]]) -> None:
    """The reward of the sampled completions, by minutes of training and by steps. A short run's steps are the
    first of the long one.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.5), sharey=True)
    for number, (name, group) in enumerate(runs.items()):
        for run in group:
            minutes = trials.cumulative_minutes(run["curves"]["step_time"])
            reward = trials.smooth(run["curves"]["reward"])
            style = {"color": f"C{number}", "linewidth": 1.2, "linestyle": "--" if name in TRL else "-"}
            label = TITLES[name] if run is group[0] else None
            axes[0].plot(minutes, reward, label=label, **style)
            axes[1].plot(range(1, len(reward) + 1), reward, **style)
    axes[0].set_xlabel("minutes in training steps")
    axes[1].set_xlabel("step")
    axes[0].set_ylabel("reward, mean of 5 steps")
    axes[0].legend(fontsize=7)
    for axis in axes:
        axis.grid(alpha=0.3)
    trials.save_figure("against_trl", figure)


if __name__ == "__main__":
    if "--out" in sys.argv:  # a trial with TRL
        parser = argparse.ArgumentParser()
        parser.add_argument("setting", choices=TRL)
        parser.add_argument("--seed", type=int, required=True)
        parser.add_argument("--out", type=Path, required=True)
        given = parser.parse_args()
        record = {"trial": given.out.stem} | train(given.setting, given.seed, HOURS)
        given.out.write_text(trials.dump_json(record), encoding="utf-8")
    else:
        trials.main("against_trl", TRIALS, write)
