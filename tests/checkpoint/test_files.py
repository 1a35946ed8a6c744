"""Reading checkpoints runs no code, and a single flipped bit is detected."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vild.checkpoint.checkpointer import AtomicCheckpointer, load_weights
from vild.checkpoint.files import read_checkpoint, write_weights
from vild.storage.safetensors_files import read_safetensors

from ..malicious import CHECKPOINTS, GADGETS, as_torch, write_torchscript
from .test_checkpointer import Detector, state_dict


@pytest.mark.parametrize("gadget", GADGETS)
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_code_in_a_checkpoint_is_refused_and_not_run(
    kind: str, gadget: str, tmp_path: Path
) -> None:
    marker, (ending, write) = tmp_path / "marker", CHECKPOINTS[kind]
    file = tmp_path / f"model{ending}"
    write(GADGETS[gadget](marker), file)
    for load in (
        lambda: load_weights(Detector(), str(file)),
        lambda: AtomicCheckpointer(Detector(), str(tmp_path)).load(str(file)),
    ):
        with pytest.raises(ValueError, match=r"tools/convert_checkpoint\.py .* --trusted") as error:
            load()
        assert "\n" not in str(error.value)
        assert str(file) in str(error.value)
        if kind not in ("tar", "archive in archive"):  # refused before their pickles are read
            assert re.search(rf"(refers to|got one with) [\w.]*{gadget}\b", str(error.value))
    assert not marker.exists()


@pytest.mark.parametrize("gadget", GADGETS)
@pytest.mark.parametrize("kind", ["torch", "old torch", "model zoo"])
def test_the_harmful_files_are_harmful(kind: str, gadget: str, tmp_path: Path) -> None:
    marker, (ending, write) = tmp_path / "marker", CHECKPOINTS[kind]
    write(GADGETS[gadget](marker), tmp_path / f"model{ending}")
    read_checkpoint(tmp_path / f"model{ending}", trusted=True)
    assert marker.exists()


def test_a_program_of_torchscript_is_not_run(tmp_path: Path) -> None:
    write_torchscript(tmp_path / "marker", tmp_path / "model.pth")
    with pytest.raises(ValueError, match="TorchScript archive, which runs code"):
        load_weights(Detector(), str(tmp_path / "model.pth"))
    assert not (tmp_path / "marker").exists()
    torch.jit.load(str(tmp_path / "model.pth"))
    assert (tmp_path / "marker").exists()


def test_arrays_and_numbers_of_numpy_are_read(tmp_path: Path) -> None:
    written = {
        "model": {"a": np.arange(6, dtype=np.float32).reshape(2, 3)},
        "best": np.float64(0.5),
        "hooks": [np.int64(3), {"x": np.ones(2, dtype=">f4")}],
        "kept": (1, "text", None, True, b"x", {1, 2}),
    }
    for new in (True, False):
        torch.save(written, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
        read = read_checkpoint(tmp_path / "a.pth")
        np.testing.assert_array_equal(read["model"]["a"], written["model"]["a"])
        assert read["model"]["a"].flags.writeable
        assert (read["best"], read["hooks"][0], read["kept"]) == (0.5, 3, written["kept"])
        np.testing.assert_array_equal(read["hooks"][1]["x"], np.ones(2))
    torch.save({"model": {"a": np.array([{}])}}, tmp_path / "a.pth")
    with pytest.raises(Exception, match="expected arrays of numbers, got one of object"):
        read_checkpoint(tmp_path / "a.pth")


def test_the_versions_of_modules_are_kept(tmp_path: Path) -> None:
    """torch and Detectron2 need them to load checkpoints of earlier versions."""
    state = Detector().state_dict()
    torch.save({"model": state}, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth")["model"]._metadata == state._metadata


def training_state() -> dict[str, Any]:
    """Return a training checkpoint: weights, optimizer state and plain values."""
    model = Detector()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "iteration": 7}
    return {"model": model.state_dict(), "trainer": {"_trainer": state, "variant": "text"}}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        keys = isinstance(other, dict) and one.keys() == other.keys()
        return keys and all(same(value, other[key]) for key, value in one.items())
    return type(one) is type(other) and one == other


def undetected(file: Path, whole: Any, positions: list[int]) -> list[int]:
    """Return the bits (from the lowest of the first byte) whose flip is harmful and undetected."""
    content, found = file.read_bytes(), []
    for position in positions:
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << position % 8
        file.write_bytes(flipped)
        try:
            read = read_checkpoint(file)
        except Exception:  # a damaged file may raise almost any exception
            continue
        if not same(read, whole):
            found.append(position)
    file.write_bytes(content)
    return found


def write(kind: str, folder: Path) -> tuple[Path, Any]:
    file = folder / f"model.{kind}"
    if kind == "pth":
        torch.save(training_state(), file)
    else:
        write_weights(file, training_state())
    return file, read_checkpoint(file)


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_flipped_bits_are_found_or_harmless(kind: str, tmp_path: Path) -> None:
    file, whole = write(kind, tmp_path)
    rng = np.random.default_rng(0)
    bits = 8 * file.stat().st_size
    assert not undetected(file, whole, rng.choice(bits, 250, replace=False).tolist())


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_every_flipped_bit_is_found_or_harmless(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"model.{kind}"
    state = {"model": {"a": torch.arange(6.0), "b": torch.ones(3)}, "iteration": 3}
    if kind == "pth":
        torch.save(state, file)
    else:
        write_weights(file, state)
    assert not undetected(file, read_checkpoint(file), list(range(8 * file.stat().st_size)))


def test_an_entry_that_is_marked_as_a_folder_is_found(tmp_path: Path) -> None:
    """torch would leave its tensor uninitialised."""
    file = tmp_path / "model.pth"
    torch.save({"model": {"a": torch.arange(6.0)}}, file)
    content = bytearray(file.read_bytes())
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(b"data/0"))
    content[entry + 38] ^= 0x10
    file.write_bytes(content)
    with pytest.raises(ValueError, match="marked as a folder"):
        read_checkpoint(file)


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    state = state_dict(Detector())
    save_file(state, tmp_path / "theirs.safetensors", {"format": "pt"})
    assert same(read_checkpoint(tmp_path / "theirs.safetensors"), {"model": state})
    if hasattr(torch.serialization, "set_crc32_options"):
        torch.serialization.set_crc32_options(False)
        try:
            torch.save({"model": state}, tmp_path / "a.pth")
        finally:
            torch.serialization.set_crc32_options(True)
        assert same(read_checkpoint(tmp_path / "a.pth"), {"model": state})


def test_a_converted_file_of_a_model_zoo_is_matched_as_before(tmp_path: Path) -> None:
    """Detectron2 uses the entries that the pickle has besides the weights."""
    file = tmp_path / "zoo.pkl"
    weights = {"weight": np.ones((2, 4), np.float32), "bias": np.ones(2, np.float32)}
    contents = {"model": weights, "__author__": "x", "matching_heuristics": True}
    file.write_bytes(pickle.dumps(contents))
    write_weights(tmp_path / "zoo.safetensors", read_checkpoint(file))
    for name in ("zoo.pkl", "zoo.safetensors"):
        model = torch.nn.Module()
        model.roi_heads = torch.nn.Linear(4, 2)
        load_weights(model, str(tmp_path / name))
        assert bool((model.roi_heads.weight == 1).all())


@pytest.mark.parametrize("content", [[1], {"model": {}}, {"model": {"a": "b"}}, {"model": {1: 2}}])
def test_what_has_no_weights_is_not_converted(content: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected (parameters|tensors)"):
        write_weights(tmp_path / "a.safetensors", content)
    assert not list(tmp_path.iterdir())


def test_converted_weights_have_a_checksum(tmp_path: Path) -> None:
    write_weights(tmp_path / "a.safetensors", training_state())
    _, metadata = read_safetensors(tmp_path / "a.safetensors")
    assert len(metadata["vild_sha256"]) == 64


def test_as_torch_is_what_a_detector_might_load(tmp_path: Path) -> None:
    """A harmless file made like the harmful ones is read."""
    as_torch({"plain": 1}, tmp_path / "model.pth")
    assert read_checkpoint(tmp_path / "model.pth")["hooks"] == {"plain": 1}
