"""The models of a run on the disk: model/, best/ and adapter/.

`export_model` writes one from a checkpoint, without training.
"""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import torch

from reinforce_lite.config import override_config
from reinforce_lite.engines.base import OnProgress
from reinforce_lite.errors import ReinforceLiteError, UsageError, explain_file_errors
from reinforce_lite.learner.updater import load_trained_weights
from reinforce_lite.models.embedded import EMBEDDED_NAME
from reinforce_lite.models.loading import quiet_transformers
from reinforce_lite.models.older_readers import add_tokenizer_keys
from reinforce_lite.models.policy import Policy, save_policy, write_texts
from reinforce_lite.pipeline import Pipeline, PromptedPolicy, load_configured_policy
from reinforce_lite.rollout.prompts import PromptBuilder
from reinforce_lite.runlog.json_files import STEP_KEY
from reinforce_lite.runlog.records import Record
from reinforce_lite.runlog.run import Run
from reinforce_lite.trainer.card_metadata import Library, hub_name, is_local
from reinforce_lite.trainer.checkpoint import Checkpoint, check_base, checkpoint_steps, load_checkpoint
from reinforce_lite.trainer.model_card import explaining_files
from reinforce_lite.types import NO_PERMISSIONS, Permissions
from reinforce_lite.utils.atomic import remove_folder, replace_folder
from reinforce_lite.utils.memory import release_cached_memory
from reinforce_lite.utils.paths import expand_home
from reinforce_lite.utils.text import one_line_error

logger = logging.getLogger(__name__)

Dtype = Literal["bfloat16", "float32"]
"""In which a model can be exported: both have the range of every weight."""
MERGE_PROBLEMS = 50
"""Test problems on which the merged model is compared with the adapter."""
TRIAL = ".trial-save.incomplete"  # a name that the next start cleans up


def save_model(
    run: Run,
    folder: str,
    trained: PromptedPolicy,
    step: int,
    evals: Sequence[Record],
    *,
    miniature: bool = False,
    dtype: torch.dtype | None = None,
) -> None:
    """Write model/ or best/ of a run, with its prompt and a card that shows these evaluations; see
    `save_policy`.

    With model/ goes adapter/, if there is one. An absolute `folder` may be anywhere.
    """
    policy, command = trained.policy, run.command
    saved_dtype = str(dtype or policy.dtype).removeprefix("torch.")
    measured_dtype = run.machine.get("dtype", saved_dtype)

    def texts(library: Library) -> dict[str, str]:
        return explaining_files(trained, evals, step, command, library, saved_dtype, measured_dtype)

    save_policy(policy, run.path / folder, texts("transformers"), miniature, dtype, {STEP_KEY: step})
    if folder == "model" and policy.adapter:
        _save_adapter(policy, run.path / "adapter", texts("peft"))


def export_model(
    run: Run,
    step: int | None = None,
    to: str = "",
    dtype: Dtype | None = None,
    permissions: Permissions = NO_PERMISSIONS,
) -> tuple[Path, int]:
    """Write the model of a checkpoint, by default of the last, and return its folder and step.

    The folder is model/, next to which goes adapter/ if there is one, or `to`, which can be written while the
    run trains. An adapter is merged. The weights have the run's dtype, or `dtype`. The task is not loaded,
    and everything is done on the CPU.
    Raises UsageError for a folder that is not empty and for a step without an intact checkpoint, FileError
    where a file can't be read or written.
    """
    saved_step = _saved_step(run, step)
    folder = expand_home(to).absolute() if to else run.path / "model"
    _refuse_filled(folder)
    checkpoint = load_checkpoint(run.path / "checkpoints", saved_step)
    with nullcontext() if to else _locked(run):
        trained = _load_trained(run, checkpoint, dtype, permissions)
        converted = getattr(torch, dtype) if dtype else None
        save_model(run, str(folder) if to else "model", trained, checkpoint.step, run.evals, dtype=converted)
    return folder, checkpoint.step


