"""One question, answered by the trained model and by the untrained one beside it."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reinforce_lite import config, engines
from reinforce_lite.config import Config
from reinforce_lite.models import policy as models
from reinforce_lite.rollout.prompts import Prompter
from reinforce_lite.runlog import run as runlog
from reinforce_lite.types import Sampling
from reinforce_lite.utils.text import harmless


def answers(model_or_run: str, question: str) -> list[dict[str, str]]:
    """For a run two answers, untrained first; for any other model one. Each has `model` and `answer`."""
    settings = runlog.trained(model_or_run, config.load("quickstart"))
    asked = [("answer", settings)]
    if runlog.exists(model_or_run):
        asked = [("untrained", runlog.find(model_or_run).config), ("trained", settings)]
    return [{"model": name, "answer": _answer(c, question)} for name, c in asked]


def show(question: str, found: list[dict[str, str]]) -> None:
    """Print the answers side by side."""
    console = Console(highlight=False)
    table = Table(title=Text(harmless(question)), title_justify="left", show_lines=True)
    for one in found:
        table.add_column(one["model"], ratio=1)
    table.add_row(*(Text(harmless(one["answer"]).strip()) for one in found))
    console.print(table)


def _answer(settings: Config, question: str) -> str:
    """The assistant's whole greedy turn."""
    section = settings.model
    policy = models.load(section.name, section.dtype, section.device, section.trust_remote_code)
    prompt = Prompter(policy.tokenizer, settings.prompt)(question)
    engine = engines.make(settings.rollout.engine, policy)
    greedy = Sampling(samples=1, max_new_tokens=settings.rollout.max_new_tokens, temperature=0.0)
    return prompt.begun + engine.generate([prompt], greedy, seed=0)[0][0].text
