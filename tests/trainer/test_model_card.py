"""The model card: its code is run, its front matter read by huggingface_hub, its command parsed."""

import re
import shlex
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub import EvalResult, ModelCard

from helpers.paths import RECIPE, ROOT
from helpers.tiny import ToyTask, make_tokenizer
from reinforce_lite import api
from reinforce_lite.api import ask_model
from reinforce_lite.cli.args import parse_eval
from reinforce_lite.config import Config, load_config
from reinforce_lite.engines.hf import HFEngine
from reinforce_lite.models.policy import Policy, load_policy
from reinforce_lite.pipeline import PromptedPolicy
from reinforce_lite.rollout.prompts import PromptBuilder
from reinforce_lite.trainer.model_card import explaining_files
from reinforce_lite.types import Sampling

QUESTION = "Ann has 3 apples and buys 4 more. How many apples does she have now?"
"""The card's own."""
EVAL = {
    "step": 24,
    "split": "test",
    "strict": 0.665,
    "strict_interval": (0.6, 0.73),
    "lenient": 2 / 3,
    "lenient_interval": (0.6, 0.73),
    "n": 200,
}
BEFORE = EVAL | {"step": 0, "strict": 0.275}


def files_of(
    policy: Policy, config: Config, evals: Any = (), step: int = 24, command: str = "", library: Any = ""
) -> dict[str, str]:
    trained = PromptedPolicy(config, policy, PromptBuilder(policy.tokenizer, config.prompt))
    library = library or "transformers"
    return explaining_files(trained, evals, step, command, library, "float32", "bfloat16")


def card_of(policy: Policy, config: Config, command: str = "", library: Any = "transformers") -> str:
    return files_of(policy, config, [BEFORE, EVAL], command=command, library=library)["README.md"]


def front_matter(card: str) -> Any:
    return ModelCard(card).data


def python_blocks(card: str) -> list[str]:
    return re.findall(r"^```python\n(.+?)^```", card, re.DOTALL | re.MULTILINE)


