"""Show responses to a question; for a run, of the untrained and the trained model side by side."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reinforce_lite.utils.text import harmless


def show_responses(question: str, responses: list[dict[str, str]]) -> None:
    """Print the responses side by side."""
    table = Table(title=Text(harmless(question)), title_justify="left", show_lines=True)
    for entry in responses:
        table.add_column(entry["model"], ratio=1, overflow="fold")
    table.add_row(*(Text(harmless(entry["response"]).strip()) for entry in responses))
    Console(highlight=False, markup=False).print(table)
