"""The models of a run on the disk: model/, best/ and adapter/."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from reinforce_lite.engines.base import OnProgress
from reinforce_lite.errors import ReinforceLiteError, UsageError, explain_file_errors
from reinforce_lite.models.embedded import EMBEDDED_NAME
from reinforce_lite.models.policy import Policy, save_policy
from reinforce_lite.pipeline import Pipeline
from reinforce_lite.runlog.records import Record
from reinforce_lite.runlog.run import Run
from reinforce_lite.trainer.model_card import hub_name, model_card
from reinforce_lite.utils.atomic import remove_folder, replace_folder
from reinforce_lite.utils.memory import release_cached_memory
from reinforce_lite.utils.paths import expand_home
from reinforce_lite.utils.text import one_line_error

logger = logging.getLogger(__name__)

TRIAL = ".trial-save.incomplete"  # a name that the next start cleans up


def save_model(
    run: Run, folder: str, pipeline: Pipeline, step: int, evals: Sequence[Record], miniature: bool = False
) -> None:
    """Write model/ or best/ of a run, with a card that shows these evaluations; see `save_policy`.

    With model/ goes adapter/, if there is one.
    """
    card = model_card(pipeline.config, evals, step, run.first_command())
    save_policy(pipeline.policy, run.path / folder, card, miniature)
    if folder == "model" and pipeline.policy.adapter:
        _save_adapter(pipeline.policy, run.path / "adapter", card)


def trial_save(run: Run, pipeline: Pipeline) -> None:
    """Save a miniature of the model and remove it, so that what would fail after hours fails now.

    This finds a folder that can't be written, a config, generation config or tokenizer that does not
    serialize, and weights that share memory in a way that safetensors refuses. It does not find a disk that
    is too small for the weights (`preflight.check_disk_space`), nor a fault in putting the weights of a
    mixture of experts back into the form of their original files.

    Raises ReinforceLiteError when the folder can't be written, UsageError when the model can't be saved.
    """
    try:
        save_model(run, TRIAL, pipeline, 0, [], miniature=True)
    except ReinforceLiteError:
        raise
    except Exception as error:  # what the model's own code raises
        raise UsageError(
            f"{pipeline.policy.name} could not be saved after training: {one_line_error(error)}",
            "correct the file of the model that this names, or choose another model",
        ) from error
    finally:
        shutil.rmtree(run.path / TRIAL, ignore_errors=True)


def _save_adapter(policy: Policy, target: Path, card: str) -> None:
    """Write a PEFT folder. A base in a local folder is named by its absolute path."""
    assert policy.adapter is not None
    base = expand_home(policy.name)
    name = str(base.resolve()) if base.is_dir() else hub_name(policy.name)
    with explain_file_errors("write", target), replace_folder(target) as temporary:
        policy.adapter.save(temporary, name, policy.name if policy.name == EMBEDDED_NAME else "")
        text = card.replace("library_name: transformers", "library_name: peft")
        (temporary / "README.md").write_text(text, encoding="utf-8")


def compares_merged(policy: Policy) -> bool:
    """Whether `merge_adapter` samples: not over a base that others use, or in 8 bits."""
    return policy.adapter is not None and not (policy.is_shared or policy.is_int8)


def merge_adapter(pipeline: Pipeline, progress: OnProgress) -> dict[str, int]:
    """Merge the adapter into the policy's weights; how many greedy completions of test problems that changes.

    Rounding alone can change a token, in bfloat16 more often. Nothing is merged and compared over a base in 8
    bits, since the device may be too small for that, or over one that other runs use too.
    """
    adapter, problems = pipeline.policy.adapter, pipeline.problems("test", MERGE_PROBLEMS)
    assert adapter is not None
    size = {
        "rank": adapter.config.rank,
        "parameters": sum(p.numel() for p in pipeline.policy.trained_parameters().values()),
    }
    if not compares_merged(pipeline.policy):
        return size
    before = pipeline.eval_completions(problems, progress)
    release_cached_memory()
    adapter.merge()
    after = pipeline.eval_completions(problems, progress)
    pairs = zip(before, after, strict=True)
    differing = sum(a[0].text != b[0].text for (_, a), (_, b) in pairs)
    if differing:
        logger.warning(
            "model/ is merged: %d of %d greedy completions differ from those with adapter/, by rounding",
            *(differing, len(before)),
        )
    return size | {"merged_completions": len(before), "merged_differences": differing}


def is_best(run: Run, step: int, result: Record) -> bool:
    """Whether this validation beats every earlier one, the untrained model's included."""
    earlier = [e["reward"] for e in run.evals if e["split"] == "validation"]
    return step > 0 and all(result["reward"] > reward for reward in earlier)


def keep_best(run: Run, step: int) -> None:
    """Before a finished run continues: its model/ will be replaced, and may be the best so far."""
    model, best = run.path / "model", run.path / "best"
    if run.summary.get("best_step") == step > 0 and model.is_dir() and not best.is_dir():
        with explain_file_errors("write", best), replace_folder(best) as temporary:
            shutil.copytree(model, temporary, dirs_exist_ok=True)


def remove_best(run: Run) -> None:
    """Remove best/: the last step is the best, or no step is better than the untrained model."""
    with explain_file_errors("write", run.path / "best"):
        remove_folder(run.path / "best")


MERGE_PROBLEMS = 50
"""Test problems on which the merged model is compared with the adapter."""
