"""Ask one question of a model; for a run, of the untrained and the trained model side by side."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reinforce_lite.config import Config
from reinforce_lite.engines import make_engine
from reinforce_lite.pipeline import load_configured_policy, stop_strings
from reinforce_lite.rollout.prompts import PromptBuilder
from reinforce_lite.runlog.run import existing_run, trained_config
from reinforce_lite.types import NO_PERMISSIONS, Permissions, Sampling
from reinforce_lite.utils.text import harmless


def ask_model(
    model_or_run: str, question: str, permissions: Permissions = NO_PERMISSIONS
) -> list[dict[str, str]]:
    """The greedy response of a model, or of a run's untrained and trained models in that order.

    Each entry has `model` (a label, for an unfinished run with its step) and `answer` (the response).
    """
    config = trained_config(model_or_run)
    run = existing_run(model_or_run)
    trained = "trained" if run is None or run.is_finished else run.progress
    models = [("untrained", run.config), (trained, config)] if run else [("answer", config)]
    return [{"model": label, "answer": _respond(config, question, permissions)} for label, config in models]


def show_answers(question: str, answers: list[dict[str, str]]) -> None:
    """Print the responses side by side."""
    table = Table(title=Text(harmless(question)), title_justify="left", show_lines=True)
    for entry in answers:
        table.add_column(entry["model"], ratio=1, overflow="fold")
    table.add_row(*(Text(harmless(entry["answer"]).strip()) for entry in answers))
    Console(highlight=False, markup=False).print(table)


def _respond(config: Config, question: str, permissions: Permissions) -> str:
    """The assistant's response, its prefill included."""
    policy = load_configured_policy(config, permissions)
    prompt = PromptBuilder(policy.tokenizer, config.prompt)(question)
    engine = make_engine(config.rollout.engine, policy)
    greedy = Sampling(1, config.rollout.max_new_tokens, temperature=0.0, stop=stop_strings(config))
    return prompt.prefill + engine.generate([prompt], greedy, seed=0)[0][0].text
