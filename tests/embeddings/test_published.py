"""Published matrices: every kind of file is read, or refused in one line."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vild.data import Vocabulary
from vild.embeddings import TextEmbeddings, import_embeddings
from vild.embeddings.published import read_matrix, stored_names

from ..malicious import GADGETS, MATRICES

ROWS = torch.arange(1.0, 7.0).reshape(3, 2)
NOT_A_MATRIX = torch.arange(3)
QINT = torch.qint8

READABLE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "npy": ("a.npy", lambda path: np.save(path, ROWS.numpy())),
    "npz": ("a.NPZ", lambda path: np.savez(path.open("wb"), rows=ROWS.numpy())),
    "npz with names": ("a.npz", lambda path: np.savez(path, rows=ROWS, names=["a", "b", "c"])),
    "tensor": ("a.pth", lambda path: torch.save(ROWS, path)),
    "half": ("a.pt", lambda path: torch.save(ROWS.half(), path)),
    "bfloat16": ("a.pt", lambda path: torch.save(ROWS.bfloat16(), path)),
    "parameter": ("a.pth", lambda path: torch.save(torch.nn.Parameter(ROWS), path)),
    "of an old torch": (
        "a.pth",
        lambda path: torch.save(ROWS, path, _use_new_zipfile_serialization=False),
    ),
    "dict": (
        "a.PTH",
        lambda path: torch.save({"rows": ROWS, "ids": NOT_A_MATRIX, "note": "x"}, path),
    ),
    "safetensors": ("a.safetensors", lambda path: save_file({"rows": ROWS}, path)),
    "safetensors of bfloat16": (
        "a.safetensors",
        lambda path: save_file({"rows": ROWS.bfloat16(), "ids": NOT_A_MATRIX}, path),
    ),
}


@pytest.mark.parametrize("name", READABLE)
def test_every_kind_is_read(tmp_path: Path, name: str) -> None:
    file, save = READABLE[name]
    save(tmp_path / file)
    np.testing.assert_array_equal(read_matrix(tmp_path / file).astype(np.float32), ROWS.numpy())
    made = import_embeddings(tmp_path / file, Vocabulary.from_names(list("abc")), "x")
    torch.testing.assert_close(made.embeddings, torch.nn.functional.normalize(ROWS, dim=1))


REFUSED: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "missing": ("a.pth", lambda path: None, "no such file"),
    "torch named npz": (
        *("a.npz", lambda path: torch.save(ROWS, path)),
        r"got an archive with a/data\.pkl\. Rename .* to \.pth",
    ),
    "bytes named npz": (
        "a.npz",
        lambda path: path.write_bytes(bytes(range(256))),
        "in .npz format",
    ),
    "sparse": ("a.pth", lambda path: torch.save(ROWS.to_sparse(), path), "got a sparse one"),
    "sparse rows": (
        *("a.pth", lambda path: torch.save({"x": ROWS.to_sparse_csr()}, path)),
        "got a sparse one",
    ),
    "meta": ("a.pth", lambda path: torch.save(ROWS.to("meta"), path), "got a meta one"),
    "quantised": (
        *("a.pth", lambda path: torch.save(torch.quantize_per_tensor(ROWS, 0.1, 0, QINT), path)),
        "got a quantised one",
    ),
    "a folder": ("a.npy", Path.mkdir, "no such file"),
    "another kind": ("a.txt", lambda path: path.write_text("1 2"), r"one of \.npy, \.npz, \.pth"),
    "numpy's pickle": ("a.npy", lambda path: np.save(path, np.array([{}])), "in .npy format"),
    "an archive named npy": (
        *("a.npy", lambda path: np.savez(path.open("wb"), rows=ROWS)),
        "got an .npz archive",
    ),
    "damaged npz": ("a.npz", lambda path: path.write_bytes(b"PK\x03\x04"), "in .npz format"),
    "pickles in npz": ("a.npz", lambda path: np.savez(path, x=np.array([{}])), "in .npz format"),
    "two matrices": (
        *("a.npz", lambda path: np.savez(path, x=ROWS, y=ROWS)),
        r"expected exactly one float matrix, got 2 among 2 arrays \(x \(3, 2\), y \(3, 2\)\)",
    ),
    "an empty archive": ("a.npz", lambda path: np.savez(path), r"got 0 among 0 arrays \(none\)"),
    "whole numbers": ("a.pth", lambda path: torch.save(NOT_A_MATRIX, path), "got int64"),
    "three dimensions": ("a.pt", lambda path: torch.save(ROWS[None], path), r"float32 \(1, 3, 2\)"),
    "dict of dicts": (
        *("a.pth", lambda path: torch.save({"state_dict": {"x": ROWS}}, path)),
        "got 0 among 0 arrays",
    ),
    "a list": ("a.pth", lambda path: torch.save([ROWS], path), "a dict of tensors, .* got list"),
    "objects": (
        "a.pth",
        lambda path: torch.save(Path("x"), path),
        r"refers to pathlib\..*run code",
    ),
    "another pickle": (
        *("a.pth", lambda path: path.write_bytes(pickle.dumps(Path("x")))),
        "damaged or of another kind",
    ),
    "no pickle": ("a.pth", lambda path: path.write_text("cat"), "damaged or of another kind"),
    "nothing": ("a.pth", lambda path: path.write_bytes(b""), "damaged or of another kind"),
    "damaged safetensors": (
        *("a.safetensors", lambda path: path.write_bytes(b"\x10")),
        "not a complete safetensors file",
    ),
    "embeddings of this project": (
        "a.safetensors",
        lambda path: TextEmbeddings(
            torch.eye(2), Vocabulary.from_names(["a", "b"]), 0.01, "x"
        ).save(path),
        "without an import",
    ),
}


# torch's warnings about the unsupported kinds of tensors
@pytest.mark.filterwarnings("ignore:(Sparse CSR|torch.quantize_per_tensor)")
@pytest.mark.parametrize("name", REFUSED)
def test_other_files_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    file, save, message = REFUSED[name]
    save(tmp_path / file)
    with pytest.raises(ValueError, match=message) as refused:
        read_matrix(tmp_path / file)
    assert str(tmp_path / file) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("gadget", GADGETS)
@pytest.mark.parametrize("kind", MATRICES)
def test_code_in_a_matrix_is_refused_and_not_run(kind: str, gadget: str, tmp_path: Path) -> None:
    ending, write = MATRICES[kind]
    write(GADGETS[gadget](tmp_path / "marker"), tmp_path / f"a{ending}")
    with pytest.raises(ValueError, match=r"expected (a tensor|arrays|a matrix)") as refused:
        read_matrix(tmp_path / f"a{ending}")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "marker").exists()


NAMES = ["wren", "owl", "kite"]
NAMED: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "npz": ("a.npz", lambda path: np.savez(path, rows=ROWS, names=NAMES)),
    "npz of bytes": (
        "a.npz",
        lambda path: np.savez(path, rows=ROWS, n=[n.encode() for n in NAMES]),
    ),
    "dict": ("a.pth", lambda path: torch.save({"rows": ROWS, "classes": NAMES, "k": ["x"]}, path)),
    "safetensors": (
        *("a.safetensors",),
        lambda path: save_file({"rows": ROWS}, path, {"classes": json.dumps(NAMES), "k": "text"}),
    ),
}


@pytest.mark.parametrize("kind", NAMED)
def test_the_names_that_a_file_holds_are_read(kind: str, tmp_path: Path) -> None:
    file, save = NAMED[kind]
    save(tmp_path / file)
    assert stored_names(tmp_path / file) == tuple(NAMES)


def test_files_without_names_or_with_several_lists(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    torch.save({"rows": ROWS, "more": [1, 2, 3]}, tmp_path / "a.pth")
    assert stored_names(tmp_path / "a.npy") == stored_names(tmp_path / "a.pth") == ()
    torch.save({"rows": ROWS, "a": NAMES, "b": NAMES[::-1]}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"one list of class names, got a, b.*--import-classes"):
        stored_names(tmp_path / "a.pth")
