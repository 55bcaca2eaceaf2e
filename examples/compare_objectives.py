"""Train several objectives with the same seeds and compare what they learn.

    python examples/compare_objectives.py --presets reinforce-lite grpo rloo --seeds 0 1 2 --steps 24
    python examples/compare_objectives.py --plot curves.png         # needs matplotlib

Runs are kept under runs/ and finished ones are not repeated, so a comparison that was stopped continues, and
more seeds or presets can be added. How to read it: all runs start from the same model and are tested on the
same problems. A run's interval covers the choice of the test problems, not of the seed; seeds of one preset
often differ by as much as presets do. A difference is worth reporting where every seed of one preset is above
every seed of the other, and even then try fresh seeds first.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import reinforce_lite as rl
from reinforce_lite.config import load_config
from reinforce_lite.runlog.run import Run

Runs = dict[str, list[Run]]
"""The runs of each preset, one a seed."""


def compare(recipe: str, presets: Sequence[str], seeds: Sequence[int], overrides: Mapping[str, Any]) -> Runs:
    """Train each preset with each seed. The seed decides problems and sampling, so they are paired."""
    runs: Runs = {preset: [] for preset in presets}
    adapts = load_config(recipe, overrides).adapter.rank > 0
    base = rl.load_base(recipe, overrides) if adapts else None  # adapters are trained over one loaded model
    for seed in seeds:  # outermost: stopped early, there is a whole comparison of fewer seeds
        for preset in presets:
            name = f"compare-{preset}-{seed}"
            options = {**overrides, "objective.preset": preset, "train.seed": seed}
            resume = Path("runs", name, "config.toml").exists()
            runs[preset].append(rl.train(recipe, options, run=name, resume=resume, base=base))
    return runs


def table(runs: Runs, seeds: Sequence[int]) -> str:
    """A line for each run, with strict accuracy and its 95% interval, and the mean of each preset."""
    lines = [f"{'preset':<16}{'seed':>6}  {'before':<18}{'after':<18}"]
    for preset, of_preset in runs.items():
        for seed, run in zip(seeds, of_preset, strict=True):
            lines.append(f"{preset:<16}{seed:>6}  {accuracy(run.before):<18}{accuracy(run.after):<18}")
        before = fmean(run.before["strict"] for run in of_preset)
        after = fmean(run.after["strict"] for run in of_preset)
        lines.append(f"{preset:<16}{'mean':>6}  {before:<18.1%}{after:.1%}")
    return "\n".join(line.rstrip() for line in lines)


def accuracy(result: Mapping[str, Any]) -> str:
    """Such as 68.0% (61-74): strict accuracy and its 95% interval."""
    low, high = result["strict_interval"]
    return f"{result['strict']:.1%} ({100 * low:.0f}-{100 * high:.0f})"


def plot(runs: Runs, file: Path) -> None:
    """The training reward at each step, the mean over seeds, of each preset."""
    import matplotlib.pyplot as plt  # optional: only --plot needs it

    figure, axes = plt.subplots()
    for preset, of_preset in runs.items():
        curves = zip(*([line["reward"] for line in run.steps] for run in of_preset), strict=True)
        means = [fmean(rewards) for rewards in curves]
        axes.plot(range(1, len(means) + 1), means, label=preset)
    axes.set(xlabel="step", ylabel="reward (mean over seeds)")
    axes.legend()
    figure.savefig(file)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train every preset with every seed, and print the table."""
    parser = argparse.ArgumentParser(description="Train several objectives with the same seeds.")
    parser.add_argument("--recipe", default="quickstart", help="a shipped recipe or a TOML file")
    parser.add_argument("--presets", nargs="+", default=["reinforce-lite", "grpo", "rloo"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--model", help="by default the recipe's")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves of training reward")
    options = parser.parse_args(arguments)
    overrides = {"train.steps": options.steps} | ({"model.name": options.model} if options.model else {})
    runs = compare(options.recipe, options.presets, options.seeds, overrides)
    print(table(runs, options.seeds))
    if options.plot:
        plot(runs, options.plot)
        print(f"curves: {options.plot}")


if __name__ == "__main__":
    main()
