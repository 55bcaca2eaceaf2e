"""An output stream whose loss does not end the run that writes to it."""

import logging
from contextlib import suppress
from typing import Any, TextIO

from reinforce_lite.utils.text import one_line_error

logger = logging.getLogger(__name__)


class LastingStream:
    """A text stream for a run that may outlive its reader, terminal or disk.

    What cannot be written is dropped, which is logged once; characters that its encoding lacks become "?".
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.has_failed = False

    def write(self, text: str) -> int:
        """Write text if that is possible."""
        try:
            self.stream.write(_encodable(text, getattr(self.stream, "encoding", None)))
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            self._tell(error)
        return len(text)

    def flush(self) -> None:
        """Flush if that is possible."""
        try:
            self.stream.flush()
        except (OSError, ValueError) as error:
            self._tell(error)

    def __getattr__(self, name: str) -> Any:
        """All other attributes are the stream's."""
        return getattr(self.stream, name)

    def _tell(self, error: Exception) -> None:
        if not self.has_failed:
            self.has_failed = True
            with suppress(OSError, ValueError):  # the other output may be lost with it
                logger.warning("output is lost (%s); the run continues", one_line_error(error))


def _encodable(text: str, encoding: str | None) -> str:
    return text.encode(encoding, "replace").decode(encoding) if encoding else text
