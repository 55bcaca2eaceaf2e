"""Ours and TRL's GRPOTrainer on the quickstart for a quarter of an hour each.

    pip install -e ".[experiments,bench]" && python experiments/against_trl.py

The same model, prompts, reward, group size, sampling and rate, three steps of warm-up (TRL's begins at a
rate of 0), and problems of the same set. TRL has bfloat16 weights and autocast and no activation
checkpointing, which is its fastest (benchmarks/step.py). The quarter of an hour is the training alone for
TRL; ours loads, evaluates and saves within it. Afterwards the same code evaluates both on the same test
problems.
"""

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import trials
from trials import KINDS, Kept, Trial

from reinforce_lite.config import load_config, override_config
from reinforce_lite.evaluation.statistics import mcnemar_p_value
from reinforce_lite.pipeline import build_pipeline

HOURS = 0.25
TRIALS = [
    Trial("ours-0", ("quickstart", "--train.hours", str(HOURS), "--train.steps", "10000")),
    Trial("trl-bfloat16-0", (), "against_trl.py"),
]


def train(hours: float) -> Kept:
    """TRL's trainer until the first step that ends after `hours`; its model is evaluated as ours is."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    logging.disable(logging.WARNING)
    recipe = load_config("quickstart")
    pipeline = build_pipeline(recipe)
    problems = pipeline.problems("train", 1000)
    texts = [pipeline.policy.tokenizer.decode(pipeline.prompter(p.question).token_ids) for p in problems]
    by_text, scorer = dict(zip(texts, problems, strict=True)), pipeline.scorer
    seconds: list[float] = []
    rewards: list[float] = []

    def reward(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
        found = [scorer(by_text[p], c)[0].value for p, c in zip(prompts, completions, strict=True)]
        rewards.append(sum(found) / len(found))
        return found

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, _: Any, __: Any, control: Any, **___: Any) -> None:
            seconds.append(round(time.perf_counter() - self.start, 1))
            control.should_training_stop = seconds[-1] >= 3600 * hours

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model")
        pipeline.policy.model.save_pretrained(path)
        pipeline.policy.tokenizer.save_pretrained(path)
        settings = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=True,
            gradient_checkpointing=False,
            model_init_kwargs={"dtype": "bfloat16"},
            per_device_train_batch_size=16,
            gradient_accumulation_steps=4,
            num_generations=recipe.rollout.group_size,
            max_completion_length=recipe.rollout.max_new_tokens,
            temperature=recipe.rollout.temperature,
            top_p=recipe.rollout.top_p,
            learning_rate=recipe.update.learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=recipe.update.warmup_steps,
            max_steps=10_000,
            shuffle_dataset=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            path,
            reward_funcs=reward,
            args=settings,
            train_dataset=Dataset.from_dict({"prompt": texts}),
            callbacks=[Watch()],
        )
        trainer.train()
        trainer.save_model(path)
        found = trials.tested(override_config(recipe, {"model.name": path}), len(seconds))
    versions = found["versions"] | {"trl": version("trl")}
    curves = {"seconds": seconds, "reward": rewards}
    return found | {"versions": versions, "steps": len(seconds), "curves": curves}


def write(kept: Mapping[str, Kept]) -> None:
    """Both beside the untrained model, which ours evaluates first."""
    if kept.keys() != {t.name for t in TRIALS}:
        return
    ours, trl = (kept[t.name] for t in TRIALS)
    before = {kind: trials.right(ours, 0, kind) for kind in KINDS}
    rows = [["untrained", "0", *map(trials.share, before.values()), ""]]
    for name, each in (("Reinforce-Lite", ours), ("TRL", trl)):
        after = {kind: trials.right(each, -1, kind) for kind in KINDS}
        p = ", ".join(f"{mcnemar_p_value(before[k], after[k]):.1g}" for k in KINDS)
        rows.append([name, str(each["steps"]), *map(trials.share, after.values()), p])
    header = ["a quarter of an hour", "steps", "strict", "lenient", "p against untrained: strict, lenient"]
    trials.write("against_trl", trials.table(header, rows))
    _plot(
        {
            "Reinforce-Lite": (trials.minutes(ours["curves"]["step_time"]), ours),
            "TRL": ([seconds / 60 for seconds in trl["curves"]["seconds"]], trl),
        }
    )


def _plot(lines: Mapping[str, tuple[Sequence[float], Kept]]) -> None:
    """The reward of the sampled answers against the minutes of training."""
    figure, axis = plt.subplots(figsize=(7, 3))
    for name, (minutes, kept) in lines.items():
        axis.plot(minutes, trials.smooth(kept["curves"]["reward"]), ".-", label=name)
    axis.set_xlabel("minutes in training steps")
    axis.set_ylabel("reward, mean of 5 steps")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    trials.save("against_trl", figure)


if __name__ == "__main__":
    if "--out" in sys.argv:  # as a trial: TRL's
        parser = argparse.ArgumentParser()
        parser.add_argument("--out", type=Path, required=True)
        out = parser.parse_args().out
        out.write_text(trials.dump({"trial": out.stem} | train(HOURS)), encoding="utf-8")
    else:
        trials.main("against_trl", TRIALS, write)
