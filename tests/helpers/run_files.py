"""Synthetic run directories for tests of the report: the files of a run, without training."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from reinforce_lite.evaluation.reflection import find_reflections
from reinforce_lite.evaluation.statistics import wilson_interval
from reinforce_lite.report.build import build_report
from reinforce_lite.runlog.records import Record
from reinforce_lite.runlog.run import Run

CONFIG = """recipe = "quickstart"
[model]
name = "smollm2-135m"
[task]
name = "wordmath"
level = 1
[rollout]
prompts_per_step = {questions}
group_size = {samples}
[objective]
preset = "reinforce-lite"
[train]
steps = {steps}
seed = 0
"""


# Strict verdicts of 8 problems. From the first to the second, 6 are gained and none is lost: McNemar's p is 2/2^6.
ONE_RIGHT, SEVEN_RIGHT = [True] + [False] * 7, [True] * 7 + [False]


def completion(at: int, problem: str, right: bool = True, sample: int = 0, **changes: Any) -> Record:
    """A line of rollouts.jsonl; `changes` override its fields, such as `question`, `completion` or `lenient`."""
    line: Record = {
        "step": at,
        "problem_id": problem,
        "sample": sample,
        "question": f"What is {problem}?",
        "gold": "7",
        "completion": f"<think>{problem}</think><answer>{7 if right else 8}</answer>",
        "answer": "7" if right else "8",
        "reason": "right" if right else "another number",
        "reward": float(right),
        "strict": right,
        "lenient": right,
        "advantage": 0.5 if right else -0.5,
        "tokens": 20,
        "truncated": False,
    }
    line |= changes
    return {"reflection": find_reflections(line["completion"])} | line


def step(n: int, **changes: Any) -> Record:
    """A line of steps.jsonl."""
    line: Record = {
        "step": n,
        "reward": 0.5,
        "accuracy/strict": 0.5,
        "accuracy/lenient": 0.5,
        "frac_reward_zero_std": 0.25,
        "completions/mean_length": 20.0,
        "completions/clipped_ratio": 0.0,
        "entropy": 0.2,
        "grad_norm": 1.0,
        "step_time": 10.0,
        "time/rollout": 4.0,
        "time/reward": 1.0,
        "time/update": 5.0,
        "tokens_per_second/rollout": 400.0,
        "tokens_per_second/update": 300.0,
        "memory/peak_bytes": 3_000_000_000,
        "reflection/list_a": 0.0,
        "reflection/list_b": 0.0,
        "reflection/list_c": 0.25,
    }
    return line | changes


def evaluation(at: int, split: str, lines: Sequence[Record]) -> Record:
    """The line of evals.jsonl for the completions of an evaluation."""
    line: Record = {"step": at, "split": split, "n": len(lines), "seconds": 3.0}
    line["reward"] = sum(c["reward"] for c in lines) / len(lines)
    for kind in ("strict", "lenient", "second_opinion"):
        judged = [bool(c[kind]) for c in lines if c.get(kind) is not None]
        line[kind] = sum(judged) / len(judged) if judged else None
        line[f"{kind}_interval"] = wilson_interval(sum(judged), len(judged)) if judged else None
    return line


def eval_completions(at: int, verdicts: Sequence[bool], split: str = "test", **changes: Any) -> list[Record]:
    """The completions of one evaluation, one per problem; a list among `changes` has one value per problem."""
    return [
        completion(
            at,
            f"{split}-{i}",
            right,
            **{"split": split, "advantage": None}
            | {k: v[i] if isinstance(v, list) else v for k, v in changes.items()},
        )
        for i, right in enumerate(verdicts)
    ]


def write(
    path: Path,
    steps: Sequence[Record] = (),
    rollouts: Sequence[Record] = (),
    evaluations: Sequence[Sequence[Record]] = (),
    stopped: str = "",
    planned: int = 0,
    **summary: Any,
) -> Run:
    """A run directory; without `stopped` it has no summary.json, like a run in progress."""
    path.mkdir(parents=True)
    samples = max((line["sample"] for line in rollouts), default=0) + 1
    questions = len(rollouts) // max(1, len(steps) * samples)
    config = CONFIG.format(questions=questions, samples=samples, steps=planned or max(1, len(steps)))
    (path / "config.toml").write_text(config, encoding="utf-8")
    run = Run(path)
    evals = [evaluation(e[0]["step"], e[0]["split"], e) for e in evaluations]
    for name, lines in {
        "steps": steps,
        "rollouts": rollouts,
        "evals": evals,
        "eval_rollouts": [line for completions in evaluations for line in completions],
    }.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)  # ASCII: lone surrogates too
        (path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    if stopped:
        run.write_json(
            "summary", {"stopped": stopped, "steps": len(steps), "seconds": 20.0 * len(steps) + 60, **summary}
        )
    return run


def finished(
    path: Path,
    strict: tuple[list[bool], list[bool]],
    lenient: tuple[list[Any], list[Any]] | None = None,
) -> Run:
    """A finished run of two steps, from its test verdicts before and after; lenient defaults to strict."""
    evaluations = [
        eval_completions(at, verdicts, lenient=other)
        for at, verdicts, other in zip((0, 2), strict, lenient or strict, strict=True)
    ]
    return write(path, [step(1), step(2)], evaluations=evaluations, stopped="steps")


REFLECTION_PHRASES = (
    "Wait, that is wrong. ",
    "Let me check: ",
    "However, ",
    "I recheck it. ",
    "Then we reconsider. ",
)


def large(path: Path, steps: int = 625, questions: int = 10, samples: int = 8, tests: int = 200) -> Run:
    """A run of `steps` x `questions` x `samples` completions of about 600 characters that learns and reflects."""
    random = Random(0)

    def text(right: bool, reflects: bool) -> str:
        work = " ".join(
            f"{random.randrange(99)} + {random.randrange(99)} is {random.randrange(198)}." for _ in range(24)
        )
        word = random.choice(REFLECTION_PHRASES) if reflects else ""
        return (
            f"<think>{work} {word}So it is {7 if right else 8}.</think>\n<answer>{7 if right else 8}</answer>"
        )

    def sample_completion(at: int, problem: str, skill: float, sample: int = 0, **changes: Any) -> Record:
        right, reflects = random.random() < skill, random.random() < 0.02 + 0.1 * skill
        question = f"Question {problem}: a train has {random.randrange(99)} wagons; how many wheels do they have in all?"
        changes |= {"truncated": random.random() < 0.03, "question": question}
        changes |= {"lenient": right or random.random() < 0.1, "tokens": random.randrange(100, 250)}
        return completion(at, problem, right, sample, completion=text(right, reflects), **changes)

    def skill(at: int) -> float:
        return 0.25 + 0.5 * at / steps

    rollouts = [
        sample_completion(at, f"train-{at}-{q}", skill(at), s)
        for at in range(1, steps + 1)
        for q in range(questions)
        for s in range(samples)
    ]
    lines = [
        _step_line(at, rollouts[(at - 1) * questions * samples : at * questions * samples], random)
        for at in range(1, steps + 1)
    ]
    every = max(1, steps // 10)
    evaluations = [
        [sample_completion(at, f"{split}-{i}", skill(at), split=split, advantage=None) for i in range(n)]
        for split, n, times in (
            ("validation", 48, range(0, steps + 1, every)),
            ("test", tests, (0, steps)),
        )
        for at in times
    ]
    return write(
        path,
        lines,
        rollouts,
        evaluations,
        stopped="steps",
        memory={"planned_bytes": 4_100_000_000, "dry_run_bytes": 4_300_000_000, "peak_bytes": 4_460_000_000},
        machine="Linux x86_64",
        device="cpu",
        dtype="bfloat16",
        versions={"torch": "2.13.0"},
    )


def _step_line(at: int, lines: Sequence[Record], random: Random) -> Record:
    """The line of steps.jsonl for the completions of a step."""
    n = len(lines)
    groups: dict[str, set[bool]] = {}
    for line in lines:
        groups.setdefault(line["problem_id"], set()).add(line["strict"])
    strict = sum(line["strict"] for line in lines) / n
    return step(
        at,
        reward=strict,
        **{
            "accuracy/strict": strict,
            "accuracy/lenient": sum(line["lenient"] for line in lines) / n,
            "frac_reward_zero_std": sum(len(g) == 1 for g in groups.values()) / len(groups),
            "completions/mean_length": sum(line["tokens"] for line in lines) / n,
            "completions/clipped_ratio": sum(line["truncated"] for line in lines) / n,
            "entropy": 0.3 * (1 - strict) + 0.02 * random.random(),
            "grad_norm": 0.5 + random.random(),
            "step_time": 9 + 2 * random.random(),
            **{f"reflection/list_{x}": sum(bool(line["reflection"][x]) for line in lines) / n for x in "abc"},
        },
    )


HOSTILE = "</script><img src=x onerror=window.__hit=1><!--\x1b[31m\x00\u202e\ud83d\u2028<script>window.__hit=2</script>"


def hostile(path: Path) -> Run:
    """A run with hostile text in every field that a model or a user can write."""
    lines = [
        completion(
            1,
            "p",
            s == 0,
            s,
            question=HOSTILE,
            completion=f"Wait {HOSTILE}",
            answer=HOSTILE,
            gold=HOSTILE,
            reason=HOSTILE,
            fault=HOSTILE,
        )
        for s in (0, 1)
    ]
    tests = [
        eval_completions(
            at, [at > 0] * 8, completion=f"Wait {HOSTILE}", question=HOSTILE, answer=HOSTILE, gold=HOSTILE
        )
        for at in (0, 1)
    ]
    run = write(path, [step(1)], lines, tests, stopped="steps", machine=HOSTILE.replace("\ud83d", ""))
    config = (run.path / "config.toml").read_text(encoding="utf-8")
    config = config.replace("smollm2-135m", "<img src=x onerror=window.__hit=3>")
    (run.path / "config.toml").write_text(config, encoding="utf-8")
    return run


def make_older(run: Run) -> None:
    """Rewrite the lines of completions as the first version wrote them."""
    for name in ("rollouts", "eval_rollouts"):
        lines = list(run.read(name))
        for line in lines:
            line["reflection"] = {key: words for key, words in line["reflection"].items() if words}
            line["gold"] = int(line["gold"]) if line["gold"].isdigit() else line["gold"]
            if name == "rollouts":
                line.pop("split", None)
            if not line.get("fault"):
                line.pop("fault", None)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (run.path / f"{name}.jsonl").write_text(text, encoding="utf-8")


def summary_of(run: Run) -> Record:
    """The figures of a run's report."""
    return build_report(run).summary
