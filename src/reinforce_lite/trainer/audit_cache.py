"""Keep an audit for the run that follows, which then need not sample its first step again.

    CACHE/audits/KEY.json     the SHA-256 of what follows, and the audit as JSON

The audit begins with the questions of a run's first step, asked as the recipe does and with that step's seed.
So a run with the same key takes the completions of its first step from the audit: on a CPU they are the same,
bit for bit. The key is a hash of all that they depend on. A file that can't be used costs a warning, and
nothing else.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import torch

from reinforce_lite.models.embedded import cache_folder
from reinforce_lite.models.policy import Policy
from reinforce_lite.pipeline import Pipeline
from reinforce_lite.rollout.selection import epoch_problems
from reinforce_lite.runlog.records import Record
from reinforce_lite.types import Completion, Problem
from reinforce_lite.utils.atomic import clean_leftovers, write_atomically
from reinforce_lite.utils.environment import describe_machine
from reinforce_lite.utils.secrets import mask_all
from reinforce_lite.utils.seeding import derive_seed
from reinforce_lite.utils.tensors import hash_tensors
from reinforce_lite.utils.text import one_line_error

logger = logging.getLogger(__name__)

KEPT = 8
"""Audits in the cache; the oldest are removed."""
ANY_SELECTION = {"selection", "refill"}
"""Keys of [rollout] that an audit does not depend on."""


@dataclass(frozen=True, slots=True)
class KeptAudit:
    """An audit, and the completions of a run's first step."""

    record: Record
    """What `audit --json` prints."""
    seed: int
    """With which the completions were sampled."""
    problem_ids: tuple[str, ...]
    completions: tuple[tuple[Completion, ...], ...]
    """Of each problem."""
    seconds: float
    """That sampling them took."""

    def completions_of(self, problems: Sequence[Problem], seed: int) -> list[list[Completion]] | None:
        """The completions that sampling would give; None for other problems or another seed."""
        is_same = (seed, *(p.id for p in problems)) == (self.seed, *self.problem_ids)
        return [list(group) for group in self.completions] if is_same else None


def first_step(pipeline: Pipeline) -> tuple[list[Problem], int]:
    """The questions and the seed of the first step of a run that selects by shuffling."""
    config = pipeline.config
    problems = epoch_problems(
        pipeline.problems("train"), 0, config.rollout.prompts_per_step, config.train.seed
    )
    return problems, derive_seed(config.train.seed, "rollout", 1)


def keep_audit(kept: KeptAudit, pipeline: Pipeline, data: str, reward: Mapping[str, str]) -> None:
    """Write an audit into the cache. `data` and `reward` are the task's fingerprint and reward sources."""
    try:
        text = json.dumps(asdict(kept), allow_nan=False).encode()
        if mask_all(values := json.loads(text)) != values:
            raise ValueError("they contain a secret from an environment variable")
        _folder().mkdir(parents=True, exist_ok=True)
        clean_leftovers(_folder())
        write_atomically(
            _file(pipeline, data, reward), hashlib.sha256(text).hexdigest().encode() + b"\n" + text
        )
        for old in sorted(_folder().glob("*.json"), key=lambda file: file.stat().st_mtime_ns)[:-KEPT]:
            old.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        logger.warning("the audit's samples are not kept for a run: %s", one_line_error(error))


def find_audit(pipeline: Pipeline, data: str, reward: Mapping[str, str]) -> KeptAudit | None:
    """The audit of this recipe, if there is one in the cache."""
    try:
        if not any(_folder().glob("*.json")):
            return None
        file = _file(pipeline, data, reward)
        return _read(file.read_bytes()) if file.exists() else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("an audit in %s is ignored: %s", _folder(), one_line_error(error))
        return None


def _read(content: bytes) -> KeptAudit:
    """Raises ValueError, KeyError or TypeError for content that `keep_audit` did not write."""
    digest, _, text = content.partition(b"\n")
    if hashlib.sha256(text).hexdigest().encode() != digest:
        raise ValueError("its checksum does not match")
    values = json.loads(text)
    completions = tuple(
        tuple(
            Completion(**c | {"token_ids": tuple(c["token_ids"]), "logprobs": tuple(c["logprobs"])})
            for c in group
        )
        for group in values["completions"]
    )
    ids = tuple(values["problem_ids"])
    return KeptAudit(values["record"], values["seed"], ids, completions, values["seconds"])


def _folder() -> Path:
    return cache_folder() / "audits"


def _file(pipeline: Pipeline, data: str, reward: Mapping[str, str]) -> Path:
    """Where the audit of this recipe, model, data and machine is kept."""
    config, policy = pipeline.config, pipeline.policy
    problems, seed = first_step(pipeline)
    machine = describe_machine(policy.device, policy.dtype)
    parts = {
        "config": config.model_dump(
            mode="json",
            include={"model": True, "adapter": True, "task": True, "prompt": True, "rollout": True},
            exclude={"prompt": {"date"}, "rollout": ANY_SELECTION},  # "prompts" have the date that is printed
        ),
        "longest": config.max_sequence_tokens,  # decides on the forward pass
        "seed": seed,
        "recorded_temperature": pipeline.sampling().recorded_temperature,
        "prompts": [(p.id, pipeline.prompt_builder(p.question).token_ids) for p in problems],
        "data": data,
        "reward": dict(reward),
        "weights": weights_digest(policy),
        "threads": torch.get_num_threads(),  # decide on rounding, as does the rest
        "machine": {k: machine.get(k) for k in ("system", "processor", "gpu", "versions", "device", "dtype")},
    }
    return _folder() / f"{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]}.json"


def weights_digest(policy: Policy) -> str:
    """A hash of the first numbers of each weight."""
    adapter = policy.adapter.named_parameters() if policy.adapter else ()
    return hash_tensors(chain(policy.model.named_parameters(), policy.model.named_buffers(), adapter))
