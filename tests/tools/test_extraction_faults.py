"""Extraction with odd images, kills, full disks and damaged stores, by the command lines."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import extract_image_embeddings
import extract_proposals
import verify_store
from vild.embeddings import EmbeddingStore
from vild.proposals import ProposalExtractor
from vild.storage import StoreWriter

from .conftest import SIZES, SmallData

Run = Callable[..., int]
MANIFEST = "manifest.json"


class Tools:
    """The two extraction tools on the small dataset."""

    def __init__(self, small: SmallData, detector: Path, run: Run) -> None:
        self.small, self.detector, self.run = small, detector, run

    def arguments(self, tool: ModuleType, out: str) -> list[object]:
        folder = self.small.folder
        own = ["--images-per-shard", 1, "--out-dir", folder / out, *self.small.arguments]
        if tool is extract_proposals:
            return ["--config-file", self.detector, "--topk", 40, "--no-recall", *own]
        source = folder / "p" / self.small.split
        return ["--model", "vild-shapes", "--regions", 10, "--proposals", source, *own]

    def __call__(self, tool: ModuleType, out: str, *more: object) -> int:
        return self.run(tool, *self.arguments(tool, out), *more)

    def propose(self, *more: object, out: str = "p") -> int:
        return self(extract_proposals, out, *more)

    def embed(self, *more: object, out: str = "e") -> int:
        return self(extract_image_embeddings, out, *more)

    def folder(self, out: str) -> Path:
        return self.small.folder / out / self.small.split

    def faults(self, out: str) -> int:
        return self.run(verify_store, self.folder(out))


@pytest.fixture
def tools(small: SmallData, detector: Path, run: Run) -> Tools:
    return Tools(small, detector, run)


def contents(folder: Path) -> dict[str, bytes]:
    """Read all visible files."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if not p.name.startswith(".")}


