"""The README's table of seeds, from run directories.

python docs/results.py runs/seed-0 runs/seed-1 runs/seed-2
"""

import sys
from typing import Any

from reinforce_lite.runlog import find


def cell(found: dict[str, Any], kind: str) -> str:
    low, high = found[f"{kind}_interval"]
    return f"{found[kind]:.1%} ({100 * low:.0f}–{100 * high:.0f})"


def main(names: list[str]) -> None:
    print("| seed | strict before | strict after | lenient before | lenient after | p (paired) | minutes |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in names:
        run = find(name)
        evals = run.summary["evals"]
        cells = [cell(evals[when], kind) for kind in ("strict", "lenient") for when in ("before", "after")]
        worst = max(evals["paired_p"].values())
        minutes = run.summary["seconds"] / 60
        print(f"| {run.config.train.seed} | {' | '.join(cells)} | {worst:.0e} | {minutes:.1f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
