"""One update of the embedded model, every group live: seconds, with and without keeping freed memory.

python benchmarks/update.py                 # as in training
python benchmarks/update.py --give-back     # freed memory goes back to the system, glibc's default
"""

import sys
import time

import torch

from reinforce_lite import config, memory, road
from reinforce_lite.records import Completion, Group, Problem, Rollout, Verdict
from reinforce_lite.update import Updater

LENGTH = 32  # tokens of every answer


def main() -> None:
    if "--give-back" in sys.argv:
        memory.reuse_freed = lambda: None
    settings = config.load("quickstart")
    stations = road.build(settings)
    updater = Updater(stations.policy, settings.update, settings.rollout.temperature)
    torch.manual_seed(0)
    shape = (settings.rollout.prompts_per_step, settings.rollout.samples_per_prompt)
    groups = [random_group(stations, p, shape[1]) for p in stations.problems("train", shape[0])]
    weights = torch.randn(shape, dtype=torch.float64) / 4096
    for step in range(1, 4):
        start = time.perf_counter()
        gradient = updater.gradient(groups, weights)
        updater.apply(gradient, step)
        seconds = time.perf_counter() - start
        print(f"{seconds:.2f} s, {gradient.tokens} tokens, {gradient.tokens / seconds:.0f} tokens/s")


def random_group(stations: road.Road, problem: Problem, samples: int) -> Group:
    """Answers of random tokens: what they say does not matter here."""
    rollouts = []
    for _ in range(samples):
        ids = tuple(torch.randint(10, 40_000, (LENGTH,)).tolist())
        completion = Completion(ids, "", truncated=True, logprobs=(0.0,) * LENGTH)
        rollouts.append(Rollout(completion, "", 0.0, Verdict(False, None, ""), None))
    return Group(problem, stations.prompter(problem.question), tuple(rollouts))


if __name__ == "__main__":
    main()
