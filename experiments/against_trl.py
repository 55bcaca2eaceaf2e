"""Ours and TRL's GRPOTrainer on the quickstart for a quarter of an hour each.

    pip install -e ".[experiments,bench]" && python experiments/against_trl.py

The same model, problems, prompts, reward, group size, sampling, rate and warm-up; TRL with bfloat16
autocast and without activation checkpointing, once on bfloat16 weights (its fastest) and once on float32
ones, which keep small updates. The quarter of an hour is the training alone for TRL; ours loads, evaluates
and saves within it. Afterwards the same code evaluates both on the same test problems.
"""

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import trials
from trials import Kept, Trial

from reinforce_lite import config, road

HOURS = 0.25
TRIALS = [
    Trial("ours-0", ("quickstart", "--train.hours", str(HOURS), "--train.steps", "10000")),
    Trial("trl-bfloat16-0", ("bfloat16",), "against_trl.py"),
    Trial("trl-float32-0", ("float32",), "against_trl.py"),
]
LABELS = {
    "ours-0": "Reinforce-Lite",
    "trl-bfloat16-0": "TRL, bfloat16 weights",
    "trl-float32-0": "TRL, float32 weights",
}


def train(dtype: str, hours: float, steps: int = 10_000) -> Kept:
    """TRL's trainer until the first step that ends after `hours`; its model is evaluated as ours is."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    logging.disable(logging.WARNING)
    recipe = config.load("quickstart")
    stations = road.build(recipe)
    problems = stations.problems("train", 1000)
    texts = [stations.policy.tokenizer.decode(stations.prompter(p.question).token_ids) for p in problems]
    by_text, scorer = dict(zip(texts, problems, strict=True)), stations.scorer
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
        stations.policy.model.save_pretrained(path)
        stations.policy.tokenizer.save_pretrained(path)
        settings = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=True,
            gradient_checkpointing=False,
            model_init_kwargs={"dtype": dtype},
            per_device_train_batch_size=16,
            gradient_accumulation_steps=4,
            num_generations=recipe.rollout.samples_per_prompt,
            max_completion_length=recipe.rollout.max_new_tokens,
            temperature=recipe.rollout.temperature,
            top_p=recipe.rollout.top_p,
            learning_rate=recipe.update.learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=recipe.update.warmup_steps,
            max_steps=steps,
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
        lines = trials.tested(config.override(recipe, {"model.name": path}), len(seconds))
    curves = {"seconds": seconds, "reward": rewards}
    return {"steps": len(seconds), "curves": curves, "verdicts": trials.verdicts(lines)}


def write(kept: Mapping[str, Kept]) -> None:
    rows = []
    for name, each in kept.items():
        strict, lenient = (trials.share(trials.right(each, -1, kind)) for kind in ("strict", "lenient"))
        rows.append([LABELS[name], str(each["steps"]), strict, lenient])
    header = ["a quarter of an hour", "steps", "strict", "lenient"]
    trials.write("against_trl", trials.table(header, rows))


if __name__ == "__main__":
    if "--out" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("dtype")
        parser.add_argument("--out", type=Path)
        arguments = parser.parse_args()
        found = {"trial": arguments.out.stem} | train(arguments.dtype, HOURS)
        arguments.out.write_text(trials.dump(found), encoding="utf-8")
    else:
        trials.main("against_trl", TRIALS, write)
