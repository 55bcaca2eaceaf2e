"""Run a function in several processes that find each other as those of torchrun do."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

PRELOADED = ["reinforce_lite.api", "helpers.processes"]
"""Imported once, by the server that the processes are forked from."""


def start(n: int, function: Callable[..., Any], *args: Any) -> "list[Process]":
    """Start `function(*args)` in n processes with torchrun's environment."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [Process(context, rank, n, port, function, args) for rank in range(n)]


def run(n: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What the function returned in each process, or the exception that it raised there."""
    return [process.result() for process in start(n, function, *args)]


class Process:
    """One of the processes, and what its function returns."""

    def __init__(
        self,
        context: Any,
        rank: int,
        size: int,
        port: int,
        function: Callable[..., Any],
        args: tuple[Any, ...],
    ) -> None:
        self.receiver, sender = context.Pipe(duplex=False)
        environment = {
            "RANK": rank,
            "WORLD_SIZE": size,
            "LOCAL_RANK": rank,
            "LOCAL_WORLD_SIZE": size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": 1,
        }
        call = (sender, {k: str(v) for k, v in environment.items()}, Path.cwd(), function, args)
        self.process: ForkServerProcess = context.Process(target=_call, args=call)
        self.process.start()
        sender.close()

    def result(self, timeout: float = 300.0) -> Any:
        """Wait for the function's result or exception; for a process that was killed, its exit code."""
        try:
            found = self.receiver.recv() if self.receiver.poll(timeout) else TimeoutError("it hangs")
        except EOFError:
            self.process.join()
            found = self.process.exitcode
        self.process.join(20)
        return found

    def kill(self, signum: int) -> None:
        """Send the process a signal."""
        assert self.process.pid
        os.kill(self.process.pid, signum)


def _call(
    sender: Connection,
    environment: dict[str, str],
    folder: Path,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    os.environ.update(environment)
    os.chdir(folder)
    import torch

    torch.set_num_threads(1)
    try:
        sender.send(function(*args))
    except BaseException as error:
        traceback.print_exc()
        sender.send(error)
