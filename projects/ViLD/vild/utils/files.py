"""Write files atomically, check output paths before the work, and read text and arrays."""

from __future__ import annotations

import codecs
import errno
import hashlib
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from vild.utils.formatting import format_size

# Longest marks first: the mark of UTF-32 LE begins with that of UTF-16 LE.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)

# Pattern of temporary names; see _temporary.
_MARK = r"vild-(?P<host>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{8}"
_TEMPORARY = re.compile(rf"\..+\.{_MARK}(\.[^.]*)?")
_STALE = 24 * 3600  # seconds without a write, for files whose writers cannot be looked up
_FULL = {errno.ENOSPC, errno.EDQUOT}
_DISK_ERRORS = {*_FULL, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE}


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path that replaces ``target`` when the block ends without an error.

    The file is flushed to disk before it is renamed; after an error it is removed. The first call
    of a process for a folder also removes temporary files that killed processes left there.

    Args:
        target: file to write; its folder is created if missing.

    Raises:
        OSError: the file cannot be written; the message names ``target`` and, on a full disk, the
            free space.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale_once(os.path.abspath(target.parent))
    temporary = _temporary(target)
    try:
        with write_errors_named(target, temporary):
            temporary.touch()
            mode = temporary.stat().st_mode  # follows the umask; some libraries make files private
            yield temporary
            temporary.chmod(mode)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
            _sync_folder(target.parent)
    finally:
        with suppress(OSError):  # e.g. the disk became read-only
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder that replaces ``target`` when the block ends without an error.

    After a kill, the old folder, the new one or, for an instant, neither exists.

    Args:
        target: folder to write; if it is a link, the folder that it links to.

    Raises:
        OSError: the folder cannot be written.
    """
    target = Path(target).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale_once(os.fspath(target.parent))
    temporary, old = _temporary(target), _temporary(target)
    try:
        temporary.mkdir()
        yield temporary
        if target.exists():
            os.replace(target, old)
        os.replace(temporary, target)
        _sync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def write_errors_named(
    path: str | os.PathLike[str], temporary: str | os.PathLike[str] | None = None
) -> Iterator[None]:
    """Make write errors name the file and, on a full disk, the free space.

    Args:
        path: the file that the block writes.
        temporary: the temporary name it is written under, if different.

    Raises:
        OSError: of the same subclass as the original. Errors about other files are not changed.
    """
    try:
        yield
    except Exception as error:
        cause = _write_error(error, {os.fspath(path), os.fspath(temporary or path)})
        if cause is None:
            raise
        reason = cause.strerror or str(cause)
        if cause.errno in _FULL:
            with suppress(OSError):
                reason += f" ({format_size(shutil.disk_usage(Path(path).parent).free)} free)"
        raise OSError(cause.errno, reason, os.fspath(path)) from error


def require_writable_folder(folder: str | os.PathLike[str], what: str) -> None:
    """Check before the work that a folder is writable; create it if missing.

    Args:
        folder: where files will be written.
        what: the option or setting that names it, for the error ("--out-dir").

    Raises:
        ValueError: it cannot be created or written, or its disk is full.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        _try_writing(Path(folder, "check"))
    except OSError as error:
        raise ValueError(
            f"expected {what} to be a folder that can be written, got {folder} ({_reason(error)})"
        ) from None


