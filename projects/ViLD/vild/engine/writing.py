"""Metrics and log files of a training, with clear errors on a full or read-only disk."""

from __future__ import annotations

import atexit
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from detectron2.utils.events import EventWriter, JSONWriter

from vild.utils.files import write_errors_named

_LOOP = "detectron2.engine.train_loop"  # Detectron2's logger of errors during training


METRICS = "metrics.json"
LOGGERS = ("detectron2", "fvcore", "vild")


class NamedWriter(EventWriter):
    """A writer of metrics whose errors name the file, or the folder if it chooses the file name.

    Args:
        writer: the writer to wrap.
        folder: ``OUTPUT_DIR``.
    """

    def __init__(self, writer: EventWriter, folder: str) -> None:
        self.writer = writer
        self.path = Path(folder, METRICS) if isinstance(writer, JSONWriter) else Path(folder)

    def write(self) -> None:
        """Write the new metrics.

        Raises:
            OSError: the file cannot be written.
        """
        with write_errors_named(self.path):
            self.writer.write()

    def close(self) -> None:
        """Close the file.

        Raises:
            OSError: the remaining metrics cannot be written.
        """
        with write_errors_named(self.path):
            self.writer.close()


def remove_cut_line(path: Path) -> None:
    """Remove a last line without a newline, left by a kill or a full disk."""
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


class _OneLine(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, OSError):
            record.msg, record.args = "the training ended: %s", (error,)
            record.exc_info = record.exc_text = None
        return True


@contextmanager
def write_errors_in_one_line() -> Iterator[None]:
    """Report operating system errors without the tracebacks of Detectron2 and TensorBoard."""
    logger, brief, hook = logging.getLogger(_LOOP), _OneLine(), threading.excepthook

    def report(failed: threading.ExceptHookArgs) -> None:
        # in TensorBoard's thread, whose error the next write raises again
        if not isinstance(failed.exc_value, OSError):
            hook(failed)

    logger.addFilter(brief)
    threading.excepthook = report
    try:
        yield
    finally:
        threading.excepthook = hook
        logger.removeFilter(brief)


class _LogFile(logging.StreamHandler[TextIO]):
    """A log file handler that reports the first write error in one line and then stops writing."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        sys.stderr.write(f"{self.stream.name} cannot be written and ends here: {error}\n")
        atexit.unregister(self.stream.close)  # set by Detectron2; would fail again
        self.setLevel(logging.CRITICAL + 1)


def report_log_errors_once() -> None:
    """Report an unwritable log file once, in one line, instead of at every message.

    Replaces the handlers that Detectron2's ``setup_logger`` added.
    """
    found: dict[TextIO, _LogFile] = {}
    for name in LOGGERS:
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            stream = getattr(handler, "stream", None)
            if isinstance(handler, _LogFile) or stream in (None, sys.stdout, sys.stderr):
                continue
            own = found.setdefault(stream, _LogFile(stream))
            own.setLevel(handler.level)
            own.setFormatter(handler.formatter)
            logger.removeHandler(handler)
            logger.addHandler(own)
