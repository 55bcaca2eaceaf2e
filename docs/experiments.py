"""Put the tables of results/*.md into experiments.md, where it names them.

python docs/experiments.py
"""

import re
from pathlib import Path

DOCS = Path(__file__).parent
PAGE = DOCS / "experiments.md"
TABLE = re.compile(r"(<!-- (results/\S+\.md) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(text: str) -> str:
    """The page's text with each table replaced by its file's content."""
    return TABLE.sub(lambda m: m[1] + (DOCS / m[2]).read_text(encoding="utf-8") + m[3], text)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
