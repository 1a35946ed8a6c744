"""Files: a kill at any moment of writing leaves the old one or the new one, never half."""

from __future__ import annotations

import codecs
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

# the marks of UTF-32 come first: that of UTF-16 LE is the beginning of one of them
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``target`` that becomes it when the block ends without an error.

    The file is flushed to disk before it is renamed; after an error it is removed.

    Args:
        target: file to write; its folder is made.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Keeps the ending, which some writers look at. Random, since the processes of several machines
    # may share the folder.
    temporary = target.with_name(f".{target.stem}.{uuid.uuid4().hex[:12]}{target.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Flush the folder itself: a rename is lost in a power cut before that."""
    if os.name != "posix":  # elsewhere folders cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_npy(path: str | os.PathLike[str], what: str) -> np.ndarray:
    """The array of an ``.npy`` file, never a pickle.

    Args:
        path: the file.
        what: it is expected to be, for the error.

    Raises:
        ValueError: no such file, or another one.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"expected {what} in .npy format at {path}: {error}") from None
    if not isinstance(array, np.ndarray):  # an archive of several, whatever its ending
        array.close()
        raise ValueError(f"expected {what} in .npy format at {path}, got an .npz archive")
    return array


def read_text(path: str | os.PathLike[str], what: str) -> str:
    """Read a text file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Args:
        path: the file.
        what: what it is expected to hold, for the error ("a list of classes").

    Raises:
        ValueError: the file is missing, cannot be read, or has another encoding.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"expected {what} at {path}: {error.strerror}") from None
    return decode_text(content, f"{path}: expected {what}")


def decode_text(content: bytes, expected: str) -> str:
    """Decode text by its byte order mark; without one it has to be UTF-8.

    Args:
        content: of a file.
        expected: beginning of the error, the file included.

    Raises:
        ValueError: another encoding.
    """
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{expected} in UTF-8, got other bytes at position {error.start} "
            f"({content[error.start : error.start + 4]!r}). Save the file as UTF-8"
        ) from None
    if "\0" in text:  # UTF-16 without a mark decodes as UTF-8, and so do some binary files
        raise ValueError(f"{expected} in UTF-8, got zero bytes. Save the file as UTF-8")
    return text


def remove_leftovers(target: Path) -> None:
    """Remove the temporary files that killed processes left of ``target``.

    Only for a caller that knows that nobody writes it now.
    """
    for leftover in target.parent.glob(f".{target.stem}.*{target.suffix}"):
        leftover.unlink(missing_ok=True)
