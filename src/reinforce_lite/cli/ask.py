"""Show responses to a question; for a run, of the untrained and the trained model side by side."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reinforce_lite.utils.text import harmless


def show_answers(question: str, answers: list[dict[str, str]]) -> None:
    """Print the responses side by side."""
    table = Table(title=Text(harmless(question)), title_justify="left", show_lines=True)
    for entry in answers:
        table.add_column(entry["model"], ratio=1, overflow="fold")
    table.add_row(*(Text(harmless(entry["answer"]).strip()) for entry in answers))
    Console(highlight=False, markup=False).print(table)
