"""Problems, an engine and a reward to scored groups: what the policy says, and what it is worth."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

from reinforce_lite.engines.base import Engine, ignore_progress
from reinforce_lite.rollout.prompts import PromptBuilder
from reinforce_lite.rollout.scoring import Scorer, second_opinion
from reinforce_lite.types import Completion, Group, Problem, Prompt, Rollout, Sampling, Verdict
from reinforce_lite.utils.seeding import derive_seed


def select_problems(problems: Sequence[Problem], n: int, step: int, seed: int) -> list[Problem]:
    """A step's n questions: epoch after epoch over the training set, each shuffled by the seed."""
    places = range((step - 1) * n, step * n)
    orders = {epoch: _order(len(problems), seed, epoch) for epoch in {p // len(problems) for p in places}}
    return [problems[orders[p // len(problems)][p % len(problems)]] for p in places]


def _order(n: int, seed: int, epoch: int) -> list[int]:
    order = list(range(n))
    Random(derive_seed(seed, "order", epoch)).shuffle(order)
    return order


def sample_completions(
    problems: Sequence[Problem],
    prompter: PromptBuilder,
    engine: Engine,
    sampling: Sampling,
    seed: int,
    progress: Callable[[int], None] = ignore_progress,
) -> list[tuple[Prompt, list[Completion]]]:
    """Each problem's prompt and its `sampling.samples` completions."""
    prompts = [prompter(p.question) for p in problems]
    return list(zip(prompts, engine.generate(prompts, sampling, seed, progress), strict=True))


def score_groups(
    problems: Sequence[Problem],
    sampled: Sequence[tuple[Prompt, list[Completion]]],
    scorer: Scorer,
) -> list[Group]:
    """The groups, every completion judged as the assistant's whole response."""
    groups = []
    for problem, (prompt, completions) in zip(problems, sampled, strict=True):
        rollouts = [_rollout(problem, prompt, c, scorer) for c in completions]
        groups.append(Group(problem, prompt, tuple(_neutral(rollouts))))
    return groups


def _rollout(problem: Problem, prompt: Prompt, completion: Completion, scorer: Scorer) -> Rollout:
    response = prompt.prefill + completion.text
    reward, fault = scorer(problem, response)
    strict = reward.strict or Verdict(False, None, "not judged")
    second = second_opinion(problem, response, reward)
    return Rollout(completion, response, reward.value, strict, reward.lenient, fault, second)


def _neutral(rollouts: list[Rollout]) -> list[Rollout]:
    """Give a rollout whose reward failed the mean of the others, so that it moves no baseline.

    The trainer gives it weight 0, so it is not learned from either.
    """
    usable = [r.reward for r in rollouts if not r.fault]
    mean = sum(usable) / len(usable) if usable else 0.0
    return [replace(r, reward=mean) if r.fault else r for r in rollouts]
