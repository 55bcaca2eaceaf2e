"""One question, answered by the trained model and by the untrained one beside it."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reinforce_lite.config import Config, load_config
from reinforce_lite.engines import make_engine
from reinforce_lite.models.policy import load_policy
from reinforce_lite.rollout.prompts import PromptBuilder
from reinforce_lite.runlog.run import find_run, run_exists, trained_config
from reinforce_lite.types import Sampling
from reinforce_lite.utils.text import harmless


def ask_model(model_or_run: str, question: str) -> list[dict[str, str]]:
    """For a run two answers, untrained first; for any other model one. Each has `model` and `answer`."""
    config = trained_config(model_or_run, load_config("quickstart"))
    asked = [("answer", config)]
    if run_exists(model_or_run):
        asked = [("untrained", find_run(model_or_run).config), ("trained", config)]
    return [{"model": name, "answer": _answer(c, question)} for name, c in asked]


def show_answers(question: str, found: list[dict[str, str]]) -> None:
    """Print the answers side by side."""
    console = Console(highlight=False)
    table = Table(title=Text(harmless(question)), title_justify="left", show_lines=True)
    for one in found:
        table.add_column(one["model"], ratio=1)
    table.add_row(*(Text(harmless(one["answer"]).strip()) for one in found))
    console.print(table)


def _answer(config: Config, question: str) -> str:
    """The assistant's whole greedy turn."""
    model = config.model
    policy = load_policy(model.name, model.dtype, model.device, model.trust_remote_code)
    prompt = PromptBuilder(policy.tokenizer, config.prompt)(question)
    engine = make_engine(config.rollout.engine, policy)
    greedy = Sampling(samples=1, max_new_tokens=config.rollout.max_new_tokens, temperature=0.0)
    return prompt.prefill + engine.generate([prompt], greedy, seed=0)[0][0].text
