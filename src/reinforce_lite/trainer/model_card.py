"""The files that explain a saved model: its card (README.md) and prompt.json.

The card shows how to use the model and how its accuracy was measured. No path of this machine is in it.
"""

import json
import shlex
from collections.abc import Sequence
from typing import Any

from reinforce_lite.config import DEFAULT_RECIPE, Config, flat_values, load_config, option_text
from reinforce_lite.models.adapter import resolve_adapter
from reinforce_lite.pipeline import PromptedPolicy
from reinforce_lite.runlog.records import Record
from reinforce_lite.tasks import TASK_NAMES, stop_strings
from reinforce_lite.tasks.stopping import HASH_LINE
from reinforce_lite.trainer.card_metadata import (
    Library,
    base_data,
    describe_data,
    hub_name,
    is_local,
    metadata,
)
from reinforce_lite.trainer.saved_prompt import FILE_NAME, saved_prompt
from reinforce_lite.utils.paths import without_folders, without_folders_in
from reinforce_lite.utils.program import NAME, package_version
from reinforce_lite.utils.secrets import mask
from reinforce_lite.utils.text import percent

_CARD = """---
{metadata}
---

# {base}, trained with Reinforce-Lite

- **Base model:** {base}
- **Trained:** {trained}
- **Data:** {data}
- **Objective:** {objective}, {samples} completions for each of {prompts} questions per step
- **Steps:** {steps}, seed {seed}
- **Command:** `{command}`

## Use

The model was trained with the prompt in `prompt.json`{examples}; use it with that prompt, since it responds
differently to others. In the folder of this file:

```python
{read_prompt}```

{generate}

The response is that of `reinforce-lite ask RUN`; in 16 bits rounding may change a token.

## Accuracy

{table}

Strict is the verdict that training pays for; lenient, on number tasks, asks for no format. A gain
in strict alone is format learning. Intervals are 95% (Wilson). Best constant is what one and the same
answer to all problems would reach.

Measured with Reinforce-Lite {version} in {dtype}: one greedy completion for each of the first problems of a
split, with the prompt in `prompt.json`. It ends at an end-of-sequence token, {ends}. To measure the
test split again, in the folder of this file:

{measure}
"""
_READ_PROMPT = """import json
{regular_expressions}from pathlib import Path

from transformers import AutoTokenizer

folder = "."
question = "Ann has 3 apples and buys 4 more. How many apples does she have now?"
prompt = json.loads(Path(folder, "prompt.json").read_text(encoding="utf-8"))
tokenizer = AutoTokenizer.from_pretrained(folder)
text = prompt["text"].replace(prompt["placeholder"], question)
inputs = tokenizer(text, add_special_tokens=prompt["add_special_tokens"], return_tensors="pt")
"""
_TRANSFORMERS = """```python
from transformers import AutoModelForCausalLM, GenerationConfig

model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
# Without the base's penalties, as in training
model.generation_config = GenerationConfig(eos_token_id=prompt["eos_token_ids"])
output = model.generate(
    inputs["input_ids"],
    attention_mask=inputs["attention_mask"],
    do_sample=False,
    max_new_tokens=prompt["max_new_tokens"],
    stop_strings=prompt["stop"] or None,
    tokenizer=tokenizer,
)
exact = {{"skip_special_tokens": True, "clean_up_tokenization_spaces": False}}
before, after = (tokenizer.decode(ids, **exact) for ids in (*inputs["input_ids"], *output))
completion = after[len(before) :]
for stop in prompt["stop"]:  # the last token may go beyond it
    completion = "".join(completion.partition(stop)[:2])
{end}print(prompt["prefill"] + completion)
```"""
_VLLM = """```python
from vllm import LLM, SamplingParams

params = SamplingParams(
    temperature=0,
    max_tokens=prompt["max_new_tokens"],
    stop=prompt["stop"],
    include_stop_str_in_output=True,
)
llm = LLM(model=folder, dtype="{dtype}")
[output] = llm.generate({{"prompt_token_ids": inputs["input_ids"][0].tolist()}}, params)
completion = output.outputs[0].text
{end}print(prompt["prefill"] + completion)
```"""
_END_AT_PATTERN = """if match := re.search(prompt["stop_pattern"], completion, re.MULTILINE):
    completion = completion[: match.end()]
"""
_ROUNDED = ", which for training and the accuracies below was rounded to 8 bits"
_GENERATE: dict[Library, str] = {
    "transformers": f"With transformers:\n\n{_TRANSFORMERS}\n\nOr with vLLM:\n\n{_VLLM}",
    "peft": "With transformers and peft, over the base that `adapter_config.json` names{rounded} (for vLLM "
    f"take the merged `model/`):\n\n{_TRANSFORMERS}",
}


