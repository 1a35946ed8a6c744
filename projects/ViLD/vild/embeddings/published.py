"""Read published matrices of text embeddings: .npy, .npz, .pth, .pt or .safetensors."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vild.storage.errors import UnsafeFileError
from vild.storage.safetensors_files import read_safetensors
from vild.storage.torch_files import read_torch
from vild.utils.files import read_npy

KINDS = (".npy", ".npz", ".pth", ".pt", ".safetensors")


def read_matrix(path: str | os.PathLike[str]) -> np.ndarray:
    """Read the matrix of a file without executing code from it.

    Args:
        path: one of :data:`KINDS`. A ``.npz``, a ``.safetensors`` or a dict in a ``.pth`` must
            hold exactly one 2-D float array; other entries are ignored.

    Returns:
        (rows, columns) of a float type.

    Raises:
        ValueError: the file is missing, damaged or of another kind, or it does not hold exactly one
            matrix.
    """
    return _matrix(_contents(Path(path)), path)


def stored_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read the class names stored with a file's matrix.

    Args:
        path: see :func:`read_matrix`. Names are a list of strings, as many as the matrix has rows
            or columns; in a ``.safetensors`` they are a json list in the header.

    Returns:
        the names in the file's order; empty if it has none.

    Raises:
        ValueError: see :func:`read_matrix`; or there are several lists of names.
    """
    contents = _contents(Path(path))
    sides = _matrix(contents, path).shape
    if isinstance(contents, Tensor | np.ndarray):
        return ()
    lists = {name: _texts(value) for name, value in contents.items()}
    found = {name: texts for name, texts in lists.items() if texts and len(texts) in sides}
    if len(set(found.values())) > 1:
        raise ValueError(
            f"{path}: expected one list of class names, got {', '.join(found)}. Give the classes "
            "of the rows with --import-classes"
        )
    return next(iter(found.values()), ())


def _matrix(
    contents: Tensor | np.ndarray | Mapping[str, Any], path: str | os.PathLike[str]
) -> np.ndarray:
    """Return the only float matrix among a file's contents."""
    if isinstance(contents, Tensor | np.ndarray):
        array = _array(contents, path)
        if not _is_matrix(array):
            raise ValueError(f"{path}: expected a float matrix, got {array.dtype} {array.shape}")
        return array
    arrays = {
        name: _array(value, path)
        for name, value in contents.items()
        if isinstance(value, Tensor | np.ndarray)
    }
    matrices = [name for name, array in arrays.items() if _is_matrix(array)]
    if len(matrices) != 1:
        held = ", ".join(f"{name} {array.shape}" for name, array in list(arrays.items())[:5])
        raise ValueError(
            f"{path}: expected exactly one float matrix, got {len(matrices)} among "
            f"{len(arrays)} arrays ({held or 'none'}). Save the intended one as .npy"
        )
    return arrays[matrices[0]]


def _contents(path: Path) -> Tensor | np.ndarray | Mapping[str, Any]:
    """Return a file's array, or its arrays and other entries by name."""
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise ValueError(f"expected a matrix as one of {', '.join(KINDS)}; got {path}")
    if not path.is_file():
        raise ValueError(f"expected a matrix in {kind} format at {path}: no such file")
    if kind == ".npy":
        return read_npy(path, "a matrix")
    if kind == ".npz":
        return _read_npz(path)
    if kind == ".safetensors":
        return _read_safetensors(path)
    try:
        loaded = read_torch(path)
    except UnsafeFileError as error:
        raise ValueError(
            f"{error}: expected a tensor, or a dict of tensors. Save the matrix as .npy"
        ) from None
    except Exception as error:  # the unpickler raises many exception types on damaged data
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"expected a tensor, or a dict of tensors, saved by torch.save in {path}; it is "
            f"damaged or of another kind ({type(error).__name__}: {reason})"
        ) from None
    if not isinstance(loaded, Tensor | np.ndarray | Mapping):
        raise ValueError(
            f"expected a tensor, or a dict of tensors, in {path}; got {type(loaded).__name__}"
        )
    return loaded


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # errors of zlib, zipfile and numpy, or not an archive
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"expected arrays in .npz format at {path}: {reason}") from None
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # bytes: the member is not an .npy
            raise ValueError(
                f"expected arrays in .npz format at {path}, got an archive with {name}. Rename "
                "files of torch.save to .pth"
            )
    return arrays


def _read_safetensors(path: Path) -> dict[str, Any]:
    tensors, metadata = read_safetensors(path)
    if "vocabulary" in metadata:
        raise ValueError(
            f"{path} already holds text embeddings of this project: use it without an import "
            "(MODEL.VILD.TEXT_EMBEDDINGS)"
        )
    texts: dict[str, Any] = {}
    for key, value in metadata.items():
        with contextlib.suppress(ValueError):
            texts[f"header's {key}"] = json.loads(value)
    return {**texts, **tensors}


def _texts(value: Any) -> tuple[str, ...]:
    """Return a list of strings as a tuple; empty for anything else."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "US":
        value = value.tolist()
    if not isinstance(value, list | tuple):
        return ()
    decoded = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in value]
    return tuple(decoded) if all(isinstance(v, str) for v in decoded) else ()


def _array(value: Tensor | np.ndarray, path: str | os.PathLike[str]) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    if value.is_meta or value.is_quantized or value.layout is not torch.strided:
        kind = "meta" if value.is_meta else "quantised" if value.is_quantized else "sparse"
        raise ValueError(f"{path}: expected ordinary tensors, got a {kind} one. Save it as .npy")
    # numpy has no bfloat16 and no 8-bit floats
    known = value.dtype in (torch.float16, torch.float32, torch.float64)
    if value.is_floating_point() and not known:
        value = value.float()
    return value.detach().resolve_conj().resolve_neg().numpy()


def _is_matrix(array: np.ndarray) -> bool:
    return array.ndim == 2 and np.issubdtype(array.dtype, np.floating)
