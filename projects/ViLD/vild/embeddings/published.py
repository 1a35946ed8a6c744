"""Read matrices of text embeddings that others published: .npy, .npz, .pth, .pt or .safetensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vild.data.files import read_npy

KINDS = (".npy", ".npz", ".pth", ".pt", ".safetensors")


def read_matrix(path: str | os.PathLike[str]) -> np.ndarray:
    """Read the matrix of a file; nothing in the file is executed.

    Args:
        path: one of :data:`KINDS`. A ``.npz``, a ``.safetensors`` or a dict in a ``.pth`` has to
            hold exactly one 2-D float array; other entries are ignored.

    Returns:
        (rows, columns) of a float type.

    Raises:
        ValueError: the file is missing, damaged or of another kind, or it holds no matrix or
            several.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise ValueError(f"expected a matrix as one of {', '.join(KINDS)}; got {path}")
    if not path.is_file():
        raise ValueError(f"expected a matrix in {kind} format at {path}: no such file")
    if kind == ".npy":
        return _float_matrix(read_npy(path, "a matrix"), path)
    if kind == ".npz":
        return _only_matrix(_read_npz(path), path)
    if kind == ".safetensors":
        return _only_matrix(_read_safetensors(path), path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises nearly anything on damaged data
        raise ValueError(
            f"expected a tensor, or a dict of tensors, saved by torch.save in {path}; it cannot be "
            f"read without running code of the file ({type(error).__name__})"
        ) from None
    if isinstance(loaded, Tensor):
        return _float_matrix(_array(loaded), path)
    if not isinstance(loaded, Mapping):
        raise ValueError(
            f"expected a tensor, or a dict of tensors, in {path}; got {type(loaded).__name__}"
        )
    tensors = {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}
    return _only_matrix({key: _array(value) for key, value in tensors.items()}, path)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # zlib's, zipfile's and numpy's own, or no archive at all
        raise ValueError(f"expected arrays in .npz format at {path}: {error}") from None


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="pt") as file:
            if "vocabulary" in (file.metadata() or {}):
                raise ValueError(
                    f"{path} holds text embeddings of this project: use the file as it is "
                    "(MODEL.VILD.TEXT_EMBEDDINGS), it needs no import"
                )
            return {name: _array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"expected a matrix in .safetensors format at {path}: {error}") from None


def _array(tensor: Tensor) -> np.ndarray:
    # numpy has no bfloat16 and no 8-bit floats
    known = tensor.dtype in (torch.float16, torch.float32, torch.float64)
    if tensor.is_floating_point() and not known:
        tensor = tensor.float()
    return tensor.detach().to_dense().numpy()


def _is_matrix(array: np.ndarray) -> bool:
    return array.ndim == 2 and np.issubdtype(array.dtype, np.floating)


def _float_matrix(array: np.ndarray, path: Path) -> np.ndarray:
    if not _is_matrix(array):
        raise ValueError(f"{path}: expected a float matrix, got {array.dtype} {array.shape}")
    return array


def _only_matrix(arrays: Mapping[str, Any], path: Path) -> np.ndarray:
    matrices = [name for name, array in arrays.items() if _is_matrix(array)]
    if len(matrices) != 1:
        held = ", ".join(f"{name} {array.shape}" for name, array in list(arrays.items())[:5])
        raise ValueError(
            f"{path}: expected exactly one float matrix, got {len(matrices)} among "
            f"{len(arrays)} arrays ({held or 'none'}). Save the one that is meant as .npy"
        )
    return arrays[matrices[0]]
