"""Files that run code when they are read carelessly: each would make a marker file."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Call:
    """Pickled as a call of ``function``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def _nested(marker: Path) -> bytes:
    buffer = io.BytesIO()
    harmful = {"x": Call(os.system, f"touch {marker}")}
    torch.save(harmful, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


# name in the error -> what makes the marker when it is unpickled
GADGETS: dict[str, Callable[[Path], object]] = {
    "system": lambda marker: Call(os.system, f"touch {marker}"),
    "check_output": lambda marker: Call(subprocess.check_output, ["touch", str(marker)]),
    "eval": lambda marker: Call(builtins.eval, f"open({str(marker)!r}, 'w').close()"),
    # torch's own: another pickle inside of a tensor's storage
    "_load_from_bytes": lambda marker: Call(torch.storage._load_from_bytes, _nested(marker)),
}


def checkpoint(harmful: object) -> dict[str, Any]:
    """A detector's checkpoint with something harmful beside its weights."""
    return {"model": {"roi_heads.weight": torch.ones(2, 4)}, "hooks": harmful}


def as_torch(harmful: object, file: Path) -> None:
    torch.save(checkpoint(harmful), file)


def as_old_torch(harmful: object, file: Path) -> None:
    torch.save(checkpoint(harmful), file, _use_new_zipfile_serialization=False)


def as_tar(harmful: object, file: Path) -> None:
    """As the earliest versions of torch saved."""
    with tarfile.open(file, "w") as archive:
        for name, value in (("storages", 0), ("tensors", 0), ("pickle", harmful)):
            content = pickle.dumps(value, protocol=2)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def as_model_zoo(harmful: object, file: Path) -> None:
    weights = {"roi_heads.weight": np.ones((2, 4), np.float32), "more": harmful}
    file.write_bytes(pickle.dumps({"model": weights, "__author__": "x"}, protocol=2))


def as_pycls(harmful: object, file: Path) -> None:
    torch.save({"model_state": {"stem": torch.ones(2)}, "cfg": harmful}, file)


def as_archive_in_archive(harmful: object, file: Path) -> None:
    """A pickle of torch that a glance takes for a TorchScript archive."""
    torch.save(checkpoint(harmful), file)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("other/constants.pkl", b"\x80\x02).")


def as_npz(harmful: object, file: Path) -> None:
    np.savez(file.open("wb"), rows=np.array([harmful], dtype=object))


def as_npy(harmful: object, file: Path) -> None:
    np.save(file.open("wb"), np.array([harmful], dtype=object), allow_pickle=True)


# kind of checkpoint -> (ending, what writes one)
Writer = Callable[[object, Path], None]
CHECKPOINTS: dict[str, tuple[str, Writer]] = {
    "torch": (".pth", as_torch),
    "torch, .pt": (".pt", as_torch),
    "torch, .bin": (".bin", as_torch),
    "old torch": (".pth", as_old_torch),
    "tar": (".pth", as_tar),
    "archive in archive": (".pth", as_archive_in_archive),
    "model zoo": (".pkl", as_model_zoo),
    "pycls": (".pyth", as_pycls),
}
MATRICES: dict[str, tuple[str, Writer]] = {
    "torch": (".pth", as_torch),
    "old torch": (".pt", as_old_torch),
    "tar": (".pth", as_tar),
    "npz": (".npz", as_npz),
    "npy": (".npy", as_npy),
    "torch, .npz": (".npz", as_torch),
}


class _Program(torch.nn.Module):
    """Writes a file when TorchScript loads it."""

    def __init__(self, marker: str) -> None:
        super().__init__()
        self.marker, self.weight = marker, torch.ones(2)

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return (self.marker, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.marker = state[0]
        self.training = state[1]
        self.weight = torch.from_file(self.marker, True, 4).fill_(65)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def write_torchscript(marker: Path, file: Path) -> None:
    """A TorchScript archive without harmful pickles, but with a harmful program."""
    torch.jit.script(_Program(str(marker))).save(str(file))


# tag -> yaml that makes the marker when it is loaded
TAGS: dict[str, Callable[[Path], str]] = {
    "!!python/object/apply:os.system": lambda marker: (
        f"!!python/object/apply:os.system ['touch {marker}']"
    ),
    "!!python/object/apply:eval": lambda marker: (
        f"""!!python/object/apply:eval ["open('{marker}', 'w').close()"]"""
    ),
    "!!python/object/apply:subprocess.Popen": lambda marker: (
        f"!!python/object/apply:subprocess.Popen [[touch, '{marker}']]"
    ),
}


def write_config(value: str, file: Path) -> None:
    """A configuration with a yaml value."""
    file.write_text(f"VERSION: 2\nOUTPUT_DIR: {value}\n", encoding="utf-8")
