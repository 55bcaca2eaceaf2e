"""What the pipeline asks of an engine, from the sections of a config."""

from typing import Any

import pytest

from helpers.paths import RECIPE
from helpers.tiny import END, ToyTask
from reinforce_lite.api import resolve_config
from reinforce_lite.config import load_config, override_config
from reinforce_lite.engines.scripted import ScriptedEngine
from reinforce_lite.pipeline import Pipeline, build_pipeline
from reinforce_lite.tasks import stop_strings
from reinforce_lite.tasks.stopping import HASH_LINE
from reinforce_lite.types import Problem, Sampling


def built(settings: dict[str, Any], **overrides: Any) -> Pipeline:
    return build_pipeline(load_config(RECIPE, settings | overrides), ToyTask())


@pytest.mark.parametrize(
    ("overrides", "stop"),
    [
        ({}, ("</answer>",)),
        ({"task.answer_format": "boxed"}, ()),
        ({"task.answer_format": "hash"}, (HASH_LINE,)),
        ({"rollout.stop": ["THE END", "\n\n"]}, ("THE END", "\n\n")),
        ({"task.answer_format": "hash", "rollout.stop": []}, ()),
    ],
)
def test_stops_are_those_of_the_answer_format_unless_given(
    settings: dict[str, Any], overrides: dict[str, Any], stop: tuple[str, ...]
) -> None:
    pipeline = built(settings, **overrides)
    assert [sampling.stop for sampling in (pipeline.sampling(), *eval_samplings(pipeline))] == [stop] * 3


def eval_samplings(pipeline: Pipeline) -> list[Sampling]:
    """How a greedy evaluation samples, and one of four samples."""
    seen: list[Sampling] = []

    class Recording(ScriptedEngine):
        def generate(self, prompts: Any, sampling: Sampling, *rest: Any) -> Any:
            seen.append(sampling)
            return super().generate(prompts, sampling, *rest)

    pipeline.engine = Recording(pipeline.policy.tokenizer, END, lambda prompt, sample: "7")
    pipeline.eval_groups(pipeline.problems("test", 1))
    pipeline.eval_groups(pipeline.problems("test", 1), samples=4)
    return seen


def test_repetition_detection_can_be_switched_off(settings: dict[str, Any]) -> None:
    """In training and evaluations alike."""
    assert built(settings).sampling().repetition_detection
    off = built(settings, **{"rollout.repetition_detection": False})
    assert not any(sampling.repetition_detection for sampling in (off.sampling(), *eval_samplings(off)))


def test_a_task_of_your_own_has_no_stop_by_default(settings: dict[str, Any]) -> None:
    """Its reward may read what comes after an answer block."""
    assert stop_strings(resolve_config(RECIPE, settings, ToyTask())) == ()
    config = load_config(RECIPE, settings | {"task.name": "./mine.py"})
    assert stop_strings(config) == ()
    assert stop_strings(override_config(config, {"rollout.stop": ["END"]})) == ("END",)


def test_a_completion_is_graded_up_to_its_stop(settings: dict[str, Any]) -> None:
    pipeline = built(settings, **{"eval.max_new_tokens": 60})
    text = "7</think><answer>7</answer> and <answer>8</answer>"
    pipeline.engine = ScriptedEngine(pipeline.policy.tokenizer, END, lambda prompt, sample: text)
    (group,) = pipeline.eval_groups([Problem("a", "2+5?", "7")])
    (rollout,) = group.rollouts
    assert rollout.response == "<think>7</think><answer>7</answer>"
    assert len(rollout.completion.token_ids) == len("7</think><answer>7</answer>")  # a token is a byte
    assert not rollout.completion.truncated


def test_worked_examples_in_another_format_than_the_reward_are_told(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The tiny recipe's example holds an answer block."""
    builtin = settings | {"task.name": "wordmath", "prompt.max_tokens": 400}
    build_pipeline(load_config(RECIPE, builtin), ToyTask())
    assert "worked examples" not in caplog.text
    build_pipeline(load_config(RECIPE, builtin | {"task.answer_format": "boxed"}), ToyTask())
    assert "1 of 1 worked examples" in caplog.text
    caplog.clear()
    build_pipeline(
        load_config(RECIPE, builtin | {"task.name": "./mine.py", "task.answer_format": "boxed"}), ToyTask()
    )
    assert "worked examples" not in caplog.text


@pytest.mark.parametrize(
    ("answer_format", "instruction", "told"),
    [
        (
            "boxed",
            "Return it in <answer> </answer> tags.",
            "asks for the format 'tags', but the reward reads",
        ),
        ("tags", "Put it within \\boxed{}.", "asks for the format 'boxed'"),
        ("hash", "Put it within \\boxed{}, then after ####.", ""),
        ("boxed", "Reason step by step.", ""),
    ],
)
def test_a_prompt_that_asks_for_another_format_than_the_reward_is_told(
    settings: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    answer_format: str,
    instruction: str,
    told: str,
) -> None:
    values = {"task.answer_format": answer_format, "prompt.instruction": instruction}
    none = {"prompt.examples": [], "prompt.prefill": "", "prompt.max_tokens": 400}
    build_pipeline(load_config(RECIPE, settings | {"task.name": "wordmath"} | none | values), ToyTask())
    assert told in caplog.text
    assert bool(told) == ("asks for the format" in caplog.text)
