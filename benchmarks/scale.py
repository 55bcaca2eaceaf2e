"""How long a step takes with N processes: simulated, and the simulation checked against 1, 2 and 3 processes.

pip install -e ".[bench]" && python benchmarks/scale.py        # run it on a free machine
python benchmarks/scale.py --only simulated                    # seconds, and nothing is measured

A step is simulated from the lengths of its completions. Questions are dealt out, and completions with a
gradient divided, by the program's own functions. A round of sampling ends with its slowest process; with
refill there are several rounds. A process samples for `decode` seconds for each decoding step, of which it
needs as many as its longest completion has tokens, and for `token` seconds for each token. It updates for
`update` seconds for each token of its part. Then the gradient is summed (a ring: 2 (N - 1) / N times its
bytes through each link, Patarasuk and Yuan 2009), and `fixed` seconds pass in each process.

Not in it: rewards, evaluations, checkpoints, the first step (which compiles), prompts (a part of `token` and
`update`), and that a card samples fewer sequences at a lower rate than `decode` and `token` say.

The check trains a small random model. The costs are fitted to one process, and predict what the
slowest of two and three takes for sampling and update, in processor time, so that other programs and too few
cores do not count. What it can't check on a CPU is the network.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import Figures, run

import reinforce_lite as rl
from reinforce_lite.engines.native import NativeEngine
from reinforce_lite.learner.updater import Updater
from reinforce_lite.models.shares import equal_parts, split_by_key
from reinforce_lite.types import Problem

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from helpers import processes
from helpers.tiny import make_model, make_tokenizer

STEPS = 8
Lengths = list[list[int]]
"""Tokens of each completion of each question."""


@dataclass(frozen=True)
class Costs:
    """Of one process; seconds."""

    decode: float
    token: float
    update: float
    fixed: float
    gradient_bytes: float = 0.0
    bandwidth: float = 1.0
    """Bytes a second of the slowest link between two processes."""


CARD = Costs(4e-3, 12e-6, 1 / 24_000, 0.05, 4 * 3.09e9, 300e9)
"""A 3B model on an H100. Measured: 5.9 ms for a decoding step of 160 sequences, by an older version (now 4.7,
docs/performance.md), and 24,000 tokens a second in the update. Assumed: that 4 ms of a decoding step do not
depend on the sequences, the rest, and 300 GB/s between cards of a machine."""
OTHER_MACHINE = 40e9
"""Assumed bytes a second between machines; eight cards are in one."""


def sampling_seconds(costs: Costs, lengths: Lengths, n: int) -> list[float]:
    """What each of n processes takes to sample its share of a round's questions."""
    shares = [[lengths[i] for i in share] for share in split_by_key(range(len(lengths)), n)]
    counts = [[tokens for group in share for tokens in group] for share in shares]
    return [costs.decode * max(c, default=0) + costs.token * sum(c) for c in counts]


def update_seconds(costs: Costs, trained: Sequence[int], n: int) -> list[float]:
    """What each of n processes takes for the gradient of its part of the completions."""
    return [costs.update * sum(trained[part]) for part in equal_parts(trained, n)]


def sum_seconds(costs: Costs, n: int) -> float:
    """To sum the gradient."""
    return 2 * (n - 1) / n * costs.gradient_bytes / costs.bandwidth


def step_seconds(costs: Costs, rounds: Sequence[Lengths], trained: Sequence[int], n: int) -> float:
    """A whole step."""
    sampling = sum(max(sampling_seconds(costs, lengths, n)) for lengths in rounds)
    return sampling + max(update_seconds(costs, trained, n)) + sum_seconds(costs, n) + costs.fixed


def draw_step(source: random.Random, questions: int, refill: int) -> tuple[list[Lengths], list[int]]:
    """The rounds of a step with groups of ten, and the completions with a gradient.

    Lengths are log-normal with a median of 200 tokens and end at 512. Half of the groups have a signal. A
    further round asks as many questions as groups are missing (rollout.refill).
    """
    rounds: list[Lengths] = []
    trained: list[Lengths] = [[]]
    while len(trained[0]) < questions and sum(map(len, rounds)) < refill * questions:
        wanted = min(questions - len(trained[0]), refill * questions - sum(map(len, rounds)))
        rounds.append(
            [[min(512, round(source.lognormvariate(5.3, 0.5))) for _ in range(10)] for _ in range(wanted)]
        )
        trained[0] += [group for group in rounds[-1] if source.random() < 0.5]
    return rounds, [tokens for group in trained[0] for tokens in group]


def simulated(arguments: argparse.Namespace) -> Figures:
    """Seconds of a step by questions per step, refill and cards; the mean of 20 steps."""
    figures: Figures = {}
    for questions, refill in ((16, 1), (64, 1), (256, 1), (64, 3)):
        source = random.Random(0)
        steps = [draw_step(source, questions, refill) for _ in range(20)]
        for n in (1, 2, 4, 8, 16, 32, 64):
            costs = CARD if n <= 8 else replace(CARD, bandwidth=OTHER_MACHINE)
            seconds = statistics.mean(step_seconds(costs, *step, n) for step in steps)
            figures[f"{questions} questions, refill {refill}, {n} cards"] = round(seconds, 2)
    return figures


class Letters:
    """Questions whose reward depends on the length of the response; every third has no signal."""

    def problems(self, split: str) -> Sequence[Problem]:
        """96 short questions."""
        return [Problem(f"{split}-{i}", f"{i} + {len(split)}?", str(i)) for i in range(96)]

    def reward(self, problem: Problem, response: str) -> float:
        """A number in [0, 1)."""
        return len(response) % 7 / 7 if int(problem.gold) % 3 else 0.0


