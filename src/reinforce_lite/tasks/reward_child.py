"""The worker process in which rewards run; `reward_worker.py` starts it, by the path of this file.

It reads jobs from one pipe and writes a reply to each, in order, to another: JSON lines in ASCII. Only the
standard library is imported before the first job, which brings the import path; torch and transformers never
are, unless a user's file imports them.

    ["start", path, module, config, about, splits]   task = reinforce_lite.tasks.<module>.serve(config, about)
                                                     task.hello(splits)
    [method, ...]                                    task.method(...)
    {"ok": value} or {"error": [cause, remedy]}

Other people's code may raise anything, fork, change the folder, or close what is open: a forked copy exits
silently, and the rest is restored after each job. What can't be restored ends the process.
"""

import contextlib
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def main(jobs: int, results: int, lifeline: int) -> None:
    """Answer jobs until their pipe is closed. The arguments are file descriptors."""
    _end_with_the_trainer(lifeline)
    for descriptor in (jobs, results):
        os.set_inheritable(descriptor, False)
    pid, home, output = os.getpid(), os.open(".", os.O_RDONLY), os.dup(1)
    task: Any = None
    for line in os.fdopen(jobs, "rb"):
        method, *arguments = json.loads(line)
        try:
            if method == "start":
                *what, splits = arguments
                task, method, arguments = _start(*what), "hello", [splits]
            reply = {"ok": getattr(task, method)(*arguments)}
        except BaseException as error:  # also sys.exit() and KeyboardInterrupt
            reply = {"error": _describe(task, error)}
        if os.getpid() != pid:
            os._exit(0)
        _restore(home, output)
        _write(results, json.dumps(reply).encode() + b"\n")


def _start(path: list[str], module: str, config: str, about: Any) -> Any:
    sys.path[:] = path
    return import_module(f"reinforce_lite.tasks.{module}").serve(config, about)


def _describe(task: Any, error: BaseException) -> list[str]:
    if hasattr(error, "cause") and hasattr(error, "remedy"):  # a ReinforceLiteError
        return [error.cause, error.remedy]
    from reinforce_lite.utils.text import one_line_error

    return [task.describe(error) if hasattr(task, "describe") else one_line_error(error), ""]


def _end_with_the_trainer(lifeline: int) -> None:
    """When the trainer ends, even by SIGKILL, end this process and all that it has started.

    A shell waits for it, since a thread of this process could not run while a big power holds the
    interpreter. It is in the process group of this process, which `kill 0` ends. Where memory runs out, the
    kernel is asked to choose this process rather than the trainer.
    """
    command = ["/bin/sh", "-c", "read _; kill -9 0"]
    subprocess.Popen(command, stdin=lifeline, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(lifeline)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _restore(home: int, output: int) -> None:
    os.fchdir(home)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None or stream.closed:
            again = os.fdopen(descriptor, "w", 1, errors="backslashreplace", closefd=False)
            setattr(sys, name, again)


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
