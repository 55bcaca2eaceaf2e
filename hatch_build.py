"""The README as a package index shows it, where relative links would be dead.

With a `Repository` among the project's urls they lead there. Without one only their text is left, and images
are omitted. Hatchling, which builds the package, runs this file.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE = re.compile(r"(!?)\[([^\]]+)\]\((?!https?:|#)([^)\s]+)\)")


def index_readme(text: str, repository: str = "") -> str:
    """Markdown without relative links."""

    def absolute(link: re.Match[str]) -> str:
        image, label, target = link.groups()
        if not repository:
            return "" if image else label
        return f"{image}[{label}]({repository}/{'raw' if image else 'blob'}/main/{target})"

    return RELATIVE.sub(absolute, text)


class ReadmeHook(MetadataHookInterface):
    """Sets the package's `readme`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called with the [project] table."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        text = index_readme(text, metadata.get("urls", {}).get("Repository", ""))
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
