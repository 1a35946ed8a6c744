"""Read the weights of TorchScript archives, as published by OpenAI, without loading the archive.

``torch.jit.load`` runs programs from the archive, which may write files. Here only its tensors are
read. An archive is a zip file: ``data.pkl`` describes a tree of objects, whose tensors refer to
``data/0``, ``data/1``, ...
"""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vild.storage.safe_pickle import PlainUnpickler
from vild.storage.torch_files import is_torchscript

STORAGES = {
    ("torch", f"{name}Storage"): dtype
    for name, dtype in {
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}
SIZES = ("input_resolution", "context_length", "vocab_size")  # OpenAI stores them as tensors


def is_archive(file: Path) -> bool:
    """Return whether a file is a TorchScript archive."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any(map(is_torchscript, archive.namelist()))
    except (zipfile.BadZipFile, OSError):
        return False


@contextmanager
def as_safetensors(file: Path) -> Iterator[Path]:
    """Yield the weights of an archive as a temporary safetensors file, for open_clip.

    Args:
        file: the archive.

    Raises:
        Exception: it is damaged or of another kind; an error of pickle, zipfile or torch.
    """
    state = {key: value.contiguous() for key, value in read_tensors(file).items()}
    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder, "weights.safetensors")
        save_file({key: value for key, value in state.items() if key not in SIZES}, converted)
        yield converted


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of an archive by their names; zipfile verifies the checksums."""
    with zipfile.ZipFile(file) as archive:
        (constants,) = filter(is_torchscript, archive.namelist())
        root = constants.rpartition("/")[0]
        tree = _Unpickler(archive, root).load()
    found: dict[str, Tensor] = {}
    _collect(tree, "", found)
    return found


def _collect(node: Any, prefix: str, found: dict[str, Tensor]) -> None:
    for name, value in getattr(node, "attributes", {}).items():
        if isinstance(value, Tensor):
            found[f"{prefix}{name}"] = value.clone()  # tensors may share a storage
        else:
            _collect(value, f"{prefix}{name}.", found)


class _Module:
    """Stand-in for modules and other objects of the archive's classes."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.attributes = state


class _Unpickler(PlainUnpickler):
    """Rebuilds tensors as well, and :class:`_Module` in place of every class of the archive."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        names: dict[tuple[str, str], Callable[..., Any]] = {
            **{key: (lambda dtype=dtype: dtype) for key, dtype in STORAGES.items()},
            ("torch._utils", "_rebuild_tensor_v2"): lambda *arguments: self._tensor(*arguments),
        }
        for kind in ("int", "double", "bool", "tensor"):
            names["torch.jit._pickle", f"build_{kind}list"] = lambda values: values
        names["torch.jit._pickle", "restore_type_tag"] = lambda values, _: values
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")), names)
        self._archive, self._root = archive, root
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return type("Module", (_Module,), {})  # a new one: a pickle can modify attributes
        return super().find_class(module, name)

    def persistent_load(self, reference: Any) -> Tensor:
        """Return a storage as a flat tensor."""
        _, dtype, key, *_ = reference
        if key not in self._storages:
            content = bytearray(self._archive.read(f"{self._root}/data/{key}"))
            self._storages[key] = torch.frombuffer(content, dtype=dtype())
        return self._storages[key]

    @staticmethod
    def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
        return storage.as_strided(size, stride, offset)  # torch checks the bounds