def _refuse_filled(folder: Path) -> None:
    with explain_file_errors("read", folder):
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise UsageError(f"{folder} exists and is not empty", "name another folder with --to")
        if folder.exists() and Path.cwd().is_relative_to(folder.resolve()):  # a shell would lose its folder
            raise UsageError(f"{folder} is the current folder", "name another folder with --to")


def _saved_step(run: Run, step: int | None) -> int:
    steps = checkpoint_steps(run.path / "checkpoints")
    if not steps:
        there = f"its model is in {run.path / 'model'}"
        raise UsageError(
            f"the run {run.name} has no checkpoint to export", there if run.has_model else run.model_hint
        )
    if step is not None and step not in steps:
        there = ", ".join(map(str, steps))
        raise UsageError(f"step {step} of {run.name} has no checkpoint", f"these steps have one: {there}")
    return steps[-1] if step is None else step


@contextmanager
def _locked(run: Run) -> Iterator[None]:
    try:
        run.lock()
    except UsageError as error:
        error.remedy = "wait for it, or name another folder with --to"
        raise
    try:
        yield
    finally:
        run.unlock()


def _load_trained(
    run: Run, checkpoint: Checkpoint, dtype: Dtype | None, permissions: Permissions
) -> PromptedPolicy:
    """The run's policy with the weights of a checkpoint, without a task, engine or optimizer."""
    changes = {"model.device": "cpu", "model.dtype": run.machine.get("dtype", run.config.model.dtype)}
    config = override_config(run.config, changes)
    policy = load_configured_policy(config, permissions, keep_float32=False)
    if policy.adapter:
        check_base(policy, policy.adapter.base_hash(), checkpoint.meta)
    if dtype and not policy.adapter:
        policy.model.to(getattr(torch, dtype))  # first: a checkpoint's weights may be finer than the run's
    load_trained_weights(policy, checkpoint.tensors)
    return PromptedPolicy(run.config, policy, PromptBuilder(policy.tokenizer, config.prompt))


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


def _save_adapter(policy: Policy, target: Path, texts: Mapping[str, str]) -> None:
    """Write a PEFT folder, with the tokenizer and `texts`.

    A base in a local folder is named by its absolute path.
    """
    assert policy.adapter is not None
    name = str(expand_home(policy.name).resolve()) if is_local(policy.name) else hub_name(policy.name)
    with explain_file_errors("write", target), replace_folder(target) as temporary, quiet_transformers():
        policy.adapter.save(temporary, name, policy.name if policy.name == EMBEDDED_NAME else "")
        policy.tokenizer.save_pretrained(temporary)
        add_tokenizer_keys(temporary)
        write_texts(temporary, texts)


def compares_merged(policy: Policy) -> bool:
    """Whether `merge_adapter` samples: not over a base that others use, or in 8 bits."""
    return policy.adapter is not None and not (policy.is_shared or policy.is_int8)


def merge_seconds(policy: Policy, test_seconds: float, problems: int) -> dict[str, float]:
    """What `merge_adapter` is expected to take, by the name of that duration, from the time of an evaluation
    of so many test problems; empty where it samples nothing.
    """
    sampled = 2 * min(1.0, MERGE_PROBLEMS / problems)
    return {"merge": sampled * test_seconds} if compares_merged(policy) else {}


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
    pipeline.policy.version += 1
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
    holds_best = run.summary.get("best_step") == step > 0 and run.model_step in (None, step)
    if holds_best and model.is_dir() and not best.is_dir():
        with explain_file_errors("write", best), replace_folder(best) as temporary:
            shutil.copytree(model, temporary, dirs_exist_ok=True)


def remove_best(run: Run) -> None:
    """Remove best/: the last step is the best, or no step is better than the untrained model."""
    with explain_file_errors("write", run.path / "best"):
        remove_folder(run.path / "best")
