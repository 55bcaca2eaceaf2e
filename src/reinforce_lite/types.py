"""The records of a step, each passed on by one part to the next.

    tasks ─Problem─▶ rollout/prompts ─Prompt─▶ engines ─Completion─▶ rollout/scoring ─Rollout, Group─▶ learner

A worked example of one rollout:

    Problem(id="wordmath-1-7f3a", question="Ana has 3 pens and buys 4. How many now?", gold="7")
    Prompt(token_ids=(1, 9690, ...), prefill="<think>")
    Completion(token_ids=(33, 72, ..., 2), text="3 + 4 = 7</think><answer>7</answer>",
               truncated=False, logprobs=(-0.21, -0.03, ..., -0.01))
    Reward(value=1.0, strict=Verdict(True, "7", "right"), lenient=Verdict(True, "7", "right"))
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
AnswerFormat = Literal["tags", "boxed", "hash"]


@dataclass(frozen=True, slots=True)
class Permissions:
    """What a model may bring along. Given with each command and stored nowhere, so that no recipe,
    run folder or model can grant it."""

    trust_remote_code: bool = False
    """Run the Python code that the model brings, with your rights."""
    allow_pickles: bool = False
    """Open pickled weights. Only tensors are read from them."""


NO_PERMISSIONS = Permissions()


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its gold."""

    id: str
    """Stable: the same problem has the same id in every run."""
    question: str
    gold: str
    """The right answer; for number tasks, text that `tasks.numbers.read_gold` reads."""
    solution: str = ""
    """The worked steps to the gold, where the task knows them."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """Anything else that the task's reward needs."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A problem as the policy sees it."""

    token_ids: tuple[int, ...]
    prefill: str = ""
    """Text that opens the response. It is part of `token_ids`, and is graded with the completion."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What the policy wrote after a prompt."""

    token_ids: tuple[int, ...]
    """1 to max_new_tokens ids; unless `truncated`, the last is an end-of-sequence token or ends a stop."""
    text: str
    """The decoded ids, without the end-of-sequence token and what follows a stop in the last token."""
    truncated: bool
    """Cut before an end-of-sequence token or a stop: at max_new_tokens, or where it repeats itself."""
    logprobs: tuple[float, ...]
    """One per token, in nats: log pi at `Sampling.recorded_temperature`, without top-p."""
    repetitive: bool = False
    """Truncated, and the last tokens repeat themselves; see `engines.ending`."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a response is right, and why."""

    correct: bool
    answer: str | None
    """The extracted answer: what grading read from the response."""
    reason: str
    """In words, for a person."""


@dataclass(frozen=True, slots=True)
class Reward:
    """What one response earned.

    Without a strict verdict it counts as right when `value` is at least 0.999999. Only number
    tasks have a lenient verdict.
    """

    value: float
    strict: Verdict | None = None
    lenient: Verdict | None = None


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion and what it earned."""

    completion: Completion
    response: str
    """The text that was graded: the prompt's prefill and the completion."""
    reward: float
    strict: Verdict
    lenient: Verdict | None
    fault: str = ""
    """How the reward function failed, in one line; empty if it did not. See `rollout.scoring.neutralize`."""
    second_opinion: bool | None = None
    """Right by a verdict that is not rewarded; None where the gold is not a number or the reward failed."""


@dataclass(frozen=True, slots=True)
class Group:
    """The G rollouts of one problem in one step; they share a baseline."""

    problem: Problem
    prompt: Prompt
    rollouts: tuple[Rollout, ...]

    @property
    def rewards(self) -> list[float]:
        """G rewards, in the order of the rollouts."""
        return [r.reward for r in self.rollouts]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each completion."""
        return [len(r.completion.token_ids) for r in self.rollouts]

    @property
    def scored(self) -> list[bool]:
        """Whether each completion has a reward: False where the reward function failed."""
        return [not r.fault for r in self.rollouts]

    @property
    def right(self) -> list[bool]:
        """Whether each completion is right by the strict verdict."""
        return [r.strict.correct for r in self.rollouts]

    @property
    def right_where_scored(self) -> list[bool]:
        """`right`, without completions whose reward failed."""
        return [r.strict.correct for r in self.rollouts if not r.fault]

    @property
    def success_rate(self) -> float | None:
        """The share of right completions by the strict verdict; None where every reward failed."""
        right = self.right_where_scored
        return sum(right) / len(right) if right else None

    @property
    def is_live(self) -> bool:
        """Whether the rewards differ, so that there is something to learn. Rewards that failed do not count.

        With rewards of 1 and 0: whether some of the completions are right and some wrong.
        """
        return len({r.reward for r in self.rollouts if not r.fault}) > 1


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an engine samples completions."""

    samples: int
    """Completions per prompt (G)."""
    max_new_tokens: int
    min_new_tokens: int = 0
    """No end-of-sequence token before this many tokens."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens whose probability at `temperature` reaches this; in (0, 1]."""
    stop: tuple[str, ...] = ()
    """A completion ends where its text reaches one of these, which is kept; see `tasks.stopping`."""
    repetition_detection: bool = False
    """A completion ends, as truncated, where it repeats itself; see `engines.ending`."""
    recorded_temperature: float = 1.0
    """Of the recorded log-probabilities; other than 1 only with `objective.engine_correction`."""
