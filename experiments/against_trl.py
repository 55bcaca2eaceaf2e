"""Ours and TRL's GRPOTrainer on the quickstart for a quarter of an hour each.

    pip install -e ".[experiments,bench]" && python experiments/against_trl.py

The same model, problems, prompts, reward, group size, sampling, rate and warm-up; TRL with bfloat16
weights and autocast and without activation checkpointing, its fastest (benchmarks/step.py). The quarter of
an hour is the training alone for TRL; ours loads, evaluates and saves within it. Afterwards the same code
evaluates both on the same test problems.
"""

import logging
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import trials
from trials import Kept, Trial

from reinforce_lite import config, evaluation, road

HOURS = 0.25
TRIALS = [
    Trial("ours-0", ("quickstart", "--train.hours", str(HOURS), "--train.steps", "10000")),
    Trial("trl-bfloat16-0", (), "against_trl.py"),
]


def train(hours: float, steps: int = 10_000) -> Kept:
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
            model_init_kwargs={"dtype": "bfloat16"},
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
    """Both beside the untrained model, which ours evaluates first."""
    if kept.keys() != {t.name for t in TRIALS}:
        return
    ours, trl = (kept[t.name] for t in TRIALS)
    models = [("untrained", ours, 0), ("Reinforce-Lite", ours, -1), ("TRL", trl, -1)]
    rows = []
    for name, each, step in models:
        found = {kind: trials.right(each, step, kind) for kind in ("strict", "lenient")}
        p = [f"{evaluation.paired_p(trials.right(ours, 0, k), after):.1g}" for k, after in found.items()]
        steps = str(each["steps"] if step else 0)
        rows.append([name, steps, *map(trials.share, found.values()), ", ".join(p) if step else ""])
    header = ["a quarter of an hour", "steps", "strict", "lenient", "p against untrained: strict, lenient"]
    trials.write("against_trl", trials.table(header, rows))
    _plot(
        {
            "Reinforce-Lite": (list(accumulate(ours["curves"]["step_time"])), ours),
            "TRL": (trl["curves"]["seconds"], trl),
        }
    )


def _plot(lines: Mapping[str, tuple[Sequence[float], Kept]]) -> None:
    """The reward of the sampled answers against the seconds of training."""
    figure, axis = plt.subplots(figsize=(7, 3))
    for name, (seconds, kept) in lines.items():
        axis.plot([s / 60 for s in seconds], trials.smooth(kept["curves"]["reward"]), ".-", label=name)
    axis.set_xlabel("minutes in training steps")
    axis.set_ylabel("reward, mean of 5 steps")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    trials.save("against_trl", figure)


if __name__ == "__main__":
    if "--out" in sys.argv:  # as a trial: TRL's
        out = Path(sys.argv[sys.argv.index("--out") + 1])
        out.write_text(trials.dump({"trial": out.stem} | train(HOURS)), encoding="utf-8")
    else:
        trials.main("against_trl", TRIALS, write)
