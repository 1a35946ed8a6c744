"""Teacher files never run code, whatever they pretend to be."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from vild.embeddings import build_teacher
from vild.embeddings.torchscript import is_archive, read_tensors

from ..malicious import CHECKPOINTS, GADGETS, write_torchscript
from .test_pretrained import published  # noqa: F401  (a fixture)

HARMFUL = ["torch", "torch, .pt", "torch, .bin", "old torch", "tar", "archive in archive"]


@pytest.mark.parametrize("kind", HARMFUL)
def test_code_in_a_teacher_is_refused_and_not_run(kind: str, tmp_path: Path) -> None:
    marker, (ending, write) = tmp_path / "marker", CHECKPOINTS[kind]
    path = tmp_path / f"file{ending}"
    for gadget, make in GADGETS.items():
        write(make(marker), path)
        # OpenAI's tag refers to a TorchScript archive
        for model, pretrained in (("tiny", str(path)), ("tiny-clip", f"openai={path}")):
            with pytest.raises(ValueError, match="could not be loaded as a checkpoint") as error:
                build_teacher(model, pretrained, "cpu")
            assert "\n" not in str(error.value)
            if kind.startswith(("torch", "old")):
                assert re.search(rf"asks for [\w.]*{gadget}\b", str(error.value))
                assert "tools/convert_checkpoint.py" in str(error.value)
        assert not marker.exists()


def test_a_program_in_a_teacher_is_not_run(tmp_path: Path) -> None:
    write_torchscript(tmp_path / "marker", tmp_path / "file.pt")
    with pytest.raises(ValueError, match="could not be loaded as a checkpoint of tiny-clip"):
        build_teacher("tiny-clip", str(tmp_path / "file.pt"), "cpu")
    assert not (tmp_path / "marker").exists()


def test_a_pickle_in_a_torchscript_archive_is_refused_and_not_run(tmp_path: Path) -> None:
    for make in GADGETS.values():
        with zipfile.ZipFile(tmp_path / "file.pt", "w") as archive:
            archive.writestr("file/data.pkl", pickle.dumps(make(tmp_path / "marker"), protocol=2))
            archive.writestr("file/constants.pkl", b"\x80\x02).")
            archive.writestr("file/code/__torch__.py", "")
        with pytest.raises(ValueError, match="expected a pickle of plain arrays, got one with"):
            build_teacher("tiny-clip", str(tmp_path / "file.pt"), "cpu")
        assert not (tmp_path / "marker").exists()


def test_a_damaged_teacher_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.rand(99, 99)}, tmp_path / "file.pt")
    content = bytearray((tmp_path / "file.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"file\.pt could not be loaded .*Bad CRC-32"):
        build_teacher("tiny", str(tmp_path / "file.pt"), "cpu")


def test_a_torchscript_archive_has_the_tensors_that_torch_finds(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    model[1][0].weight = model[0].weight = nn.Parameter(torch.rand(2, 2).t())  # tied, transposed
    model[1].half().register_buffer("kind", torch.tensor(7))
    torch.jit.script(model).save(str(tmp_path / "file.pt"))
    assert is_archive(tmp_path / "file.pt")
    found, expected = read_tensors(tmp_path / "file.pt"), model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        assert torch.equal(found[name], value)