def the_error(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one-line error message of a tool."""
    lines = capsys.readouterr().err.splitlines()
    assert "Traceback (most recent call last):" not in lines
    assert lines[-1].startswith("error: "), lines
    return lines[-1]


def test_odd_images_do_not_end_a_split(
    tools: Tools, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thin images are processed normally; the others are recorded as failed, by id."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    small = tools.small
    noise = np.random.default_rng(0).integers(0, 255, (5000, 1, 3), np.uint8)
    Image.fromarray(noise).save(small.image(1))
    Image.fromarray(noise.transpose(1, 0, 2)).save(small.image(2))
    Image.fromarray(noise[:1]).save(small.image(3))
    Image.new("L", (200, 200)).save(small.image(4))  # a decompression bomb
    Image.new("F", (50, 50)).save(small.image(5), "TIFF")
    small.image(6).write_bytes(b"")
    assert tools.propose() == 3
    printed = capsys.readouterr().out
    for image, reason in ((4, "too large"), (5, "floats of unknown range"), (6, "is empty")):
        assert f"failed: image {image}: cannot read the image {small.image(image)}" in printed
        assert reason in printed
    for mode in ("stretch", "pad", "clip"):
        assert tools.embed("--crop-mode", mode, out=mode) == 3
        store = EmbeddingStore(tools.folder(mode))
        assert list(store) == [1, 2, 3, 7]
        assert list(store.failed) == [4, 5, 6]
        assert store.count(1) > 0
        assert store.count(2) > 0
    assert tools.faults("p") == tools.faults("clip") == 0


def test_too_little_memory_for_an_image(
    tools: Tools, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import vild.embeddings.extraction
    import vild.proposals.extraction

    for module in (vild.proposals.extraction, vild.embeddings.extraction):
        read = module.read_image

        def limited(path: object, read: Callable = read) -> np.ndarray:
            image = read(path)
            if image.shape[:2] == SIZES[2]:
                raise MemoryError
            return image

        monkeypatch.setattr(module, "read_image", limited)
    assert tools.propose() == 3
    assert "failed: image 3: not enough memory to read" in capsys.readouterr().out
    monkeypatch.setattr(vild.proposals.extraction, "read_image", read)
    assert tools.propose("--retry-failed") == 0
    assert tools.embed() == 3
    assert "failed: image 3: not enough memory to read" in capsys.readouterr().out


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), KeyError("bug")])
def test_other_errors_stop_and_name_the_image(
    tools: Tools,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    assert tools.propose() == 0
    monkeypatch.setattr("vild.embeddings.extraction.crop_and_resize", broken)
    monkeypatch.setattr(ProposalExtractor, "propose", broken)
    for make, out in ((tools.embed, "new_e"), (tools.propose, "new_p")):
        with pytest.raises(type(error)):
            make(out=out)
        assert f"stopped at image 1 ({tools.small.image(1)})" in caplog.text
        caplog.clear()


def test_exit_0_means_that_all_is_there(
    tools: Tools, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tools.propose() == tools.embed() == 0
    for make, out in ((tools.propose, "p"), (tools.embed, "e")):
        folder = tools.folder(out)
        before = contents(folder)
        shard = folder / "shard_00003.safetensors"
        (folder / MANIFEST).unlink()  # killed after the last shard
        assert make() == 0
        assert contents(folder) == before
        shard.unlink()  # but the manifest lists it
        assert make() == 0
        assert contents(folder) == before
        shard.write_bytes(before[shard.name][:-1] + b"x")
        capsys.readouterr()
        assert make() == 2
        assert shard.name in the_error(capsys)
        shard.unlink()  # as the message advises
        assert make() == 0
        assert contents(folder) == before


def test_a_shard_that_somebody_removes(
    tools: Tools, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The worker that wrote it notices, on one machine and on several."""
    finish = StoreWriter.finish

    def removing(writer: object, *arguments: object, **more: object) -> bool:
        (tools.folder("p") / "shard_00002.safetensors").unlink()
        return finish(writer, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(StoreWriter, "finish", removing)
    assert tools.propose() == 2
    assert "shard_00002.safetensors was written but is now missing" in capsys.readouterr().err
    assert tools.propose("--num-machines", 2, "--machine-rank", 0) == 2
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", [])
    assert tools.propose() == 0


def test_outputs_are_checked_before_the_work(
    tools: Tools, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tools.propose() == 0
    folder, split = tools.small.folder, tools.small.split
    for module in (extract_proposals, extract_image_embeddings):
        monkeypatch.setattr(module, "work", lambda *_: pytest.fail("at work"))
    (folder / "file").touch()
    (folder / "x" / f"{split}.pkl").mkdir(parents=True)
    for make, named in (
        (lambda: tools.propose(out="file"), "--out-dir"),
        (lambda: tools.embed(out="file"), "--out-dir"),
        (lambda: tools.propose("--detectron2-pickle", out="x"), "--detectron2-pickle"),
    ):
        assert make() == 2
        assert f"expected {named} to be" in the_error(capsys)


@pytest.mark.parametrize("failing", [1, 2, 8, 9, 10])
@pytest.mark.parametrize("tool", [extract_proposals, extract_image_embeddings])
def test_a_full_disk(
    tools: Tools,
    tool: ModuleType,
    failing: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The error is one line that names a file; rerunning the command resumes."""
    count = 0
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal count
        count += os.readlink(f"/proc/self/fd/{descriptor}").endswith(("json", "safetensors"))
        if count == failing:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    assert tool is extract_proposals or tools.propose() == 0
    monkeypatch.setattr("os.fsync", fsync)
    assert tools(tool, "full") == 2
    error = the_error(capsys)
    assert "No space left on device" in error
    assert str(tools.small.folder / "full") in error
    monkeypatch.undo()
    assert tools(tool, "full") == 0


def damaged(folder: Path) -> list[Path]:
    """Make copies of a store, each damaged in a different way."""
    result = []

    def copy(name: str) -> Path:
        result.append(folder.parent / f"damaged_{len(result)}_{name}")
        shutil.copytree(folder, result[-1])
        return result[-1]

    for name in (MANIFEST, "spec.json", ".checked.json", "shard_00001.safetensors"):
        for content in (b"", b"[]", b"null", b"7", b"{}", b"\xff\xfe", b'{"spec": 1}'):
            (copy(name) / name).write_bytes(content)
        (copy(name) / name).unlink()
        path = copy(name) / name
        path.unlink()
        path.mkdir()
    result.append(folder.parent / "none")
    result.append(folder / MANIFEST)
    return result


def test_damaged_stores_give_no_traceback(
    tools: Tools, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tools.propose() == 0
    assert tools.embed() == 0
    for folder in damaged(tools.folder("e")):
        harmless = any(name in folder.name for name in (".checked", "spec.json"))
        assert tools.run(verify_store, folder) == (0 if harmless else 1), folder
        if not harmless:
            with pytest.raises((ValueError, OSError)):
                EmbeddingStore(folder)
    # declares the proposals as embeddings
    manifest = tools.folder("p") / MANIFEST
    whole = manifest.read_text(encoding="utf-8")
    manifest.write_text(whole.replace('"kind":"proposals"', '"kind":"embeddings"'))
    capsys.readouterr()
    assert tools.faults("p") == 1
    assert "expected an array 'embeddings', got ['boxes', 'objectness']" in capsys.readouterr().out
    manifest.write_text("[" * 99_999, encoding="utf-8")
    assert tools.faults("p") == 1
    manifest.write_text(whole, encoding="utf-8")
    for folder in damaged(tools.folder("p")):
        if not any(name in folder.name for name in (".checked", "spec.json")):
            assert tools.embed("--proposals", folder, out="new") == 2
            the_error(capsys)


def _main(tool: ModuleType, arguments: list[object]) -> None:
    torch.set_num_threads(1)  # in this child, because threads do not survive a fork
    sys.argv = [tool.__name__, *map(str, arguments)]
    sys.exit(tool.main())


def start(tools: Tools, tool: ModuleType, out: str, *more: object) -> multiprocessing.Process:
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_main, args=(tool, [*tools.arguments(tool, out), *more]))
    child.start()
    return child  # type: ignore[return-value]


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)


def kill_and_resume(tools: Tools, tool: ModuleType, kills: int, machines: int) -> None:
    """Kill at random moments, then finish; the store equals that of an undisturbed run."""
    assert tools(tool, "whole") == 0
    expected = contents(tools.folder("whole"))
    draw, folder = np.random.default_rng(kills), tools.folder("killed")
    for _ in range(kills):
        children = [
            start(tools, tool, "killed", "--num-machines", machines, "--machine-rank", rank)
            for rank in range(machines)
        ]
        wanted = len(list(folder.glob("shard_*"))) + int(draw.integers(0, 3))
        wait_for(
            lambda children=children, wanted=wanted: (
                len(list(folder.glob("shard_*"))) >= wanted
                or not any(child.is_alive() for child in children)
            )
        )
        time.sleep(float(draw.uniform(0, 0.1)))
        for child in children:
            child.kill()
        for child in children:
            child.join()
        for path in folder.glob("shard_*"):
            assert path.read_bytes() == expected[path.name]
        if draw.random() < 0.3:  # remove a shard
            for path in sorted(folder.glob("shard_*"))[:1]:
                path.unlink()
    assert tools(tool, "killed") == 0
    assert contents(folder) == expected
    assert not [path for path in folder.iterdir() if "vild-" in path.name]
    assert tools.faults("killed") == 0


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


@needs_fork
@pytest.mark.parametrize("machines", [1, 2])
@pytest.mark.parametrize("kills", [2, pytest.param(15, marks=pytest.mark.exhaustive)])
def test_killed_and_resumed(tools: Tools, kills: int, machines: int) -> None:
    kill_and_resume(tools, extract_proposals, kills, machines)


@needs_fork
@pytest.mark.exhaustive
@pytest.mark.parametrize("machines", [1, 2])
def test_killed_and_resumed_embeddings(tools: Tools, machines: int) -> None:
    assert tools.propose() == 0
    kill_and_resume(tools, extract_image_embeddings, 15, machines)


@needs_fork
def test_the_same_command_twice_at_once(tools: Tools, capfd: pytest.CaptureFixture[str]) -> None:
    """One of them fails with a message; the store equals that of one process."""
    assert tools.propose(out="whole") == 0
    children = [start(tools, extract_proposals, "twice") for _ in range(2)]
    for child in children:
        child.join()
    codes = sorted(child.exitcode or 0 for child in children)
    assert codes in ([0, 0], [0, 2])
    if codes == [0, 2]:
        assert "by another process" in capfd.readouterr().err
    assert contents(tools.folder("twice")) == contents(tools.folder("whole"))
