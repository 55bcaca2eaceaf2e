"""What the JSON files of a run hold, as far as the program reads it back; docs/run-files.md has all keys.

Keys that are not required may be missing: older versions did not write them.
"""

from collections.abc import Mapping
from typing import Required, TypedDict

from reinforce_lite.evaluation.statistics import Interval
from reinforce_lite.utils.kinds import Amount, Count, Keys, Share

STEP_KEY = "reinforce_lite_step"
"""Key in a saved model's config.json: the step of its weights."""


class _Accuracy(TypedDict, total=False):
    n: Required[Count]
    strict: Required[Share]
    strict_interval: Required[Interval]
    lenient: Share | None
    lenient_interval: Interval | None
    second_opinion: Share | None
    second_opinion_interval: Interval | None
    best_constant: Share | None


class _Evals(TypedDict, total=False):
    before: _Accuracy
    after: _Accuracy
    paired_p: Mapping[str, Share | None]


class _SelfCheck(TypedDict):
    max_gap: float
    bound: float


class _Summary(TypedDict, total=False):
    steps: Required[Count]
    stopped: Required[str]
    best_step: Count | None
    evals: _Evals
    seconds: Amount
    warnings: list[str]
    test_problems: Count
    peak_memory_bytes: Amount
    memory: Mapping[str, Amount | None]
    machine: str
    device: str
    dtype: str
    versions: Mapping[str, str]
    self_check: _SelfCheck


class _Machine(TypedDict, total=False):
    system: str | None
    processor: str | None
    cores: Count | None
    memory_bytes: Amount
    gpu: str
    gpu_memory_bytes: Amount
    versions: Mapping[str, str]
    device: str
    dtype: str
    planned_bytes: Amount
    self_check: _SelfCheck


class _FirstPrompt(TypedDict):
    question: str
    text: str
    token_ids: list[int]


class _Way(TypedDict, total=False):
    way: str
    questions: Count
    accuracy: Share
    solved: Share
    live: Share
    live_interval: Interval
    format_failures: Share
    truncated: Share
    mean_tokens: Amount
    forecast: str


class _Question(TypedDict):
    problem_id: str
    right: Count
    samples: Count


class _Audit(TypedDict, total=False):
    ways: list[_Way]
    advice: list[str]
    questions: list[_Question]


FILES = {
    "summary.json": Keys.of(_Summary),
    "machine.json": Keys.of(_Machine),
    "first_prompt.json": Keys.of(_FirstPrompt),
    "audit.json": Keys.of(_Audit),
    "model/config.json": Keys({STEP_KEY: Count}, ()),
    "best/config.json": Keys({STEP_KEY: Count}, ()),
}
