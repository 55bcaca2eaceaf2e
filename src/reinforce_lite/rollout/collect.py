"""From problems to scored groups: sample completions, score them."""

from collections.abc import Callable, Sequence
from itertools import islice

from reinforce_lite.engines.base import Engine, ignore_progress
from reinforce_lite.rollout.prompts import PromptBuilder
from reinforce_lite.rollout.scoring import Scorer, make_group
from reinforce_lite.types import Completion, Group, Problem, Prompt, Sampling


def sample_completions(
    problems: Sequence[Problem],
    prompt_builder: PromptBuilder,
    engine: Engine,
    sampling: Sampling,
    seed: int,
    progress: Callable[[int], None] = ignore_progress,
) -> list[tuple[Prompt, list[Completion]]]:
    """Each problem's prompt and its `sampling.samples` completions, in the order of the problems."""
    prompts = [prompt_builder(problem.question) for problem in problems]
    return list(zip(prompts, engine.generate(prompts, sampling, seed, progress), strict=True))


def score_groups(
    problems: Sequence[Problem],
    sampled: Sequence[tuple[Prompt, list[Completion]]],
    scorer: Scorer,
) -> list[Group]:
    """The scored group of each problem, its completions graded together with the prompt's prefill.

    Raises ReinforceLiteError when the reward fails too often.
    """
    groups = list(zip(problems, sampled, strict=True))
    pairs = [(problem, prompt.prefill + c.text) for problem, (prompt, group) in groups for c in group]
    scored = iter(zip((response for _, response in pairs), scorer.score(pairs), strict=True))
    return [
        make_group(problem, prompt, completions, list(islice(scored, len(completions))))
        for problem, (prompt, completions) in groups
    ]
