"""Safetensors files with a checksum of the whole content in the header."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from vild.storage.layout import BLOCK, HEADER_LENGTH, data_start
from vild.utils.files import atomic_path

DIGEST = "vild_sha256"  # metadata key


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors and their checksum atomically.

    Args:
        path: file to write; its folder is created if missing.
        tensors: contiguous tensors.
        metadata: strings for the header.
    """
    # serialise first: the checksum goes into the header
    content = memoryview(save(dict(tensors), dict(metadata)))
    start = data_start(bytes(content[:HEADER_LENGTH]))
    digest = _digest(bytes(content[HEADER_LENGTH:start]), [content[start:]])
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(dict(tensors), {**metadata, DIGEST: digest}))


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata.

    Args:
        path: a file written by :func:`write_safetensors`, whose checksum is then verified, or by
            another program.

    Returns:
        (tensors, metadata); the metadata include :data:`DIGEST` if the checksum was verified.

    Raises:
        ValueError: the file is damaged, is not a safetensors file, or cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if DIGEST in metadata and metadata[DIGEST] != _file_digest(Path(path)):
                raise ValueError(
                    f"{path} is damaged: its content does not match the recorded sha256. Copy or "
                    "make it again"
                )
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error})") from None


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        header = file.read(data_start(file.read(HEADER_LENGTH)) - HEADER_LENGTH)
        return _digest(header, iter(lambda: file.read(BLOCK), b""))


def _digest(header: bytes, data: Iterable[bytes | memoryview]) -> str:
    """Return the sha256 of header and data, ignoring the checksum itself and the order of keys."""
    parsed: dict[str, Any] = json.loads(header)
    parsed.get("__metadata__", {}).pop(DIGEST, None)
    digest = hashlib.sha256(json.dumps(parsed, sort_keys=True).encode())
    for block in data:
        digest.update(block)
    return digest.hexdigest()
