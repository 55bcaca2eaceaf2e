"""Whole training steps: the program, and TRL's GRPOTrainer with its defaults and tuned.

pip install -e ".[bench]" && python benchmarks/step.py

Forced: the quickstart's 8 questions x 8 completions, every completion exactly 64 tokens, rewards drawn by a
seeded coin so that every group has signal in both programs. Real: the quickstart as it runs, from the
untrained model, where completions end and no-signal groups are skipped. Both programs get the same model,
prompts, group size, temperature 0.7 and top-p 0.9. TRL's defaults are float32 weights and activation
checkpointing; tuned is bfloat16 weights and autocast without it. The faster of TRL's two steps counts. With
its defaults, which take four minutes a step, it runs one: of two (234 and 245 s) the first was the faster.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from common import SAMPLING as SAMPLING_OVERRIDES
from common import Figures, installed, pipeline, prompts, ratio, run
from trl_setup import make_inputs, make_trainer

import reinforce_lite as rl
from reinforce_lite.learner import objective
from reinforce_lite.learner.presets import build_objective
from reinforce_lite.learner.updater import Updater
from reinforce_lite.rollout.collect import sample_completions, score_groups
from reinforce_lite.types import Problem

QUESTIONS = 8
SAMPLES = 8
LENGTH = 64


def coins(seed: int, n: int = SAMPLES) -> list[float]:
    """Rewards of a group: a fair coin each, but never all equal."""
    source = random.Random(seed)
    rewards = [float(source.random() < 0.5) for _ in range(n)]
    return rewards if len(set(rewards)) > 1 else [1.0 - rewards[0], *rewards[1:]]


def ours_forced(arguments: argparse.Namespace) -> Figures:
    """The trainer's pipeline, with coins in place of the reward."""
    built = pipeline(arguments, {"rollout.min_new_tokens": LENGTH})
    preset = build_objective("reinforce-lite")
    updater = Updater(built.policy, built.config.update, built.config.rollout.temperature, 0)
    sampling = built.sampling()
    problems = built.problems("train", QUESTIONS)
    seconds = []
    for step in range(1, 5):
        start = time.perf_counter()
        sampled = sample_completions(problems, built.prompt_builder, built.engine, sampling, step)
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
        assert {n for group in lengths for n in group} == {LENGTH}
        advantages = objective.compute_advantages([g.rewards for g in groups], preset)
        loss_weights = objective.compute_loss_weights(advantages, lengths, preset, LENGTH)
        gradient = updater.compute_gradient(groups, loss_weights)
        assert updater.apply_gradient(gradient, step)
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds[1:]), "all": [round(s, 2) for s in seconds]}


def ours_real(arguments: argparse.Namespace) -> Figures:
    """Five steps of `reinforce-lite train`."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        overrides = {"train.steps": 5, "eval.n": 1, "eval.validation_n": 1, "model.dtype": arguments.dtype}
        trained = rl.train("quickstart", overrides | SAMPLING_OVERRIDES, run="bench", quiet=True)
        seconds = [line["step_time"] for line in trained.steps]
    return {"seconds": statistics.median(seconds[1:]), "all": [round(s, 2) for s in seconds]}


def step_timer(seconds: list[float]) -> Any:
    """A TrainerCallback that appends the time of each step to `seconds`."""
    from transformers import TrainerCallback

    class StepTimer(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.start)

    return StepTimer()


def trl(arguments: argparse.Namespace, forced: bool, tuned: bool, steps: int) -> Figures:
    """GRPOTrainer, with coin rewards if `forced`; the faster of its steps."""
    if not installed("trl"):
        return {"skipped": "trl is not installed: pip install -e '.[bench]'"}

    def reward(
        problems: Sequence[Problem], completions: Sequence[str], ids: Sequence[Sequence[int]]
    ) -> list[float]:
        if forced:
            assert {len(i) for i in ids} == {LENGTH}
            return [c for i in range(len(problems) // SAMPLES) for c in coins(i)]
        return [scorer(p, c)[0].value for p, c in zip(problems, completions, strict=True)]

    with tempfile.TemporaryDirectory() as folder:
        built = pipeline(arguments, ours=False)
        inputs, scorer = make_inputs(built, built.problems("train", QUESTIONS * steps), folder), built.scorer
        encoded = [
            tuple(built.policy.tokenizer(text, add_special_tokens=False)["input_ids"])
            for text in inputs.prompts[:QUESTIONS]
        ]
        assert encoded == [p.token_ids for p in prompts(built)]
        del built  # so that the peak memory is TRL's
        seconds: list[float] = []
        make_trainer(
            inputs,
            reward,
            step_timer(seconds),
            folder,
            weights="bfloat16" if tuned else "float32",
            autocast=tuned,
            shuffle_dataset=False,
            use_cpu=not torch.cuda.is_available(),
            num_generations=SAMPLES,
            max_completion_length=LENGTH,
            temperature=0.7,
            top_p=0.9,
            generation_kwargs={"min_new_tokens": LENGTH} if forced else None,
            learning_rate=2e-5,
            max_steps=steps,
        ).train()
    return {"seconds": min(seconds), "all": [round(s, 1) for s in seconds]}


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
        lambda results: [
            ratio(results, "trl_tuned_forced", "ours_forced"),
            ratio(results, "trl_default_forced", "ours_forced"),
            ratio(results, "trl_tuned_real", "ours_real"),
        ],
    )
