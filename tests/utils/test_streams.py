"""An output that is lost, or lacks a character, ends nothing."""

import errno
import io
import logging
from types import SimpleNamespace

import pytest

from reinforce_lite.utils.streams import LastingStream


class Full(io.TextIOWrapper):
    """A stream on a full disk."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8")

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def close(self) -> None:
        """Nothing is left to flush."""


def test_what_can_not_be_written_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    stream = LastingStream(Full())
    with caplog.at_level(logging.WARNING):
        assert stream.write("step 1\n") == 7
        stream.flush()
        stream.write("step 2\n")
    assert ["No space left" in record.getMessage() for record in caplog.records] == [True]


def test_a_closed_stream_ends_nothing() -> None:
    closed = io.StringIO()
    stream = LastingStream(closed)
    stream.write("kept")
    assert closed.getvalue() == "kept"
    closed.close()
    stream.write("lost")
    stream.flush()


@pytest.mark.parametrize(
    ("encoding", "written"), [("latin-1", "15?85 é"), ("ascii", "15?85 ?"), ("utf-8", "15–85 é")]
)
def test_a_character_that_the_encoding_lacks(encoding: str, written: str) -> None:
    raw = io.BytesIO()
    stream = LastingStream(io.TextIOWrapper(raw, encoding=encoding))
    stream.write("15–85 é")
    stream.flush()
    assert raw.getvalue().decode(encoding) == written
    assert stream.encoding == encoding
    assert not stream.isatty()


def test_an_object_that_only_writes_will_do() -> None:
    """As people put in place of standard output, to write to a file too."""
    written: list[str] = []
    stream = LastingStream(SimpleNamespace(write=written.append, flush=lambda: None))  # type: ignore[arg-type]
    stream.write("step 1")
    assert written == ["step 1"]