def require_writable_file(path: str | os.PathLike[str], what: str) -> None:
    """Check before the work that :func:`atomic_path` can write a file; create its folder.

    Args:
        path: file that will be written or replaced.
        what: the option or setting that names it, for the error ("--out").

    Raises:
        ValueError: its folder cannot be created or written, its disk is full, or the path is a
            folder or a device.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise IsADirectoryError(
                errno.EISDIR, "it is a folder" if path.is_dir() else "it is not a regular file"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        _try_writing(path)
    except OSError as error:
        raise ValueError(
            f"expected {what} to be a file that can be written, got {path} ({_reason(error)})"
        ) from None


def _try_writing(target: Path) -> None:
    """Write a block under a temporary name of ``target`` and remove it again."""
    _remove_stale_once(os.path.abspath(target.parent))  # they may be what fills the disk
    temporary = _temporary(target)
    try:
        with temporary.open("xb") as file:
            file.write(bytes(4096))  # even a full disk allows creating an empty file
            file.flush()
            os.fsync(file.fileno())
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _reason(error: OSError) -> str:
    if isinstance(error, FileExistsError):  # raised by mkdir
        return f"{error.filename} is a file"
    return error.strerror or str(error)


@cache
def _host() -> str:
    """Return 8 hexadecimal digits that identify this machine, boot and PID namespace."""
    words = [socket.gethostname()]
    with suppress(OSError):  # only Linux has these files
        words.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        words.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:8]


def _temporary(target: Path) -> Path:
    """Return a new name next to ``target`` that identifies its writer, to find leftovers.

    It keeps the suffix, which some writers depend on.
    """
    own = f"vild-{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    return target.with_name(f".{target.stem}.{own}{target.suffix}")


@lru_cache(maxsize=1024)
def _remove_stale_once(folder: str) -> None:
    """Remove temporary files and folders whose writers are dead.

    Writers on another machine or in another container cannot be looked up: their files are removed
    after a day without a write.
    """
    with suppress(OSError):  # the folder may be writable but not readable
        for name in os.listdir(folder):
            found = _TEMPORARY.fullmatch(name)
            if found is not None:
                _remove_if_stale(Path(folder, name), found["host"], int(found["process"]))


def _remove_if_stale(path: Path, host: str, process: int) -> None:
    with suppress(OSError):
        idle = time.time() - path.stat().st_mtime
        if idle > _STALE or (host == _host() and not _is_alive(process)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # elsewhere os.kill would end the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's process
        pass
    return True


def _write_error(error: BaseException, names: set[str]) -> OSError | None:
    """Return the system error behind a failed write of a file with one of these names, or None.

    torch and safetensors replace it by their own exceptions.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            if cause.filename is None:
                return cause if cause.errno in _DISK_ERRORS else None
            return cause if os.fspath(cause.filename) in names else None
        number = re.search(r"\(os error (\d+)\)", str(cause))
        if type(cause).__name__ == "SafetensorError" and number:
            return OSError(int(number[1]), os.strerror(int(number[1])))
        cause = cause.__cause__ or cause.__context__
    return None


def _sync_folder(folder: Path) -> None:
    """Flush the folder itself, since a power cut could undo the rename otherwise."""
    if os.name != "posix":  # other systems cannot open folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_npy(path: str | os.PathLike[str], what: str) -> np.ndarray:
    """Read the array of an ``.npy`` file without allowing pickles.

    Args:
        path: the file.
        what: what the file should be, for the error message.

    Raises:
        ValueError: the file is missing or is not an ``.npy`` file.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"expected {what} in .npy format at {path}: {error}") from None
    if not isinstance(array, np.ndarray):  # an archive of several arrays, whatever its suffix
        array.close()
        raise ValueError(f"expected {what} in .npy format at {path}, got an .npz archive")
    return array


def read_text(path: str | os.PathLike[str], what: str) -> str:
    """Read a text file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Args:
        path: the file.
        what: what the file should hold, for the error message ("a list of classes").

    Raises:
        ValueError: the file is missing, cannot be read, or has another encoding.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"expected {what} at {path}: {error.strerror}") from None
    return decode_text(content, f"{path}: expected {what}")


def decode_text(content: bytes, expected: str) -> str:
    """Decode text by its byte order mark, or as UTF-8 if it has none.

    Args:
        content: contents of the file.
        expected: beginning of the error message, including the file.

    Raises:
        ValueError: the text has another encoding.
    """
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{expected} in UTF-8, got other bytes at position {error.start} "
            f"({content[error.start : error.start + 4]!r}). Save the file as UTF-8"
        ) from None
    if "\0" in text:  # UTF-16 without a mark and some binary files decode as UTF-8
        raise ValueError(f"{expected} in UTF-8, got zero bytes. Save the file as UTF-8")
    return text


def remove_leftovers(target: Path) -> None:
    """Remove the temporary files of ``target``, whoever wrote them.

    Only call this when no process is writing ``target``.
    """
    marks = rf"({_MARK}|[0-9a-f]{{12}})"  # 12 digits: names used by earlier versions
    own = re.compile(rf"\.{re.escape(target.stem)}\.{marks}{re.escape(target.suffix)}")
    for name in os.listdir(target.parent) if target.parent.is_dir() else ():
        if own.fullmatch(name):
            target.with_name(name).unlink(missing_ok=True)
