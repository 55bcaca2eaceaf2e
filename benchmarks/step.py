"""Whole training steps: ours, and TRL's GRPOTrainer with its defaults and tuned.

pip install -e ".[bench]" && python benchmarks/step.py

Forced: the quickstart's 8 questions x 8 answers, every answer exactly 64 tokens, rewards drawn by a
seeded coin so that every group has something to teach on either side. Real: the quickstart as it
runs, from the untrained model, where answers end and groups that teach nothing are skipped. Both
programs get the same model, prompts, group size, temperature 0.7 and top-p 0.9. TRL's defaults are
float32 weights and activation checkpointing; tuned is bfloat16 weights and autocast without it. Of
TRL's two steps the faster counts; its defaults take four minutes a step, and as their first was the faster
of two (234 and 245 s), there is one.
"""

import argparse
import logging
import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from common import SAMPLING, Figures, installed, pipeline, prompts, ratio, run, saved

import reinforce_lite as rl
from reinforce_lite.learner import objective
from reinforce_lite.learner.objective import build_objective
from reinforce_lite.learner.updater import Updater
from reinforce_lite.rollout.collect import sample_completions, score_groups

LENGTH = 64
MICRO_BATCH = 16  # answers that TRL trains on at once; 64 do not fit into the memory of most machines


def coins(seed: int, n: int = 8) -> list[float]:
    """Rewards of a group: a fair coin each, but never all alike."""
    source = random.Random(seed)
    found = [float(source.random() < 0.5) for _ in range(n)]
    return found if len(set(found)) > 1 else [1.0 - found[0], *found[1:]]


def ours_forced(arguments: argparse.Namespace) -> Figures:
    """The trainer's own pipeline, with coins in the place of the reward."""
    built = pipeline(arguments, {"rollout.min_new_tokens": LENGTH})
    preset = build_objective("reinforce-lite")
    updater = Updater(built.policy, built.config.update, built.config.rollout.temperature)
    sampling = built.sampling()
    problems = built.problems("train", 8)
    seconds = []
    for step in range(1, 5):
        start = time.perf_counter()
        sampled = sample_completions(problems, built.prompter, built.engine, sampling, step)
        groups = score_groups(problems, sampled, built.scorer)
        groups = [
            replace(
                g,
                rollouts=tuple(
                    replace(r, reward=c) for r, c in zip(g.rollouts, coins(step + i), strict=True)
                ),
            )
            for i, g in enumerate(groups)
        ]
        lengths = [[len(r.completion.token_ids) for r in g.rollouts] for g in groups]
        assert {n for row in lengths for n in row} == {LENGTH}
        advantages = objective.advantages([g.rewards for g in groups], preset)
        gradient = updater.compute_gradient(groups, objective.weights(advantages, lengths, preset, LENGTH))
        assert updater.apply_gradient(gradient, step)
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds[1:]), "all": [round(s, 2) for s in seconds]}


def ours_real(arguments: argparse.Namespace) -> Figures:
    """`reinforce-lite train`, five steps of it."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        few = {"train.steps": 5, "eval.n": 1, "eval.validation_n": 1, "model.dtype": arguments.dtype}
        few |= SAMPLING
        done = rl.train("quickstart", few, run="bench", quiet=True)
        seconds = [line["step_time"] for line in done.steps]
    return {"seconds": statistics.median(seconds[1:]), "all": [round(s, 2) for s in seconds]}


def trl(arguments: argparse.Namespace, forced: bool, tuned: bool, steps: int) -> Figures:
    if not installed("trl"):
        return {"skipped": "trl is not installed: pip install -e '.[bench]'"}
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    logging.disable(logging.WARNING)
    built = pipeline(arguments, ours=False)
    problems = built.problems("train", 8 * steps)
    texts = [built.policy.tokenizer.decode(built.prompter(p.question).token_ids) for p in problems]
    by_text = dict(zip(texts, problems, strict=True))
    again = [tuple(built.policy.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in texts]
    assert again[:8] == [p.token_ids for p in prompts(built)]

    def reward(prompts: Sequence[str], completions: Sequence[str], **more: Any) -> list[float]:
        if forced:
            assert {len(ids) for ids in more["completion_ids"]} == {LENGTH}
            return [c for i in range(len(prompts) // 8) for c in coins(i)]
        return [scorer(by_text[p], c)[0].value for p, c in zip(prompts, completions, strict=True)]

    class Watch(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.perf_counter() - self.start)

    with tempfile.TemporaryDirectory() as folder:
        path, scorer = saved(built, folder), built.scorer
        del built, problems  # so that the peak memory is TRL's
        watch = Watch()
        settings = GRPOConfig(
            output_dir=folder,
            use_cpu=not torch.cuda.is_available(),
            bf16=tuned,
            gradient_checkpointing=not tuned,
            model_init_kwargs={"dtype": "bfloat16" if tuned else "float32"},
            per_device_train_batch_size=MICRO_BATCH,
            gradient_accumulation_steps=64 // MICRO_BATCH,
            num_generations=8,
            max_completion_length=LENGTH,
            temperature=0.7,
            top_p=0.9,
            generation_kwargs={"min_new_tokens": LENGTH} if forced else None,
            learning_rate=2e-5,
            max_steps=steps,
            shuffle_dataset=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        data = Dataset.from_dict({"prompt": texts})
        GRPOTrainer(path, reward_funcs=reward, args=settings, train_dataset=data, callbacks=[watch]).train()
    return {"seconds": min(watch.seconds), "all": [round(s, 1) for s in watch.seconds]}


if __name__ == "__main__":
    run(
        "step",
        {
            "ours_forced": ours_forced,
            "trl_tuned_forced": lambda a: trl(a, forced=True, tuned=True, steps=2),
            "trl_default_forced": lambda a: trl(a, forced=True, tuned=False, steps=1),
            "ours_real": ours_real,
            "trl_tuned_real": lambda a: trl(a, forced=False, tuned=True, steps=2),
        },
        lambda found: [
            ratio(found, "trl_tuned_forced", "ours_forced"),
            ratio(found, "trl_default_forced", "ours_forced"),
            ratio(found, "trl_tuned_real", "ours_real"),
        ],
    )
