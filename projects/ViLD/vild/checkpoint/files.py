"""Readers and writers of checkpoint files in all formats, which never run code from a file."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vild.storage.errors import UnsafeFileError
from vild.storage.safe_pickle import ForbiddenError, load_plain
from vild.storage.safetensors_files import read_safetensors, write_safetensors
from vild.storage.torch_files import read_torch

# tell Detectron2 to match parameter names heuristically; stored in the safetensors header
_AUTHOR, _HEURISTICS = "__author__", "matching_heuristics"


def read_checkpoint(path: Path, trusted: bool = False) -> Any:
    """Read a checkpoint.

    Args:
        path: ``.safetensors``; ``.pkl`` of the Detectron2 or Detectron model zoo; ``.pyth`` of
            pycls; anything else is read as a ``torch.save`` file.
        trusted: unpickle without restrictions, which can run code from the file. Only for files
            whose source you trust.

    Returns:
        A dict with the parameters under ``model``, unless the file holds something else.

    Raises:
        UnsafeFileError: reading the file would run code.
        Exception: a damaged file may raise almost any exception.
    """
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
        loaded: dict[str, Any] = {"model": tensors}
        if _HEURISTICS in metadata:
            loaded |= {_AUTHOR: metadata.get(_AUTHOR, ""), _HEURISTICS: True}
        return loaded
    if path.suffix == ".pkl":
        return _from_model_zoo(_read_pickle(path, trusted))
    if trusted:
        loaded = torch.load(path, map_location="cpu", weights_only=False)
    else:
        loaded = read_torch(path)
    if not isinstance(loaded, dict):
        return loaded
    if path.suffix == ".pyth":
        weights = {k: v for k, v in loaded["model_state"].items() if not k.endswith("_tracked")}
        return {"model": weights, _AUTHOR: "pycls", _HEURISTICS: True}
    return loaded if "model" in loaded else {"model": loaded}


def write_weights(path: Path, checkpoint: Mapping[str, Any]) -> int:
    """Write only the parameters of a checkpoint, as safetensors.

    Args:
        path: file to write.
        checkpoint: as :func:`read_checkpoint` returns it.

    Returns:
        Number of parameters and buffers.

    Raises:
        ValueError: ``checkpoint`` contains no model parameters.
    """
    weights = checkpoint.get("model") if isinstance(checkpoint, Mapping) else None
    if isinstance(weights, Mapping) and "state_dict" in weights:  # as open_clip saves
        weights = weights["state_dict"]
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError("expected parameters by name, or a dict of them under 'model'")
    tensors = {}
    for name, value in weights.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            value = torch.from_numpy(np.array(value, order="C"))
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"expected tensors by name, got {type(value).__name__} under {name!r}")
        tensors[name] = value.detach().cpu().clone().contiguous()  # no shared memory
    metadata = {}
    if checkpoint.get(_HEURISTICS):
        metadata = {_HEURISTICS: "true", _AUTHOR: str(checkpoint.get(_AUTHOR, ""))}
    write_safetensors(path, tensors, metadata)
    return len(tensors)


def _read_pickle(path: Path, trusted: bool) -> Any:
    with path.open("rb") as file:
        if trusted:
            return pickle.load(file, encoding="latin1")
        try:
            return load_plain(file)
        except ForbiddenError as error:
            raise UnsafeFileError(f"{path}: {str(error).removesuffix('.')}") from None


def _from_model_zoo(data: Any) -> Any:
    """Convert the contents of a ``.pkl`` file in the way Detectron2's checkpointer does."""
    if not isinstance(data, dict) or ("model" in data and _AUTHOR in data):
        return data
    # Detectron stores detectors under "blobs", backbones without it
    data = data.get("blobs", data)
    weights = {k: v for k, v in data.items() if not str(k).endswith("_momentum")}
    return {"model": weights, _AUTHOR: "Caffe2", _HEURISTICS: True}
