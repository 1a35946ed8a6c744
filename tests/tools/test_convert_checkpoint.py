"""The command line of tools/convert_checkpoint.py."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import convert_checkpoint
from vild.checkpoint import load_weights

from ..checkpoint.test_checkpointer import Detector, state_dict
from ..malicious import GADGETS, as_torch

Run = Callable[..., int]


def test_a_trusted_checkpoint_is_converted(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = state_dict(Detector())
    source, out = tmp_path / "theirs.pth", tmp_path / "ours.safetensors"
    torch.save({"model": state, "args": argparse.Namespace(lr=1)}, source)
    with pytest.raises(ValueError, match=r"refers to argparse\.Namespace, which could run code"):
        load_weights(Detector(), str(source))
    assert run(convert_checkpoint, source, out) == 2
    assert "argparse.Namespace" in capsys.readouterr().err
    assert not out.exists()
    assert run(convert_checkpoint, source, out, "--trusted") == 0
    assert f"wrote {out}: {len(state)} arrays" in capsys.readouterr().out
    load_weights(read := Detector(), str(out))
    assert all(torch.equal(value, state[name]) for name, value in read.state_dict().items())


def test_a_teacher_s_training_checkpoint_is_converted(run: Run, tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": state_dict(Detector())}, tmp_path / "clip.pt")
    assert run(convert_checkpoint, tmp_path / "clip.pt", tmp_path / "clip.safetensors") == 0
    load_weights(Detector(), str(tmp_path / "clip.safetensors"))


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint", "harmful"])
def test_other_files_get_one_line(
    content: bytes | str | None, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "theirs.pth"
    if isinstance(content, bytes):
        source.write_bytes(content)
    elif content is not None:
        as_torch(GADGETS["system"](tmp_path / "marker"), source)
    assert run(convert_checkpoint, source, tmp_path / "ours.safetensors") == 2
    (line,) = [li for li in capsys.readouterr().err.splitlines() if "error: " in li]
    assert f"{source} could not be converted" in line
    assert run(convert_checkpoint, source, tmp_path / "ours.pth") == 2
    assert not (tmp_path / "marker").exists()
    assert not list(tmp_path.glob("ours*"))
