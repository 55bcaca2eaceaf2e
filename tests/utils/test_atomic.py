"""Files and folders that are replaced completely or not at all."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reinforce_lite.utils.atomic import (
    append_whole,
    clean_leftovers,
    remove_folder,
    replace_folder,
    write_atomically,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_replaces_a_file(tmp_path: Path) -> None:
    file = tmp_path / "summary.json"
    write_atomically(file, "old")
    write_atomically(file, "né😀w")
    assert file.read_bytes() == b"n\xc3\xa9\xf0\x9f\x98\x80w"
    assert names(tmp_path) == ["summary.json"]


def test_write_by_two_processes_leaves_the_text_of_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process writes all of its text in the middle of ours."""
    file = tmp_path / "report.html"
    flush = os.fsync
    code = f"from pathlib import Path; from reinforce_lite.utils.atomic import write_atomically; write_atomically(Path({str(file)!r}), 'theirs')"

    def write_theirs(descriptor: int) -> None:
        flush(descriptor)
        monkeypatch.undo()
        subprocess.run([sys.executable, "-c", code], check=True)

    monkeypatch.setattr(os, "fsync", write_theirs)
    write_atomically(file, "ours")
    assert file.read_text() == "ours"
    assert names(tmp_path) == ["report.html"]


def test_write_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "summary.json"
    write_atomically(file, "old")
    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, "new")
    assert file.read_text() == "old"
    assert names(tmp_path) == ["summary.json"]


def disk_full(_: int) -> None:
    raise OSError(28, "No space left on device")


def test_replace_folder_creates_the_target_and_its_parents(tmp_path: Path) -> None:
    with replace_folder(tmp_path / "checkpoints" / "step-1") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("text")
        assert not (tmp_path / "checkpoints" / "step-1").exists()
    assert (tmp_path / "checkpoints" / "step-1" / "sub" / "file").read_text() == "text"
    assert names(tmp_path / "checkpoints") == ["step-1"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_replace_folder_gives_files_of_their_own_mode_that_of_any_new_file(
    tmp_path: Path, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        with replace_folder(tmp_path / "target") as folder:
            (folder / "plain").write_text("x")
            os.close(os.open(folder / "own", os.O_CREAT, 0o600))
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "target").iterdir()} == {mode}


def test_replace_folder_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    with replace_folder(target) as folder:
        (folder / "new").touch()
    assert names(target) == ["new"]
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("interrupted_by", [OSError, KeyboardInterrupt])
def test_replace_folder_that_fails_keeps_the_old_one(
    tmp_path: Path, interrupted_by: type[BaseException]
) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()

    def replace() -> None:
        with replace_folder(target) as folder:
            (folder / "new").touch()
            raise interrupted_by

    with pytest.raises(interrupted_by):
        replace()
    assert names(target) == ["old"]
    assert names(tmp_path) == ["model"]


def test_replace_folder_puts_the_old_one_back_if_the_new_one_can_not_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    rename = Path.rename

    def fail_to_place(path: Path, to: Path) -> Path:
        if path.name.endswith(".incomplete"):
            raise OSError(28, "No space left on device")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fail_to_place)
    with pytest.raises(OSError, match="No space left"), replace_folder(target):
        pass
    assert names(target) == ["old"]
    assert names(tmp_path) == ["model"]


def test_replace_folder_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    code = f"""
import os
from pathlib import Path
from reinforce_lite.utils.atomic import replace_folder
with replace_folder(Path({str(tmp_path / "model")!r})) as folder:
    (folder / "half").touch()
    os._exit(1)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 1
    assert names(tmp_path) == [".model.incomplete"]
    with replace_folder(tmp_path / "model") as folder:
        assert names(folder) == []
    assert names(tmp_path) == ["model"]


def test_replace_folder_flushes_files_before_they_are_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "step-1"
    flushed: list[tuple[str, bool]] = []

    def record(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        flushed.append((path.name, target.exists()))

    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc to look descriptors up in")
    monkeypatch.setattr(os, "fsync", record)
    with replace_folder(target) as folder:
        (folder / "state").touch()
    assert flushed == [("state", False), (".step-1.incomplete", False), (tmp_path.name, True)]


def test_an_append_that_is_cut_short_leaves_no_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, write = tmp_path / "steps.jsonl", os.write
    append_whole(file, "first\n")

    def run_full(descriptor: int, data: bytes) -> int:
        if len(data) < 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:5])

    monkeypatch.setattr(os, "write", run_full)
    with pytest.raises(OSError, match="No space left"):
        append_whole(file, "second é\n")
    assert file.read_text() == "first\n"
    monkeypatch.undo()
    append_whole(file, "second é\n")
    assert file.read_text() == "first\nsecond é\n"


def test_leftovers_are_removed_or_put_back(tmp_path: Path) -> None:
    """By a kill before, between and after the two renames; a living process's file and ours stay apart."""
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    folders = [
        ".model.incomplete",
        ".model.previous",
        "best",
        ".best.previous",
        ".step-3.incomplete",
        ".old.new",
    ]
    for name in folders:
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "file").write_text(name)
    for process in (dead.pid, os.getpid(), os.getppid()):
        (tmp_path / f".report.html.{process}.new").touch()
    (tmp_path / ".lock").touch()
    clean_leftovers(tmp_path)
    assert names(tmp_path) == [".lock", f".report.html.{os.getppid()}.new", "best", "model"]
    assert (tmp_path / "model" / "sub" / "file").read_text() == ".model.previous"
    assert (tmp_path / "best" / "sub" / "file").read_text() == "best"
    clean_leftovers(tmp_path / "none")


def test_replace_folder_first_puts_back_what_a_kill_took_away(tmp_path: Path) -> None:
    (tmp_path / ".model.previous").mkdir()
    with pytest.raises(KeyError), replace_folder(tmp_path / "model"):
        raise KeyError
    assert names(tmp_path) == ["model"]


def test_a_folder_is_removed_with_its_leftover(tmp_path: Path) -> None:
    remove_folder(tmp_path / "best")
    (tmp_path / "best" / "sub").mkdir(parents=True)
    (tmp_path / ".best.incomplete").mkdir()
    remove_folder(tmp_path / "best")
    assert names(tmp_path) == []
