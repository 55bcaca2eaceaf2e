"""The tables of README.md and docs/results.md.

python docs/results.py                                       # put results/*.md into results.md
python docs/results.py runs/seed-0 runs/seed-1 runs/seed-2   # print the README's table of seeds
"""

import re
import sys
from pathlib import Path
from typing import Any

from reinforce_lite.runlog import find

KINDS = ("strict", "lenient")
DOCS = Path(__file__).parent
INCLUDED = re.compile(r"(<!-- (results/\S+\.md) -->\n).*?(<!-- end -->)", re.DOTALL)


def included(text: str) -> str:
    """results.md with each table as its file has it now."""
    return INCLUDED.sub(lambda m: m[1] + (DOCS / m[2]).read_text(encoding="utf-8") + m[3], text)


def cell(found: dict[str, Any], kind: str) -> str:
    """A dash where the task has no such verdict."""
    if found[kind] is None:
        return "–"
    low, high = found[f"{kind}_interval"]
    return f"{found[kind]:.1%} ({100 * low:.0f}–{100 * high:.0f})"


def larger_p(evals: dict[str, Any]) -> float:
    """The larger p-value of those verdicts that the task has."""
    return max(p for p in map(evals["paired_p"].get, KINDS) if p is not None)


def seeds(names: list[str]) -> None:
    print("| seed | strict before | strict after | lenient before | lenient after | p (paired) | minutes |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in names:
        run = find(name)
        evals = run.summary["evals"]
        cells = [cell(evals[when], kind) for kind in KINDS for when in ("before", "after")]
        minutes = run.summary["seconds"] / 60
        print(f"| {run.config.train.seed} | {' | '.join(cells)} | {larger_p(evals):.0e} | {minutes:.1f} |")


if __name__ == "__main__":
    if sys.argv[1:]:
        seeds(sys.argv[1:])
    else:
        page = DOCS / "results.md"
        page.write_text(included(page.read_text(encoding="utf-8")), encoding="utf-8")
