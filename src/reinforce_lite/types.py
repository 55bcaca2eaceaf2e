"""The typed things that travel down the road, one record per arrow.

    Problem ─▶ Prompt ─▶ Completion ─▶ Reward ─▶ Rollout ─▶ Group ─▶ (advantages, loss)

A worked example of one whole rollout:

    Problem(id="wordmath-1-7f3a", question="Ana has 3 pens and buys 4. How many now?", gold="7")
    Prompt(token_ids=(1, 9690, ...), prefill="<think>")
    Completion(token_ids=(33, 72, ..., 2), text="3 + 4 = 7</think><answer>7</answer>",
               truncated=False, logprobs=(-0.21, -0.03, ..., -0.01))
    Reward(value=1.0, strict=Verdict(True, "7", "right"), lenient=Verdict(True, "7", "right"))
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with a known answer."""

    id: str
    """Stable: the same problem has the same id in every run."""
    question: str
    gold: str
    """The gold answer; for number tasks a number that `answers.parse_number` reads."""
    solution: str = ""
    """The steps that lead to it, where the task knows them."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else the task's own reward needs."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A problem as the policy sees it."""

    token_ids: tuple[int, ...]
    prefill: str = ""
    """The text of the assistant's turn that was begun for it; part of `token_ids` and of what is judged."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What the policy wrote after a prompt."""

    token_ids: tuple[int, ...]
    """1 to max_new_tokens ids; the last is an end token unless `truncated`."""
    text: str
    """The ids decoded, the end token left out."""
    truncated: bool
    """It was cut at the limit before it ended."""
    logprobs: tuple[float, ...]
    """One per token, in nats: log pi at temperature 1, without any top-p cut."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Is an answer right, what was read from it, and why: reason is in words for a person."""

    correct: bool
    answer: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Reward:
    """What one completion earned.

    A reward without a strict verdict counts as right when `value` is at least 1. Only number
    tasks have a lenient verdict.
    """

    value: float
    strict: Verdict | None = None
    lenient: Verdict | None = None


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion with what it earned."""

    completion: Completion
    response: str
    """The assistant's whole turn: the begun part and the completion. This is what was judged."""
    reward: float
    strict: Verdict
    lenient: Verdict | None
    fault: str = ""
    """Why the reward function gave nothing usable (the reward is then neutral); usually empty."""
    second_opinion: bool | None = None
    """Right by a verdict that the reward does not pay; None where the gold answer is no number."""


@dataclass(frozen=True, slots=True)
class Group:
    """The G rollouts of one problem in one step: each is the others' baseline."""

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
    def usable(self) -> list[bool]:
        """Whether each reward is one: False where the reward function failed."""
        return [not r.fault for r in self.rollouts]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an engine draws completions."""

    samples: int
    """Completions per prompt (G)."""
    max_new_tokens: int
    min_new_tokens: int = 0
    """No end token before this many tokens."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens whose mass at `temperature` reaches this; in (0, 1]."""
