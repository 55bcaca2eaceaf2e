"""From problems to scored groups: sample completions, score them.

Where several processes train together, each samples and scores its share, and all get all groups.
"""

from collections.abc import Callable, Sequence
from itertools import islice

from reinforce_lite.engines.base import Engine, ignore_progress
from reinforce_lite.models.distributed import map_shares, report_alive, watched
from reinforce_lite.rollout.prompts import PromptBuilder
from reinforce_lite.rollout.scoring import Scorer, make_rollouts
from reinforce_lite.types import Completion, Group, Problem, Prompt, Rollout, Sampling


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

    def count(finished: int) -> None:
        report_alive()
        progress(finished)

    def sample(positions: Sequence[int]) -> list[list[Completion]]:
        if not positions:  # not watched without work: the watch would learn too short a limit from it
            return []
        with watched("sampling"):
            own = engine.generate([prompts[i] for i in positions], sampling, seed, count)
        if len(own) < len(prompts):
            progress((len(prompts) - len(own)) * sampling.samples)  # of the other processes, about as far
        return own

    # Equal prompts stay together: an engine counts them, so that each gets completions of its own.
    completions = map_shares([prompt.token_ids for prompt in prompts], sample)
    return list(zip(prompts, completions, strict=True))


def score_groups(
    problems: Sequence[Problem],
    sampled: Sequence[tuple[Prompt, list[Completion]]],
    scorer: Scorer,
) -> list[Group]:
    """The scored group of each problem, its completions graded together with the prompt's prefill.

    Raises ReinforceLiteError when the reward fails too often.
    """
    asked = list(zip(problems, sampled, strict=True))

    def score(positions: Sequence[int]) -> list[tuple[Rollout, ...]]:
        own = [asked[i] for i in positions]
        pairs = [
            (problem, prompt.prefill + c.text) for problem, (prompt, completions) in own for c in completions
        ]
        scored = zip((response for _, response in pairs), scorer.score(pairs), strict=True)
        return [
            make_rollouts(problem, completions, list(islice(scored, len(completions))))
            for problem, (_, completions) in own
        ]

    rollouts = map_shares(range(len(asked)), score)
    return [Group(problem, prompt, r) for (problem, (prompt, _)), r in zip(asked, rollouts, strict=True)]