def run_code(folder: Path, blocks: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run blocks of a card as one program in its folder; the variables that it leaves."""
    names: dict[str, Any] = {}
    monkeypatch.chdir(folder)
    exec("\n".join(blocks), names)
    return names


# ── The code ──


@pytest.mark.parametrize("folder", ["model", "adapter"])
def test_the_code_for_transformers_prints_what_ask_prints(
    settings: dict[str, Any],
    folder: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With examples and a prefill, up to a stop, although the base has a penalty for repetition.

    The stop is a character that the base writes, and the learning rate too small to change that.
    """
    values = {**settings, "train.steps": 1, "rollout.max_new_tokens": 24, "update.learning_rate": 1e-7}
    if folder == "adapter":
        values |= {"adapter.rank": 2}
    config = api.resolve_config(RECIPE, values, ToyTask())
    policy = load_policy(settings["model.name"], "float32", "cpu")
    prompt = PromptBuilder(policy.tokenizer, config.prompt)(QUESTION)
    [[free]] = HFEngine(policy).generate([prompt], Sampling(1, 24, temperature=0.0), seed=0)
    stop = max(filter(str.isalnum, free.text[:-2]), key=free.text.index)  # the last to appear
    policy.model.generation_config.repetition_penalty = 5.0
    ids = torch.tensor([prompt.token_ids])
    penalized = policy.decode(policy.model.generate(ids, max_new_tokens=24)[0, ids.shape[1] :].tolist())
    assert not penalized.startswith(free.text[: free.text.index(stop)])
    policy.model.save_pretrained("base")
    policy.tokenizer.save_pretrained("base")
    values |= {"model.name": str(Path("base").absolute()), "rollout.stop": [stop]}
    run = api.train(RECIPE, values, task=ToyTask(), run="a", quiet=True)
    expected = ask_model("a", QUESTION)[1]["response"]
    assert expected == f"<think>{free.text.partition(stop)[0]}{stop}"
    card = (run.path / folder / "README.md").read_text()
    capsys.readouterr()
    names = run_code(run.path / folder, python_blocks(card)[:2], monkeypatch)
    assert capsys.readouterr().out == expected + "\n"
    assert names["output"].shape[1] < names["inputs"]["input_ids"].shape[1] + 24


def test_a_hash_answer_ends_at_the_end_of_its_line(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model is faked that writes on; so is vLLM, which can't end there either."""
    config = load_config(RECIPE, {"task.name": "gsm8k", "task.answer_format": "hash"})
    fake_transformers(monkeypatch, policy.tokenizer, "so\n#### 7\nand")
    fake_vllm(monkeypatch, "so\n#### 7\nand")
    prompt, with_transformers, with_vllm = written_blocks(policy, config, tmp_path)
    for block in (with_transformers, with_vllm):
        run_code(tmp_path, [prompt, block], monkeypatch)
        assert capsys.readouterr().out == "<think>so\n#### 7\n\n"


def test_the_code_for_vllm_gives_it_the_same_prompt_and_limits(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """vLLM itself is faked, so what is checked is: the code runs, the prompt's token ids, the folder and its
    dtype, and the names and values of the sampling parameters. That vLLM has these names, and what it does
    with them, is not.
    """
    config = load_config(RECIPE, {"rollout.max_new_tokens": 40, "task.name": "wordmath"})
    calls = fake_vllm(monkeypatch, "7</answer>")
    prompt, _, with_vllm = written_blocks(policy, config, tmp_path)
    run_code(tmp_path, [prompt, with_vllm], monkeypatch)
    ids = list(PromptBuilder(policy.tokenizer, config.prompt)(QUESTION).token_ids)
    assert calls["LLM"] == {"model": ".", "dtype": "float32"}
    assert calls["SamplingParams"] == {
        "temperature": 0,
        "max_tokens": 40,
        "stop": ["</answer>"],
        "include_stop_str_in_output": True,
    }
    assert calls["prompt"] == {"prompt_token_ids": ids}
    assert capsys.readouterr().out == "<think>7</answer>\n"


def test_what_the_last_token_has_after_a_stop_is_cut(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of several stops the one that ends first counts. A model is faked that writes more than characters."""
    config = load_config(RECIPE, {"rollout.stop": ("end", "</answer>")})
    fake_transformers(monkeypatch, policy.tokenizer, "7</answer>. The end")
    prompt, with_transformers, _ = written_blocks(policy, config, tmp_path)
    run_code(tmp_path, [prompt, with_transformers], monkeypatch)
    assert capsys.readouterr().out == "<think>7</answer>\n"


def written_blocks(policy: Policy, config: Config, folder: Path) -> list[str]:
    """The blocks of a card, whose folder is written without weights."""
    policy.tokenizer.save_pretrained(folder)
    files = files_of(policy, config)
    for name, text in files.items():
        (folder / name).write_text(text)
    return python_blocks(files["README.md"])


def fake_transformers(monkeypatch: pytest.MonkeyPatch, tokenizer: Any, written: str) -> None:
    """Every model writes this, whatever it is told."""

    def generate(ids: Any, **_: Any) -> Any:
        more = tokenizer(written, add_special_tokens=False, return_tensors="pt")["input_ids"]
        return torch.cat([ids, more], dim=1)

    model = SimpleNamespace(generate=generate)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: model)


def fake_vllm(monkeypatch: pytest.MonkeyPatch, written: str) -> dict[str, Any]:
    """A module vllm whose model writes this; what it is called with is put into the dictionary."""
    calls: dict[str, Any] = {}

    class LLM:
        def __init__(self, **options: Any) -> None:
            calls["LLM"] = options

        def generate(self, prompt: Any, params: Any) -> Any:
            calls.update(prompt=prompt, SamplingParams=params)
            return [SimpleNamespace(outputs=[SimpleNamespace(text=written)])]

    module: Any = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, dict
    monkeypatch.setitem(sys.modules, "vllm", module)
    return calls


def test_the_page_about_trained_models_shows_the_code_of_the_card(policy: Policy) -> None:
    page = (ROOT / "docs" / "howto" / "use-the-model.md").read_text(encoding="utf-8")
    assert python_blocks(page) == python_blocks(card_of(policy, load_config("quickstart")))


# ── The front matter ──


def test_front_matter_of_the_quickstart(policy: Policy) -> None:
    data = front_matter(card_of(policy, load_config("quickstart")))
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (data.license, data.language) == ("apache-2.0", "en")
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert data.datasets is None
    assert data.model_name == "SmolLM2-135M-Instruct trained on wordmath, level 1"
    dataset: Any = {"dataset_type": "wordmath", "dataset_name": "wordmath, level 1", "dataset_split": "test"}
    assert data.eval_results == [
        EvalResult("text-generation", metric_type="accuracy", metric_value=v, metric_name=name, **dataset)
        for name, v in (("strict accuracy", 0.665), ("lenient accuracy", 0.6667))
    ]


def test_an_adapters_front_matter_is_that_of_peft(policy: Policy) -> None:
    config = load_config("quickstart", {"adapter.rank": 8})
    data = front_matter(card_of(policy, config, library="peft"))
    assert (data.library_name, data.base_model) == ("peft", "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert "lora" in data.tags


def test_without_evaluations_of_its_step_a_model_has_no_results(policy: Policy) -> None:
    files = files_of(policy, load_config("quickstart"), [BEFORE], step=5)
    assert front_matter(files["README.md"]).eval_results is None
    assert "model_name" not in files["README.md"].split("---")[1]


def test_best_constant_is_in_the_table(policy: Policy) -> None:
    card = files_of(policy, load_config("quickstart"), [BEFORE, EVAL | {"best_constant": 0.125}], 24)[
        "README.md"
    ]
    rows = [line.split(" | ") for line in card.splitlines() if line.startswith(("| before", "| after"))]
    assert [row[-2] for row in rows] == ["–", "12.5%"]


@pytest.mark.parametrize(
    ("step", "evals", "steps", "is_measured"),
    [
        (300, [BEFORE], "300", False),
        (24, [BEFORE, EVAL], "24", True),
        (24, [BEFORE, EVAL | {"split": "validation"}], "24 of 300", True),
        (20, [BEFORE, EVAL], "20 of 300, unfinished", False),
    ],
)
def test_a_model_of_an_earlier_step_says_so(
    policy: Policy, step: int, evals: list[Any], steps: str, is_measured: bool
) -> None:
    """Its run ended by its limit of hours where the test split was measured."""
    config = load_config("quickstart", {"train.steps": 300})
    card = files_of(policy, config, evals, step)["README.md"]
    assert f"- **Steps:** {steps}, seed 0\n" in card
    assert ("200 |\n\nNot measured at this step.\n" in card) == (not is_measured)


@pytest.mark.parametrize("name", ["gsm8k", "hub"])
def test_a_data_set_of_the_hub_is_named(policy: Policy, name: str) -> None:
    overrides = {"task.name": name, "task.path": "openai/gsm8k:main" if name == "hub" else ""}
    data = front_matter(card_of(policy, load_config("gsm8k-0.5b", overrides)))
    assert data.datasets == ["openai/gsm8k"]
    assert {(r.dataset_type, r.dataset_config) for r in data.eval_results} == {("openai/gsm8k", "main")}
    assert data.base_model == "Qwen/Qwen2.5-0.5B-Instruct"


BASE = """---
license: other
license_name: qwen-research
license_link: https://example.org/LICENSE
language: [en, zh]
base_model: Qwen/Qwen2.5-3B
---
# Base
"""
LICENSE = ("other", "qwen-research", "https://example.org/LICENSE")


def license_of(data: Any) -> tuple[Any, ...]:
    return data.license, data.license_name, data.license_link


def test_license_and_language_of_a_cached_hub_model_are_carried_over(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own base is another matter."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    config = load_config("gsm8k-3b-48gb")
    assert license_of(front_matter(card_of(policy, config))) == (None, None, None)
    repository = tmp_path / "models--Qwen--Qwen2.5-3B-Instruct"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "snapshots" / "abc" / "README.md").write_text(BASE)
    data = front_matter(card_of(policy, config))
    assert (license_of(data), data.language) == (LICENSE, ["en", "zh"])
    assert data.base_model == "Qwen/Qwen2.5-3B-Instruct"


def test_license_and_base_of_a_local_model_are_carried_over(policy: Policy, in_tmp: Path) -> None:
    Path("mine").mkdir()
    config = load_config("quickstart", {"model.name": "./mine"})
    data = front_matter(card_of(policy, config))
    assert (data.base_model, data.license) == (None, None)
    Path("mine/README.md").write_text(BASE)
    card = card_of(policy, config)
    assert (license_of(front_matter(card)), front_matter(card).base_model) == (LICENSE, "Qwen/Qwen2.5-3B")
    assert "- **Base model:** local model\n" in card
    Path("mine/README.md").write_text(card)
    further = card_of(policy, config)
    assert "- **Base model:** local model trained on wordmath, level 1\n" in further
    assert license_of(front_matter(further)) == LICENSE
    Path("mine/README.md").write_text("---\n: [\n---\n")
    assert front_matter(card_of(policy, config)).license is None


def test_no_path_of_the_machine_is_in_the_files(policy: Policy, in_tmp: Path) -> None:
    for file in ("data/problems.jsonl", "mine/README.md", "my tasks/add.py"):
        Path(file).parent.mkdir()
        Path(file).write_text("")
    values = {"model.name": str(in_tmp / "mine"), "task.name": "jsonl", "task.path": "data/problems.jsonl"}
    command = ["reinforce-lite", "train", f"--model.name={in_tmp}/mine", "--task.path", "data/problems.jsonl"]
    command += ["--prompt.system", "Give a/b.", "--task.params", "n", "2"]
    card = card_of(policy, load_config("quickstart", values), shlex.join(command))
    assert str(in_tmp) not in card
    assert "data/" not in card
    assert "`reinforce-lite train --model.name=mine --task.path problems.jsonl --prompt.system 'Give" in card
    assert "- **Data:** jsonl (problems.jsonl)\n" in card
    own = load_config("quickstart", {"task.name": f"{in_tmp}/my tasks/add.py", "model.name": "~"})
    card = card_of(policy, own, "reinforce-lite train 'half a quotation")
    assert str(in_tmp) not in card
    assert str(Path.home()) not in card
    assert "- **Command:** `reinforce-lite train ...`\n" in card
    assert {r.dataset_type for r in front_matter(card).eval_results} == {"add.py"}


PRIVATE = """---
base_model: [/home/ann/private/qwen, Qwen/Qwen2.5-3B, private/of/ann, mine/base]
license: other
license_link: /home/ann/private/LICENSE
model-index:
- name: /home/ann/private/qwen
  results:
  - {task: {type: text-generation}, dataset: {type: a, name: a}, metrics: [{type: accuracy, value: 1}]}
---
"""


def test_folders_in_a_local_bases_card_are_not_carried_over(policy: Policy, in_tmp: Path) -> None:
    Path("mine/base").mkdir(parents=True)
    Path("mine/README.md").write_text(PRIVATE)
    config = load_config("quickstart", {"model.name": "mine"})
    card = card_of(policy, config)
    assert "private" not in card
    assert (front_matter(card).base_model, front_matter(card).license_link) == ("Qwen/Qwen2.5-3B", "LICENSE")
    assert "- **Base model:** qwen\n" in card
    for base_model in ("/home/ann/private/qwen", "../private/qwen", "3"):
        Path("mine/README.md").write_text(f"---\nbase_model: {base_model}\n---\n")
        assert front_matter(card_of(policy, config)).base_model is None
    Path("mine/README.md").write_text("---\nbase_model: [a/b, c/d]\n---\n")
    assert front_matter(card_of(policy, config)).base_model == ["a/b", "c/d"]


@pytest.mark.parametrize("path", ["/gone/private/data", "private/of/ann:main", "{}:main", "data", "data/of"])
def test_a_folder_is_no_data_set_of_the_hub(policy: Policy, path: str, in_tmp: Path) -> None:
    """Neither one that is gone nor one with a config."""
    Path("data/of").mkdir(parents=True)
    path = path.format(in_tmp / "data")
    card = card_of(policy, load_config("quickstart", {"task.name": "hub", "task.path": path}))
    assert front_matter(card).datasets is None
    assert {r.dataset_type for r in front_matter(card).eval_results} == {"hub"}
    assert f"- **Data:** hub ({path.rpartition('/')[2]})\n" in card
    assert not re.search(r"private|data/of", card)
    assert str(in_tmp) not in card


def test_folders_in_a_tasks_parameters_are_left_out(policy: Policy) -> None:
    """And those in a command's option with an equals sign, or with JSON."""
    values = {
        "task.name": "gym",
        "task.path": "x",
        "task.params": {"f": "/home/ann/x.json", "g": ["~/y.csv"]},
    }
    command = "reinforce-lite train gone/private/recipe.toml --task.path=/home/ann/rate=1/data.jsonl "
    command += """--task.params f /home/ann/x.json g '["/home/ann/y.csv"]' n '[1,2]'"""
    card = card_of(policy, load_config("quickstart", values), command)
    assert eval_command(card)[-5:] == ["--task.params", "f", "x.json", "g", '["y.csv"]']
    assert (
        "train recipe.toml --task.path=data.jsonl --task.params f x.json g '[\"y.csv\"]' n '[1,2]'`" in card
    )
    assert not re.search(r"ann|private", card)


def test_no_path_of_the_machine_is_in_the_saved_folders(settings: dict[str, Any], in_tmp: Path) -> None:
    """Of every file, except that peft needs the base's folder."""
    base = shutil.copytree(settings["model.name"], in_tmp / "private" / "base")
    (base / "README.md").write_text(f"---\nbase_model: {in_tmp}/private/qwen\n---\n")
    values = {"model.name": str(base), "adapter.rank": 2, "train.steps": 1}
    run = api.train(RECIPE, values, task=ToyTask(), run="a", quiet=True)
    files = [file for name in ("model", "adapter") for file in (run.path / name).rglob("*") if file.is_file()]
    named = [file for file in files if b"private" in file.read_bytes() or bytes(in_tmp) in file.read_bytes()]
    assert named == [run.path / "adapter" / "adapter_config.json"]


# ── How accuracy was measured ──


MEASURED: dict[str, dict[str, Any]] = {
    "quickstart": {},
    "gsm8k-3b-48gb": {"eval.max_new_tokens": 700},
    "quickstart-adapter": {
        "prompt.examples": (),
        "rollout.stop": ("</a b>", "'"),
        "rollout.repetition_detection": False,
        "task.name": "jsonl",
        "task.path": "problems.jsonl",
        "task.columns": {"question": "{Body} {Question}"},
        "task.answer_format": "hash",
    },
    "gsm8k-0.5b": {
        "task.name": "gym",
        "task.path": "leg_counting",
        "task.params": {"min_animals": 2, "names": ["a b"]},
        "rollout.stop": (),
        "prompt.system": "two\nlines",
    },
}


@pytest.mark.parametrize("recipe", MEASURED)
def test_the_command_measures_under_the_runs_settings(policy: Policy, recipe: str, in_tmp: Path) -> None:
    config = load_config(recipe, MEASURED[recipe])
    command = eval_command(card_of(policy, config))
    assert command[:3] == ["reinforce-lite", "eval", "."]
    parsed, measured = parse_eval(command[2:])
    assert parsed.target == "."
    assert (measured.task, measured.prompt, measured.eval.n) == (config.task, config.prompt, config.eval.n)
    for key in ("max_new_tokens", "stop", "repetition_detection"):
        assert getattr(measured.rollout, key) == getattr(config.rollout, key)
    assert measured.eval.max_new_tokens == config.eval.max_new_tokens


@pytest.mark.parametrize(
    ("library", "options"), [("peft", ["--model.base-weights", "int8"]), ("transformers", [])]
)
def test_a_base_in_8_bits_is_told(policy: Policy, library: str, options: list[str], in_tmp: Path) -> None:
    """An adapter is measured over the rounded base again; a merged model is what was measured."""
    config = load_config("quickstart-adapter", {"model.base_weights": "int8"})
    card = card_of(policy, config, library=library)
    command = eval_command(card)
    assert command[3:] == options
    assert (parse_eval(command[2:])[1].model.base_weights == "int8") == bool(options)
    assert "alpha 32, over a base in 8 bits\n" in card
    assert ("was rounded to 8 bits" in card) == bool(options)
    assert "8 bits" not in card_of(policy, load_config("quickstart-adapter"), library=library)


def eval_command(card: str) -> list[str]:
    (block,) = re.findall(r"^```bash\n(.+?)^```", card, re.DOTALL | re.MULTILINE)
    return shlex.split(block)


def test_the_day_is_named_where_the_chat_template_prints_it(policy: Policy) -> None:
    config = load_config("quickstart", {"prompt.date": "2026-11-30"})
    assert eval_command(card_of(policy, config)) == ["reinforce-lite", "eval", "."]
    policy.tokenizer = make_tokenizer("{{ strftime_now('%Y') }}{{ messages[-1]['content'] }}")
    config = load_config("quickstart", {"prompt.date": "2026-11-30", "prompt.examples": ()})
    assert eval_command(card_of(policy, config))[-2:] == ["--prompt.date", "2026-11-30"]


def test_how_a_completion_ends_is_told(policy: Policy) -> None:
    ends = {
        "quickstart": "after `</answer>`, after 64 tokens or where its last 64 tokens repeat a pattern",
        "gsm8k-3b-48gb": "after a first line `#### 72` or after 99 tokens",
    }
    overrides: dict[str, dict[str, Any]] = {
        "quickstart": {},
        "gsm8k-3b-48gb": {
            "task.answer_format": "hash",
            "rollout.repetition_detection": False,
            "eval.max_new_tokens": 99,
        },
    }
    for recipe, said in ends.items():
        card = card_of(policy, load_config(recipe, overrides[recipe]))
        assert " in bfloat16: one greedy completion for each" in card
        assert f"It ends at an end-of-sequence token, {said}. To measure the" in card


def test_a_task_of_an_object_is_measured_in_python(settings: dict[str, Any]) -> None:
    """The code, with the task in place of the dots, gives the run's own figures."""
    run = api.train(RECIPE, settings | {"train.steps": 1}, task=ToyTask(), run="a", quiet=True)
    card = (run.path / "model" / "README.md").read_text()
    *_, last = python_blocks(card)
    code = last.replace("task=...", "task=task, quiet=True").replace("'.'", repr(str(run.path / "model")))
    names = {"reinforce_lite": api, "task": ToyTask()}
    exec(f"measured = {code}", names)
    measured: Any = names["measured"]
    assert run.after
    assert (measured.strict, measured.n) == (run.after["strict"], run.after["n"])
