"""Read files of ``torch.save`` without running code from them, after verifying checksums."""

from __future__ import annotations

import contextlib
import pickle
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import torch

from vild.storage.errors import UnsafeFileError
from vild.storage.layout import BLOCK
from vild.storage.safe_pickle import Array, Dtype, plain, stand_ins

DOS_FOLDER = 0x10  # attribute that marks a folder
ZIP_START = b"PK\x03\x04"  # signature by which torch recognises its archives


def read_torch(path: Path) -> Any:
    """Read tensors, numpy arrays and numbers, and plain Python values.

    Args:
        path: a file written by ``torch.save``.

    Returns:
        the saved object, on the CPU.

    Raises:
        UnsafeFileError: reading it would run code.
        Exception: a damaged file may raise almost any exception.
    """
    check_archive(path)
    # before torch 2.5 there is no such context, and numpy arrays are not supported
    allow = getattr(torch.serialization, "safe_globals", lambda _: contextlib.nullcontext())
    try:
        with allow(_stand_ins_for_numpy()):
            return plain(torch.load(path, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        if name := forbidden_name(error):
            raise UnsafeFileError(f"{path} refers to {name}, which could run code") from None
        raise


def forbidden_name(error: Exception) -> str:
    """Return the name that torch's restricted unpickler refused; empty for another error."""
    # match whole names, since a string that begins with "c" can also cause such an error
    found = re.search(r"GLOBAL ((?:\w+\.)*\w+) w", str(error))
    return found[1] if found and isinstance(error, pickle.UnpicklingError) else ""


def check_archive(path: Path) -> None:
    """Verify the checksums of an archive, which torch does not.

    ``torch.save`` writes a CRC-32 of each entry, but ``torch.load`` ignores it.

    Args:
        path: a file written by ``torch.save``. Files of torch before 1.6 are not archives and have
            no checksums.

    Raises:
        UnsafeFileError: an archive that ``torch.load`` does not read safely.
        Exception: it is damaged.
    """
    with path.open("rb") as file:
        is_zip = file.read(len(ZIP_START)) == ZIP_START
    if not is_zip:
        if tarfile.is_tarfile(path):
            raise UnsafeFileError(f"{path} is a tar archive of an early torch, made of pickles")
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(is_torchscript(entry.filename) for entry in entries):
            raise UnsafeFileError(f"{path} is a TorchScript archive, which runs code when read")
        # all zero: written with torch.serialization.set_crc32_options(False)
        if any(entry.CRC for entry in entries):
            for entry in entries:
                # torch would leave the tensor's memory uninitialised
                if entry.file_size and entry.external_attr & DOS_FOLDER:
                    raise ValueError(f"{entry.filename} is marked as a folder")
                with archive.open(entry) as opened:
                    while opened.read(BLOCK):
                        pass


def is_torchscript(entry: str) -> bool:
    """Return whether an entry of this name only occurs in TorchScript archives."""
    return entry.rpartition("/")[2] == "constants.pkl"


def _stand_ins_for_numpy() -> list[Any]:
    """Return replacements for numpy's unpickling functions, which trust their input."""
    allowed: list[Any] = [Array, Dtype]
    for (module, name), stand_in in stand_ins().items():
        if module.startswith("numpy"):
            stand_in.__module__ = module  # torch looks at these attributes
            stand_in.__qualname__ = stand_in.__name__ = name
            allowed.append(stand_in)
    return allowed