def explaining_files(
    trained: PromptedPolicy,
    evals: Sequence[Record],
    step: int,
    command: str,
    library: Library,
    saved_dtype: str,
    measured_dtype: str,
) -> dict[str, str]:
    """README.md and prompt.json of the model of this step, with the evaluations at step 0 and at this step.

    `command` is the one that started the run; empty if it was started in Python. An exported model may have
    another dtype than the one that the run's accuracies were measured in.
    """
    config = trained.config
    name, adapter, _ = resolve_adapter(config.model.name, config.adapter)
    known = base_data(name)
    base = str(known.model_name or "local model") if is_local(name) else hub_name(name)
    stops = stop_strings(config)
    end = _END_AT_PATTERN if HASH_LINE in stops else ""
    examples = len(config.prompt.examples)
    is_int8 = config.model.base_weights == "int8"
    parts = config.objective.model_dump(exclude_none=True)
    card = _CARD.format(
        metadata=metadata(config, known, base, [e for e in evals if e["step"] == step], library).to_yaml(),
        base=base,
        trained=f"a low-rank adapter, rank {adapter.rank}, alpha {adapter.alpha:g}"
        + (", over a base in 8 bits" if is_int8 else "")
        if adapter.rank
        else "all weights",
        data=describe_data(config.task),
        objective=", ".join(f"{v}" if k == "preset" else f"{k} {v}" for k, v in parts.items()),
        samples=config.rollout.group_size,
        prompts=config.rollout.prompts_per_step,
        steps=_steps(evals, step, config.train.steps),
        seed=config.train.seed,
        command=_published(command) or "reinforce_lite.train(...)",
        examples=f", with its worked examples ({examples})" if examples else "",
        read_prompt=_READ_PROMPT.format(regular_expressions="import re\n" if end else ""),
        generate=_GENERATE[library].format(dtype=saved_dtype, end=end, rounded=_ROUNDED if is_int8 else ""),
        table=_table(evals, step),
        version=package_version(NAME),
        dtype=measured_dtype,
        ends=_ends(config, stops),
        measure=_eval_code(config, library, "strftime_now" in str(trained.policy.tokenizer.chat_template)),
    )
    return {"README.md": mask(card), FILE_NAME: saved_prompt(trained).to_json()}


def _published(command: str) -> str:
    """The command without the folders of this machine."""
    try:
        words = shlex.split(command)
    except ValueError:  # a masked secret can cut a quotation
        return f"{NAME} train ..."
    options = [word.partition("=") if word.startswith("--") else ("", "", word) for word in words]
    return shlex.join(f"{option}{equals}{_published_value(value)}" for option, equals, value in options)


def _published_value(value: str) -> str:
    try:
        parsed = json.loads(value)
    except ValueError:
        return without_folders(value)
    published = without_folders_in(parsed)
    return value if published == parsed else json.dumps(published, ensure_ascii=False)


def _ends(config: Config, stops: Sequence[str]) -> str:
    """Where a completion of an evaluation ends, in words."""
    ends = [f"after {'a first line `#### 72`' if stop == HASH_LINE else f'`{stop}`'}" for stop in stops]
    ends.append(f"after {config.eval.max_new_tokens or config.rollout.max_new_tokens} tokens")
    if config.rollout.repetition_detection:
        ends.append("where its last 64 tokens repeat a pattern")
    return " or ".join(filter(None, [", ".join(ends[:-1]), ends[-1]]))


def _eval_code(config: Config, library: Library, prints_date: bool) -> str:
    """A block of code that measures the test split again in the model's folder, on any machine: a command, or
    Python for a task that was given as an object.

    A model outside its run is evaluated with the quickstart's config, so what differs from it is named.
    """
    usual, values = _settings(load_config(DEFAULT_RECIPE)), _settings(config)
    if library != "peft":  # a merged model has no base
        del values["model.base_weights"]
    if not prints_date:
        del values["prompt.date"]
    different = {key: value for key, value in values.items() if value != usual[key]}
    for key in {"task.name", "task.path", "task.params"} & different.keys():
        different[key] = without_folders_in(different[key])
    task = config.task.name
    if task not in TASK_NAMES and not task.endswith(".py"):
        return f"```python\nreinforce_lite.evaluate('.', {different | {'task.name': task}}, task=...)\n```"
    command = " ".join([f"{NAME} eval .", *(option_text(key, value) for key, value in different.items())])
    return f"```bash\n{command}\n```"


def _settings(config: Config) -> dict[str, Any]:
    """What an evaluation's accuracy depends on, by dotted key, as JSON values."""
    rollout = {"max_new_tokens", "stop", "repetition_detection"}
    included: dict[str, Any] = {
        "model": {"dtype", "base_weights"},
        "task": True,
        "prompt": True,
        "rollout": rollout,
        "eval": {"n", "max_new_tokens"},
    }
    return flat_values(config, included)


def _steps(evals: Sequence[Record], step: int, of: int) -> str:
    """How far the model is trained. A validated model, such as best/, need not be what a run ended with."""
    splits = {e["split"] for e in evals if e["step"] == step}
    if step >= of or "test" in splits:  # with a limit of hours a run may end before its last step
        return str(step)
    return f"{step} of {of}" if splits else f"{step} of {of}, unfinished"


def _table(evals: Sequence[Record], step: int) -> str:
    rows = [e for e in evals if e["step"] in (0, step)]
    head = "| | split | strict | lenient | best constant | problems |\n|" + 6 * " --- |" + "\n"
    lines = "\n".join(
        f"| {'before' if e['step'] == 0 else f'after step {step}'} | {e['split']} "
        f"| {_share(e, 'strict')} | {_share(e, 'lenient')} | {_constant(e)} | {e['n']} |"
        for e in rows
    )
    return head + lines + ("" if any(e["step"] == step for e in rows) else "\n\nNot measured at this step.")


def _constant(record: Record) -> str:
    constant = record.get("best_constant")  # older runs have none
    return "–" if constant is None else percent(constant)


def _share(record: Record, kind: str) -> str:
    if record[kind] is None:
        return "–"
    low, high = record[f"{kind}_interval"]
    return f"{percent(record[kind])} ({percent(low)} to {percent(high)})"
