"""Signals during a run: when they raise, and when they wait."""

import contextlib
import logging
import os
import signal
import threading
import time

import pytest

from reinforce_lite.trainer.signals import Interrupted, SignalGuard


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_guard_raises_where_the_program_is(signum: int) -> None:
    guard = SignalGuard()
    with guard.listening(), pytest.raises(Interrupted) as caught:
        send(signum)
    assert caught.value.signum == signum


def test_guard_restores_the_previous_handlers() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with SignalGuard().listening():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.case(8)
def test_uninterrupted_block_is_finished_first() -> None:
    guard, done = SignalGuard(), []

    def change() -> None:
        with guard.uninterrupted():
            send(signal.SIGINT)
            done.extend(["first half", "second half"])
        done.append("after the block")

    with guard.listening(), pytest.raises(Interrupted):
        change()
    assert done == ["first half", "second half"]


def test_nested_blocks_raise_at_the_end_of_the_outer_one() -> None:
    guard, done = SignalGuard(), []

    def change() -> None:
        with guard.uninterrupted():
            with guard.uninterrupted():
                send(signal.SIGTERM)
            done.append("between the ends")
        done.append("after the outer block")

    with guard.listening(), pytest.raises(Interrupted):
        change()
    assert done == ["between the ends"]


def test_check_raises_a_signal_that_a_reward_swallowed() -> None:
    guard = SignalGuard()
    with guard.listening():
        with contextlib.suppress(BaseException):  # as a careless reward does
            send(signal.SIGINT)
        with pytest.raises(Interrupted):
            guard.check()


def test_handled_signal_is_not_raised_again() -> None:
    guard = SignalGuard()
    with guard.listening():
        with pytest.raises(Interrupted):
            send(signal.SIGINT)
        guard.mark_handled()
        with guard.uninterrupted():
            pass
        guard.check()


@pytest.mark.case(8)
def test_second_signal_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    statuses: list[int] = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    guard = SignalGuard()
    with guard.listening():
        with pytest.raises(Interrupted):
            send(signal.SIGTERM)
        guard.mark_handled()
        send(signal.SIGTERM)
    assert statuses == [143]


def test_a_terminal_that_closes_may_tell_so_twice() -> None:
    guard = SignalGuard()
    with guard.listening():
        with pytest.raises(Interrupted):
            send(signal.SIGHUP)
        guard.mark_handled()
        send(signal.SIGHUP)


@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGTERM])
def test_a_logout_may_send_both(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM and SIGHUP in either order are one request; another SIGTERM is the second."""
    statuses: list[int] = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    guard = SignalGuard()
    with guard.listening():
        with pytest.raises(Interrupted):
            send(first)
        guard.mark_handled()
        send(signal.SIGHUP if first == signal.SIGTERM else signal.SIGTERM)
        assert statuses == []
        send(signal.SIGTERM)
    assert statuses == [143]


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with SignalGuard().listening():
            send(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_guard_acknowledges_the_first_signal_inside_a_block(caplog: pytest.LogCaptureFixture) -> None:
    guard, said = SignalGuard(), []

    def change() -> None:
        with guard.uninterrupted():
            send(signal.SIGINT)
            deadline = time.monotonic() + 10
            while not caplog.messages and time.monotonic() < deadline:
                time.sleep(0.01)
            said.extend(caplog.messages)

    with guard.listening(), pytest.raises(Interrupted):
        change()
    assert len(said) == 1
    assert "Ctrl-C again" in said[0]


def test_notice_is_out_when_the_guard_stops_listening(monkeypatch: pytest.MonkeyPatch) -> None:
    said = []

    def write_slowly(notice: str) -> None:
        time.sleep(0.2)
        said.append(notice)

    monkeypatch.setattr(logging.getLogger("reinforce_lite.trainer.signals"), "warning", write_slowly)
    guard = SignalGuard(notice="stopping")
    with pytest.raises(Interrupted), guard.listening():
        send(signal.SIGINT)
    assert said == ["stopping"]


def test_guard_leaves_signals_alone_outside_the_main_thread() -> None:
    handlers = []

    def listen() -> None:
        with SignalGuard().listening():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]


@pytest.mark.case(8)
def test_while_modules_are_imported_the_first_signal_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    statuses: list[int] = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    with SignalGuard(at_once=True).listening(), contextlib.suppress(Interrupted):
        send(signal.SIGINT)
    assert statuses == [130]
