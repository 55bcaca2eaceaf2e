"""Hits counted by hand, with traps: 30 completions on the way from a problem to the records of a run."""

import pytest

from helpers.tiny import END, make_tokenizer
from reinforce_lite.config import ExampleConfig, PromptConfig
from reinforce_lite.engines.scripted import ScriptedEngine
from reinforce_lite.evaluation.evaluate import evaluate_groups
from reinforce_lite.evaluation.reflection import REFLECTION_LISTS, find_reflections, reflection_rates
from reinforce_lite.learner.updater import GradientStats
from reinforce_lite.rollout.collect import sample_completions, score_groups
from reinforce_lite.rollout.prompts import PromptBuilder
from reinforce_lite.rollout.scoring import Scorer
from reinforce_lite.runlog.records import hits
from reinforce_lite.tasks.base import NumberTask
from reinforce_lite.trainer.metrics import completion_records, step_metrics
from reinforce_lite.types import Group, Problem, Sampling

# (completion, the lists that it hits), counted by hand. The question, the worked example and the prefill of each
# contain words of all three lists, which must not count.
COMPLETIONS = [
    ("Wait, that is wrong.", "c"),
    ("The waiter awaited him; I am awaiting her.", ""),  # inside other words
    ("Whatsoever, howsoever.", ""),
    ("I rechecked it.", ""),  # another form is another word
    ("Let me recheck it.", "ab"),
    ("RECHECK! WAIT!", "abc"),  # case does not count
    ("Try\nagain with 4.", "a"),  # a phrase may run over a line break
    ("try  again", "a"),  # and over two spaces
    ("I retry again and again.", ""),
    ("This doesn’t make sense.", "c"),  # a curly apostrophe
    ("This doesn't make sense.", "c"),
    ("I reassess: this does not make sense.", "b"),
    ("However, let me check.", "c"),
    ("Let me check\nagain.", "abc"),  # one text may hit all lists
    ("Let me re-evaluate.", "ab"),
    ("Let me re‑examine.", "ab"),  # a hyphen that forbids a line break
    ("A pre-reevaluate step.", ""),  # part of a word joined by a hyphen
    ("After reevaluation: 4.", "ab"),
    ("After reevaluations: 4.", ""),
    ("I reconsider; let us double-check.", "b"),
    ("I double-checked and reconsidered.", ""),
    ("Verify again: 12.", "b"),
    ("Go over the steps.", "ab"),
    ("Go over these steps.", ""),
    ("<answer>4</answer>", ""),  # all hits are in the question, the example and the prefill
    (" check: 4", ""),  # "let me" is in the prefill: half a phrase
    ("<think>Wait</think><answer>4</answer>", "c"),
    ("wait_time = 3", ""),
    ("Think\tagain—wait…", "abc"),
    ("", ""),
]
# lists a, b and c occur above 10, 11 and 8 times
EXPECTED_RATES = {"reflection/list_a": 10 / 30, "reflection/list_b": 11 / 30, "reflection/list_c": 8 / 30}


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    tokenizer = make_tokenizer()
    example = ExampleConfig(question="Wait, try again?", answer="However, let me check again: reconsider. 2")
    config = PromptConfig(
        prefill="However, I recheck, reassess and let me", examples=(example,), max_tokens=2000
    )
    problems = [Problem(f"p{i}", f"Case {i}: wait, recheck and reconsider?", "4") for i in range(30)]

    def reply(prompt: str, sample: int) -> str:
        return COMPLETIONS[int(prompt.rsplit("Case ", 1)[1].split(":")[0])][0]

    engine = ScriptedEngine(tokenizer, END, reply)
    sampling = Sampling(samples=1, max_new_tokens=100)
    sampled = sample_completions(problems, PromptBuilder(tokenizer, config), engine, sampling, seed=0)
    return score_groups(problems, sampled, Scorer(NumberTask((), (), ())))


@pytest.mark.parametrize(("index", "lists"), list(enumerate(lists for _, lists in COMPLETIONS)))
def test_completion_records_hold_the_hits_of_each_completion(
    index: int, lists: str, groups: list[Group]
) -> None:
    record = completion_records(1, groups)[index]
    assert record["completion"] == COMPLETIONS[index][0]
    assert list(record["reflection"]) == ["a", "b", "c"]
    assert "".join(hits(record)) == lists


def test_reflection_rates_are_the_same_in_a_step_and_in_an_evaluation(groups: list[Group]) -> None:
    assert len(COMPLETIONS) == 30
    state = {"learning_rate": 1e-6, "num_tokens": 0, "step_time": 2.0, "peak_memory": 0}
    state |= {"micro_batch_tokens": 1, "max_num_seqs": 1}
    seconds = {"rollout": 1.0, "reward": 0.0, "update": 1.0}
    step = step_metrics(1, groups, GradientStats(0.0, 0.0, 0), False, True, seconds, **state).to_record()
    line = evaluate_groups(groups, 1, "test").to_record()
    for name, share in EXPECTED_RATES.items():
        assert step[name] == line[name] == pytest.approx(share)


def test_find_reflections_keeps_the_order_of_words() -> None:
    assert find_reflections("Wait; RECHECK, then try\n again, wait") == {
        "a": ["recheck", "try again"],
        "b": ["recheck"],
        "c": ["wait", "wait"],
    }
    assert find_reflections("howeverwait") == {"a": [], "b": [], "c": []}


def test_reflection_rates_are_shares_of_texts() -> None:
    assert reflection_rates(["Wait, wait", "try again", "no", "however"]) == {"a": 0.25, "b": 0.0, "c": 0.5}
    assert reflection_rates([]) == {"a": 0, "b": 0, "c": 0}


def test_reflection_lists_are_the_published_ones() -> None:
    assert len(REFLECTION_LISTS["a"]) == 11
    assert set(REFLECTION_LISTS["b"]) - set(REFLECTION_LISTS["a"]) == {
        "reassess",
        "reconsider",
        "reanalyze",
        "double-check",
        "verify again",
    }
    assert set(REFLECTION_LISTS["a"]) - set(REFLECTION_LISTS["b"]) == {"try again"}
