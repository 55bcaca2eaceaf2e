"""Which questions are asked: closed forms, a bandit of questions with known success rates, refill by hand."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from reinforce_lite.config import RolloutConfig
from reinforce_lite.rollout.selection import (
    DECAY,
    FLOOR,
    QuestionHistory,
    QuestionSelector,
    epoch_problems,
    selection_weights,
    signal_chance,
)
from reinforce_lite.types import Completion, Group, Problem, Prompt, Rollout, Verdict

GROUP = 10


def make_problems(n: int) -> list[Problem]:
    return [Problem(f"p{i}", f"question {i}?", "1") for i in range(n)]


def make_group(problem: Problem, verdicts: Sequence[bool], faults: Sequence[bool] = ()) -> Group:
    completion = Completion((5,), "", False, (0.0,))
    faults = faults or [False] * len(verdicts)
    return Group(
        problem,
        Prompt((1,)),
        tuple(
            Rollout(completion, "", float(v), Verdict(v, None, ""), None, "broken" if f else "")
            for v, f in zip(verdicts, faults, strict=True)
        ),
    )


@pytest.mark.parametrize(
    ("right", "wrong", "group_size", "expected"),
    [
        (1, 1, 10, 1 - 2 / 11),  # p uniform: E[p^10] = 1/11
        (0.5, 0.5, 2, 1 / 4),  # arcsine distribution: E[p^2] = 3/8
        (2, 1, 3, 1 - 2 / 5 - 1 / 10),  # density 2p: E[p^3] = 2/5, E[(1-p)^3] = 2 B(2, 4) = 1/10
        (7, 3, 1, 0),  # a single completion is either right or wrong
    ],
)
def test_signal_chance_by_hand(right: float, wrong: float, group_size: int, expected: float) -> None:
    assert signal_chance(right, wrong, group_size) == pytest.approx(expected, abs=1e-12)


def test_a_question_that_was_never_asked_is_judged_by_the_task() -> None:
    history = QuestionHistory()
    history.add("p0", step=1, successes=2, trials=4)
    known, unknown = history.signal_chances(make_problems(2), step=1, group_size=2)
    # The task's mean is (2 + 1) / (4 + 2) = 1/2. Never asked: Beta(1/2, 1/2), so 1/4 as above.
    assert unknown == pytest.approx(1 / 4)
    # Asked: Beta(5/2, 5/2), E[p^2] = (5/2)(7/2) / (5 * 6) = 7/24.
    assert known == pytest.approx(1 - 2 * 7 / 24)


def test_older_trials_count_less() -> None:
    history = QuestionHistory()
    history.add("p0", step=1, successes=10, trials=10)
    problems = make_problems(1)
    fresh, old = (history.signal_chances(problems, step, GROUP)[0] for step in (1, 300))
    assert fresh < 0.3 < old
    history.add("p0", step=300, successes=0, trials=10)
    assert history.signal_chances(problems, 300, GROUP)[0] < 0.35  # not as after 10 of 20


def expected_signal(problems: Sequence[Problem], rates: dict[str, float]) -> float:
    chances = [1 - rates[p.id] ** GROUP - (1 - rates[p.id]) ** GROUP for p in problems]
    return sum(chances) / len(chances)


@pytest.mark.parametrize("seed", range(3))
def test_adaptive_asks_for_signal_where_shuffling_finds_little(seed: int) -> None:
    """100 questions, of which 45 are always wrong and 35 always right: a shuffled question has a chance of
    0.2 of a signal."""
    problems, coin = make_problems(100), Random(seed)
    rates = {p.id: 0.0 if i < 45 else 1.0 if i < 80 else 0.5 for i, p in enumerate(problems)}
    chances = {}
    for selection in ("shuffle", "adaptive"):
        selector = QuestionSelector(
            problems, RolloutConfig(selection=selection, prompts_per_step=8, group_size=GROUP), seed
        )
        asked: list[Problem] = []
        for step in range(1, 51):
            chosen = selector.select(step, [])
            assert len(chosen) == 8
            selector.record(
                step, [make_group(p, [coin.random() < rates[p.id] for _ in range(GROUP)]) for p in chosen]
            )
            asked += chosen
        chances[selection] = expected_signal(asked, rates)
    assert chances["shuffle"] == pytest.approx(0.2, abs=0.03)
    assert chances["adaptive"] > 1.8 * chances["shuffle"]


def test_every_question_keeps_its_floor() -> None:
    weights = selection_weights([0.0] * 9 + [1.0])
    assert weights == [pytest.approx(FLOOR / 10)] * 9 + [pytest.approx(FLOOR / 10 + 1 - FLOOR)]
    assert selection_weights([0.0, 0.0]) == [pytest.approx(0.5)] * 2


def test_draws_follow_the_weights() -> None:
    """Of two questions, one with half the chance of the other, in 2,000 steps with one question each."""
    problems = make_problems(2)
    selector = QuestionSelector(problems, RolloutConfig(selection="adaptive", prompts_per_step=1), 0)
    selector.history.signal_chances = lambda *_: [0.2, 0.4]  # type: ignore[method-assign]
    first = sum(selector.select(step, [])[0].id == "p0" for step in range(2000))
    share = FLOOR / 2 + (1 - FLOOR) / 3
    assert first / 2000 == pytest.approx(share, abs=0.04)  # four standard deviations


@pytest.mark.parametrize("selection", ["shuffle", "adaptive"])
def test_a_restored_selector_asks_the_same(selection: str) -> None:
    problems = make_problems(20)
    config = RolloutConfig(selection=selection, prompts_per_step=3, group_size=2, refill=2)  # type: ignore[arg-type]
    selector, lines = QuestionSelector(problems, config, 7), []
    for step in range(1, 9):
        groups: list[Group] = []
        while chosen := selector.select(step, groups):
            groups += [
                make_group(p, [int(p.id[1:]) % 3 > 0, int(p.id[1:]) % 3 > 1], [False, p.id == "p4"])
                for p in chosen
            ]
        selector.record(step, groups)
        lines += [
            {"problem_id": g.problem.id, "step": step, "strict": r.strict.correct, "fault": r.fault}
            for g in groups
            for r in g.rollouts
        ]
    restored = QuestionSelector(problems, config, 7)
    restored.restore(selector.asked_before, lines)
    for step in (9, 10):
        assert restored.select(step, []) == selector.select(step, [])


def test_an_audits_trials_count_as_those_of_a_step_0() -> None:
    """2 of 4 right, as above, with what a trial counts after one step."""
    selector = QuestionSelector(make_problems(2), RolloutConfig(selection="adaptive", group_size=2), 0)
    selector.restore(0, [], [{"problem_id": "p0", "right": 2, "samples": 4}])
    known, unknown = selector.history.signal_chances(make_problems(2), step=1, group_size=2)
    assert unknown == pytest.approx(1 / 4)
    a, total = 1 / 2 + 2 * DECAY, 1 + 4 * DECAY
    assert known == pytest.approx(1 - 2 * a * (a + 1) / (total * (total + 1)))
    shuffled = QuestionSelector(make_problems(20), RolloutConfig(prompts_per_step=4), 0)
    shuffled.restore(0, [], [{"problem_id": "p0", "right": 2, "samples": 4}])
    assert shuffled.select(1, []) == epoch_problems(make_problems(20), 0, 4, 0)


def test_refill_asks_until_enough_groups_have_a_signal() -> None:
    problems = make_problems(50)
    selector = QuestionSelector(problems, RolloutConfig(prompts_per_step=4, group_size=2, refill=3), 0)
    first = selector.select(1, [])
    assert first == epoch_problems(problems, 0, 4, 0)
    live, dead = [True, False], [True, True]
    groups = [make_group(p, v) for p, v in zip(first, [live, dead, dead, live], strict=True)]
    second = selector.select(1, groups)
    assert second == epoch_problems(problems, 4, 2, 0)
    groups += [make_group(p, v) for p, v in zip(second, [live, dead], strict=True)]
    assert selector.select(1, groups) == epoch_problems(problems, 6, 1, 0)
    assert selector.select(1, [*groups, make_group(problems[0], live)]) == []
    hopeless = [make_group(p, dead) for p in problems[:11]]
    assert len(selector.select(1, hopeless)) == 1  # 12 is three times 4
    assert selector.select(1, [make_group(p, dead) for p in problems[:12]]) == []
    selector.record(1, groups)
    assert selector.select(2, []) == epoch_problems(problems, 6, 4, 0)


@pytest.mark.parametrize("selection", ["shuffle", "adaptive"])
def test_a_step_asks_no_question_twice(selection: Any) -> None:
    problems = make_problems(6)
    config = RolloutConfig(selection=selection, prompts_per_step=4, group_size=2, refill=5)
    selector = QuestionSelector(problems, config, 0)
    groups: list[Group] = []
    while chosen := selector.select(1, groups):
        groups += [make_group(p, [True, True]) for p in chosen]
    ids = sorted(g.problem.id for g in groups)
    assert len(set(ids)) == len(ids) > 4
    if selection == "adaptive":
        assert ids == [p.id for p in problems]


def test_a_failed_reward_is_no_trial() -> None:
    problem = make_problems(1)[0]
    assert make_group(problem, [True, False], [False, True]).success_rate == 1
    assert not make_group(problem, [True, False], [False, True]).is_live
    assert make_group(problem, [True, False], [True, True]).success_rate is None


def test_an_epoch_asks_every_question_once() -> None:
    problems = make_problems(7)
    whole = epoch_problems(problems, 0, 14, 3)
    assert sorted(p.id for p in whole[:7]) == sorted(p.id for p in whole[7:]) == [p.id for p in problems]
    assert whole[:7] != whole[7:]
    assert epoch_problems(problems, 5, 4, 3) == whole[5:9]


@pytest.mark.parametrize(
    ("n", "wanted", "refill"),
    [(10, 4, 1), (10, 4, 2), (5, 4, 1), (4, 4, 2), (7, 3, 2), (5, 2, 3), (12, 5, 3)],
)
def test_a_step_asks_no_question_twice_where_an_epoch_ends(n: int, wanted: int, refill: int) -> None:
    """Where all are asked for at once, those of the last epoch come first in the next step too."""
    problems = make_problems(n)
    selector = QuestionSelector(problems, RolloutConfig(prompts_per_step=wanted, refill=refill), 0)
    asked: list[str] = []
    for step in range(1, 60):
        groups: list[Group] = []
        while chosen := selector.select(step, groups):
            groups += [make_group(p, [True, p.id not in {"p0", "p3"}]) for p in chosen]
        ids = [group.problem.id for group in groups]
        assert len(set(ids)) == len(ids)
        assert len(ids) == wanted if refill == 1 else len(ids) >= min(n, wanted)
        selector.record(step, groups)
        asked += ids
    assert all(sorted(asked[i : i + n]) == sorted(p.id for p in problems) for i in range(0, 10 * n, n))


def test_an_epochs_first_questions_are_moved_back_by_hand() -> None:
    """After an epoch that ends in 3, 1, and three questions of a step: 1 may come third, 3 second."""
    before = epoch_problems(make_problems(5), 0, 5, 3)
    plain, apart = (epoch_problems(make_problems(5), 5, 5, 3, apart=n) for n in (1, 3))
    assert {p.id for p in apart} == {p.id for p in plain}
    assert apart[0].id not in {before[-2].id, before[-1].id}
    assert apart[1].id != before[-1].id
    moved = [p for p in plain if p not in apart[:2]]
    assert apart[2:] == moved  # the rest in the order of the shuffle


def test_a_group_is_live_where_its_rewards_differ() -> None:
    def graded(*rewards: float) -> Group:
        rollouts = (replace(r, reward=v) for r, v in zip(group.rollouts, rewards, strict=True))
        return replace(group, rollouts=tuple(rollouts))

    group = make_group(make_problems(1)[0], [False, False])
    assert not group.is_live
    assert graded(0.2, 0.5).is_live
    assert not graded(0.2, 0.2).is_live