def work(folder: Path) -> dict[str, Any]:
    """One of the processes: trains, and returns what each of its steps took and had."""
    samples: list[float] = []
    updates: list[float] = []
    steps: list[tuple[Lengths, list[int]]] = []

    def timed(job: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            start = time.thread_time()
            result = job(*args)
            seconds.append(time.thread_time() - start)
            return result

        return call

    generate, compute = NativeEngine.generate, Updater.compute_gradient
    in_training = timed(generate, samples)

    def counted(updater: Updater, groups: Any, weights: torch.Tensor) -> Any:
        weighted = zip(groups, weights.tolist(), strict=True)
        trained = [n for g, row in weighted for n, weight in zip(g.lengths, row, strict=True) if weight]
        steps.append(([list(g.lengths) for g in groups], trained))
        return compute(updater, groups, weights)

    setattr(  # noqa: B010 -- as the two below, in a process of its own
        NativeEngine, "generate", lambda *args: (in_training if args[2].samples > 1 else generate)(*args)
    )
    setattr(Updater, "compute_gradient", counted)  # noqa: B010
    setattr(Updater, "_scaled_gradient", timed(getattr(Updater, "_scaled_gradient"), updates))  # noqa: B009, B010
    overrides = {
        "model.name": str(folder / "model"),
        "model.device": "cpu",
        "model.dtype": "float32",
        "prompt.examples": (),
        "rollout.prompts_per_step": 6,
        "rollout.max_new_tokens": 96,
        "rollout.stop": ("q", "z", "e"),  # so that lengths differ
        "train.steps": STEPS,
        "train.save_every": 100,
        "eval.n": 1,
        "eval.validation_n": 1,
        "eval.every": 100,
    }
    out = rl.train("quickstart", overrides, task=Letters(), run=f"of-{os.environ['WORLD_SIZE']}", quiet=True)
    return {
        # Without those of the self-check and, where memory is scarce, the dry run.
        "samples": samples[-STEPS:],
        "updates": updates[-STEPS:],
        "steps": steps[-STEPS:],
        "step_time": [line["step_time"] for line in out.steps],
    }


def measured(arguments: argparse.Namespace) -> Figures:
    """Processor seconds of the slowest process, summed over the steps but the first two; and as predicted."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(hidden_size=128, intermediate_size=384, num_hidden_layers=4, head_dim=32).save_pretrained(
            folder / "model"
        )
        make_tokenizer().save_pretrained(folder / "model")
        os.chdir(folder)  # the runs go there
        ranks = {n: processes.run(n, work, folder) for n in (1, 2, 3)}
    return compare(ranks)


def compare(ranks: Mapping[int, list[dict[str, Any]]]) -> Figures:
    """The figures of `measured`, from what each of N processes recorded, by N. Costs are those of one.

    With another N gradients are rounded otherwise, so a token may differ and then all that follows: each N is
    simulated with the completions of its own steps.
    """
    (one,) = ranks[1]
    steps = one["steps"][2:]
    longest = [float(max(map(max, lengths))) for lengths, _ in steps]
    tokens = [float(sum(map(sum, lengths))) for lengths, _ in steps]
    update = sum(one["updates"][2:]) / sum(sum(trained) for _, trained in steps)
    costs = Costs(*fit(longest, tokens, one["samples"][2:]), update, 0.0)
    figures: Figures = {"decode": costs.decode, "token": costs.token, "update": costs.update}
    for n, records in ranks.items():
        steps = records[0]["steps"][2:]
        assert all(r["steps"][2:] == steps for r in records), "the processes of one run took different steps"
        slowest = {
            key: sum(max(values) for values in list(zip(*(r[key] for r in records), strict=True))[2:])
            for key in ("samples", "updates")
        }
        expected = {
            "samples": sum(max(sampling_seconds(costs, lengths, n)) for lengths, _ in steps),
            "updates": sum(max(update_seconds(costs, trained, n)) for _, trained in steps),
        }
        for key in slowest:
            figures[f"{key}, {n} processes"] = round(slowest[key], 2)
            figures[f"{key}, {n} processes, simulated"] = round(expected[key], 2)
        figures[f"seconds, {n} processes"] = round(sum(records[0]["step_time"][2:]), 2)
    return figures


def fit(longest: Sequence[float], tokens: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """The costs of a decoding step and of a token, by least squares; neither is negative."""
    columns = torch.tensor([longest, tokens], dtype=torch.float64).t()
    target = torch.tensor(seconds, dtype=torch.float64)
    decode, token = torch.linalg.lstsq(columns, target[:, None]).solution.flatten().tolist()
    if decode < 0 or token < 0:  # the best has one of them at 0
        alone = [float(c @ target / (c @ c)) for c in columns.t()]
        errors = [
            float((column * a - target).square().sum()) for column, a in zip(columns.t(), alone, strict=True)
        ]
        return (alone[0], 0.0) if errors[0] < errors[1] else (0.0, alone[1])
    return decode, token


def summary(results: dict[str, Figures]) -> list[str]:
    """Two tables."""
    lines = []
    if table := results.get("simulated"):
        rows: dict[str, dict[str, float]] = {}
        for name, seconds in table.items():
            if " cards" in name:
                what, _, cards = name.rpartition(", ")
                rows.setdefault(what, {})[cards] = seconds
        lines += ["| a step, in seconds | " + " | ".join(next(iter(rows.values()))) + " |"]
        lines += ["| --- |" + " ---: |" * len(next(iter(rows.values())))]
        lines += [f"| {what} | " + " | ".join(map(str, row.values())) + " |" for what, row in rows.items()]
    if table := results.get("measured"):
        lines += [f"{name}: {value}" for name, value in table.items()]
    return lines


if __name__ == "__main__":
    run("scale", {"simulated": simulated, "measured": measured}, summary)
