"""Ask one question of a model; for a run, of the untrained and the trained model side by side."""

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
    """The greedy response of a model, or of a run's untrained and trained models in that order.

    Each entry has `model` (a label) and `answer` (the response).
    """
    config = trained_config(model_or_run, load_config("quickstart"))
    models = [("answer", config)]
    if run_exists(model_or_run):
        models = [("untrained", find_run(model_or_run).config), ("trained", config)]
    return [{"model": label, "answer": _respond(config, question)} for label, config in models]


def show_answers(question: str, answers: list[dict[str, str]]) -> None:
    """Print the responses side by side."""
    table = Table(title=Text(harmless(question)), title_justify="left", show_lines=True)
    for entry in answers:
        table.add_column(entry["model"], ratio=1, overflow="fold")
    table.add_row(*(Text(harmless(entry["answer"]).strip()) for entry in answers))
    Console(highlight=False).print(table)


def _respond(config: Config, question: str) -> str:
    """The assistant's response, its prefill included."""
    model = config.model
    policy = load_policy(model.name, model.dtype, model.device, model.trust_remote_code)
    prompt = PromptBuilder(policy.tokenizer, config.prompt)(question)
    engine = make_engine(config.rollout.engine, policy)
    greedy = Sampling(samples=1, max_new_tokens=config.rollout.max_new_tokens, temperature=0.0)
    return prompt.prefill + engine.generate([prompt], greedy, seed=0)[0][0].text
