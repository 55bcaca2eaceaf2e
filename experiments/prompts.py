"""Which prompt suits the untrained model best? Greedy accuracy with several prompts on training problems.

    python experiments/prompts.py

The quickstart uses the best, so that its gain is not due to a poor start. Accuracy is measured on training
problems, so that nothing is chosen on the test problems.
"""

from typing import Any

from reinforce_lite.config import ExampleConfig, PromptConfig, load_config
from reinforce_lite.evaluation.evaluate import evaluate_groups
from reinforce_lite.pipeline import build_pipeline
from reinforce_lite.rollout.prompts import PromptBuilder

N = 200
LONG = "Show your work in <think> </think> tags, then return the final number in <answer> </answer> tags."
SHORT = "Think in <think> </think>, then give the number in <answer> </answer>."
SENTENCES = [
    "Tom has 3 + 4 = 7 apples.",
    "There are 12 - 5 = 7 birds.",
    "3 boxes hold 6 * 3 = 18 pens.",
    "Each friend gets 20 / 5 = 4 sweets.",
]


def main() -> None:
    """Print a table."""
    quickstart = load_config("quickstart")
    pipeline = build_pipeline(quickstart)
    plus, minus, times, over = quickstart.prompt.examples
    in_sentences = [
        ExampleConfig(
            question=e.question, answer=e.answer.replace(e.answer[7 : e.answer.index("</think>")], s)
        )
        for e, s in zip(quickstart.prompt.examples, SENTENCES, strict=True)
    ]
    prompts: dict[str, dict[str, Any]] = {
        "instruction alone": {"instruction": LONG},
        "1 example (+), short instruction": {"examples": [plus], "instruction": SHORT},
        "2 examples (+ ×), no instruction": {"examples": [plus, times], "instruction": ""},
        "4 examples, no instruction": {"examples": [plus, minus, times, over], "instruction": ""},
        "4 examples with sentences, no instruction": {"examples": in_sentences, "instruction": ""},
        "4 examples, short instruction": {"examples": [plus, minus, times, over], "instruction": SHORT},
        "4 examples, prefill <think>": {
            "examples": [plus, minus, times, over],
            "instruction": "",
            "prefill": "<think>",
        },
        "4 examples in the other order": {"examples": [over, times, minus, plus], "instruction": ""},
    }
    problems = pipeline.problems("train", N)
    print(f"| prompt | strict | lenient | prompt tokens |\n| --- | --- | --- | --- |  ({N} problems)")
    for name, keys in prompts.items():
        pipeline.prompt_builder = PromptBuilder(pipeline.policy.tokenizer, PromptConfig(**keys))
        result = evaluate_groups(pipeline.eval_groups(problems), None, "train")
        tokens = len(pipeline.prompt_builder(problems[0].question).token_ids)
        print(f"| {name} | {result.strict:.1%} | {result.lenient:.1%} | {tokens} |", flush=True)


if __name__ == "__main__":
    main()
