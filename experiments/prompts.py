"""Which prompt suits the untrained model best? Greedy accuracy of several on training problems.

    python experiments/prompts.py

The quickstart starts from the best of them, so that its gain is not made by a poor start. Training
problems are used, so nothing is chosen on the test problems.
"""

from typing import Any

from reinforce_lite import config, evaluation, road
from reinforce_lite.prompts import Prompter

N = 200
LONG = "Show your work in <think> </think> tags, then return the final number in <answer> </answer> tags."
SHORT = "Think in <think> </think>, then give the number in <answer> </answer>."


def main() -> None:
    quickstart = config.load("quickstart")
    stations = road.build(quickstart)
    plus, minus, times, over = quickstart.prompt.examples
    prompts: dict[str, dict[str, Any]] = {
        "instruction alone": {"instruction": LONG},
        "1 example (+), short instruction": {"examples": [plus], "instruction": SHORT},
        "2 examples (+ ×), no instruction": {"examples": [plus, times], "instruction": ""},
        "4 examples, no instruction": {"examples": [plus, minus, times, over], "instruction": ""},
        "4 examples, short instruction": {"examples": [plus, minus, times, over], "instruction": SHORT},
        "4 examples, begun with <think>": {
            "examples": [plus, minus, times, over],
            "instruction": "",
            "prefill": "<think>",
        },
        "4 examples in the other order": {"examples": [over, times, minus, plus], "instruction": ""},
    }
    problems = stations.problems("train", N)
    print(f"| prompt | strict | lenient | prompt tokens |\n| --- | --- | --- | --- |  ({N} problems)")
    for name, keys in prompts.items():
        stations.prompter = Prompter(stations.policy.tokenizer, config.Prompt(**keys))
        result = evaluation.evaluate(stations.answer(problems), None, "train")
        tokens = len(stations.prompter(problems[0].question).token_ids)
        print(f"| {name} | {result.strict:.1%} | {result.lenient:.1%} | {tokens} |", flush=True)


if __name__ == "__main__":
    main()
