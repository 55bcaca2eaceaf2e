"""Trivial rewards per second through the worker process of a user's file, and what a replacement costs.

    python benchmarks/rewards.py

Responses of 400 characters. `here` is the same reward given as an object, without a process of its own.
"""

import argparse
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common import Figures, run

from reinforce_lite.config import TaskConfig
from reinforce_lite.rollout.scoring import Scorer
from reinforce_lite.tasks import load_task
from reinforce_lite.types import Problem

RESPONSE = "word " * 80
REWARDS = 20_000
REPLACEMENTS = 20
FILE = """
import os
from reinforce_lite import Problem

def problems(split):
    return [Problem(f"{split}-{i}", f"{split} {i}?", str(i)) for i in range(64)]

def reward(problem, completion):
    if completion == "end":
        os._exit(1)
    return float(problem.gold in completion)
"""
BATCHED = (
    FILE.partition("def reward")[0] + "def reward(completions, **_):\n    return [1.0] * len(completions)\n"
)


def figures(task: Any, responses: list[str]) -> Figures:
    """Rewards per second."""
    problems, scorer = task.problems("train"), Scorer(task)
    scorer.score([(problem, RESPONSE) for problem in problems])
    start = time.perf_counter()
    scorer.score([(problems[i % len(problems)], response) for i, response in enumerate(responses)])
    return {"rewards_per_second": len(responses) / (time.perf_counter() - start)}


def in_workers(text: str, workers: int, responses: list[str]) -> Figures:
    """The same for a file with this text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task.py"
        path.write_text(text)
        start = time.perf_counter()
        task = load_task(TaskConfig(name=str(path), reward_workers=workers))
        return {"start_seconds": time.perf_counter() - start} | figures(task, responses)


def here(_: argparse.Namespace) -> Figures:
    """In this process."""
    problems = [Problem(str(i), f"{i}?", str(i)) for i in range(64)]
    task = SimpleNamespace(
        problems=lambda _: problems, reward=lambda p, completion: float(p.gold in completion)
    )
    return figures(task, [RESPONSE] * REWARDS)


def replaced(_: argparse.Namespace) -> Figures:
    """Seconds for a completion that ends the worker; the others between them are trivial."""
    responses = [RESPONSE, RESPONSE, RESPONSE, RESPONSE, RESPONSE, "end"] * REPLACEMENTS
    rate = in_workers(FILE, 1, responses)["rewards_per_second"]
    return {"seconds_per_replacement": len(responses) / rate / REPLACEMENTS}


if __name__ == "__main__":
    run(
        "rewards",
        {
            "here": here,
            "one": lambda _: in_workers(FILE, 1, [RESPONSE] * REWARDS),
            "two": lambda _: in_workers(FILE, 2, [RESPONSE] * REWARDS),
            "batched": lambda _: in_workers(BATCHED, 1, [RESPONSE] * REWARDS),
            "replaced": replaced,
        },
        lambda results: [],
    )
