"""Put the tables of results/*.md into README.md and results.md, where these name them.

python docs/results.py
"""

import re
from pathlib import Path

DOCS = Path(__file__).parent
PAGES = (DOCS.parent / "README.md", DOCS / "results.md")
INCLUDED = re.compile(r"(<!-- (results/\S+\.md) -->\n).*?(<!-- end -->)", re.DOTALL)


def included(text: str) -> str:
    """A page with each table as its file has it now."""
    return INCLUDED.sub(lambda m: m[1] + (DOCS / m[2]).read_text(encoding="utf-8") + m[3], text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(included(page.read_text(encoding="utf-8")), encoding="utf-8")
