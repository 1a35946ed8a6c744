"""Digests of the files that a command wrote, to compare two runs."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

# logs, curves, times, locks and records of checks differ between any two runs
IGNORED = (
    *("log.txt*", "metrics.json", "events.out.tfevents.*", "*.lock", ".locks", ".lock"),
    *(".checked.json", "stages", "*.part"),
)
_TEMPORARY = re.compile(r"^\.|\.making-\d+$|\.part$")


def digests(folder: Path) -> dict[str, str]:
    """Return the digest of every artefact below a folder, by relative path."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not is_ignored(file.relative_to(folder)):
            found[file.relative_to(folder).as_posix()] = digest(file, folder)
    return found


def leftovers(folder: Path) -> list[str]:
    """List the temporary files that remain below a folder."""
    return [
        file.relative_to(folder).as_posix()
        for file in sorted(folder.rglob("*"))
        if _TEMPORARY.search(file.name)
        and not file.name.endswith((".lock", ".locks", ".checked.json"))
    ]


def is_ignored(path: Path) -> bool:
    """Return whether a file does not count as an artefact."""
    return any(fnmatch(part, pattern) for part in path.parts for pattern in IGNORED) or any(
        _TEMPORARY.search(part) for part in path.parts
    )


def digest(file: Path, folder: Path) -> str:
    """Return the digest of a file, or of its tensors where equal tensors can differ in bytes."""
    if file.suffix == ".pth":
        content = torch.load(file, map_location="cpu", weights_only=False)
        return tree_digest(content)
    if file.suffix == ".safetensors":
        with safe_open(file, framework="np") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return tree_digest({"header": opened.metadata(), "tensors": tensors})
    data = file.read_bytes()
    if file.suffix == ".ts":  # a zip with timestamps
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            inner = {n.partition("/")[2]: archive.read(n) for n in archive.namelist()}
        skipped = ("debug_pkl", "serialization_id")  # contain file names and times
        kept = {n: value for n, value in inner.items() if not n.endswith(skipped)}
        return tree_digest(kept)
    return hashlib.sha256(data.replace(str(folder).encode(), b"FOLDER")).hexdigest()


def tree_digest(value: Any) -> str:
    """Return the SHA-256 of nested dicts, lists, arrays and plain values."""
    found = hashlib.sha256()
    _feed(found, value)
    return found.hexdigest()


def _feed(found: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous()
        found.update(f"{value.dtype}{tuple(value.shape)}".encode())
        value = value.flatten().view(torch.uint8).numpy() if value.numel() else np.zeros(0)
        found.update(value.tobytes())
    elif isinstance(value, np.ndarray):
        found.update(f"{value.dtype}{value.shape}".encode())
        found.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, dict):
        found.update(f"dict{len(value)}".encode())
        for key in sorted(value, key=str):
            _feed(found, str(key))
            _feed(found, value[key])
    elif isinstance(value, list | tuple):
        found.update(f"list{len(value)}".encode())
        for item in value:
            _feed(found, item)
    else:
        found.update(f"{type(value).__name__}{value!r}".encode())
