"""Shards are written in the background, and crops need few transfers to the device."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vild.embeddings import CropRule, RegionCropper
from vild.embeddings.store import embedding_faults
from vild.proposals import ProposalStore
from vild.storage import ShardBuilder, StoreError, store_faults

from .test_extraction import ROWS, SIZE, extract, make_images, stub


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, str], ProposalStore]:
    return make_images(tmp_path_factory.mktemp("images"))


def test_the_next_shard_is_encoded_while_one_is_written(
    made: tuple[dict[int, str], ProposalStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most one shard waits to be written."""
    encoded = threading.Semaphore(0)
    calls: list[int] = []
    counts: list[int] = []
    write = ShardBuilder.write

    def counting(crops: Tensor) -> Tensor:
        calls.append(len(crops))
        encoded.release()
        return stub(crops)

    def waiting(builder: ShardBuilder, path: Path) -> None:
        if path.stem == "shard_00000":
            while encoded.acquire(blocking=False):
                pass
            assert encoded.acquire(timeout=30)  # a batch of the next shard
            time.sleep(0.2)
            counts.append(sum(calls))
        write(builder, path)

    monkeypatch.setattr(ShardBuilder, "write", waiting)
    store = extract(tmp_path / "behind", *made, encode=counting)
    assert counts[0] <= 2 * sum(ROWS[:4])  # not beyond the second shard of two images
    monkeypatch.undo()
    assert store.digest == extract(tmp_path / "plain", *made).digest


def test_an_error_of_writing_stops_the_encoder(
    made: tuple[dict[int, str], ProposalStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    failed = threading.Event()

    def full(*_: object) -> None:
        failed.set()
        raise OSError(28, "No space left on device")

    def counting(crops: Tensor) -> Tensor:
        if failed.wait(0.02):
            calls.append(len(crops))
            time.sleep(0.1)  # the writing thread ends meanwhile
        return stub(crops)

    before = threading.active_count()
    with monkeypatch.context() as patch:
        patch.setattr(ShardBuilder, "write", full)
        with pytest.raises(StoreError, match="No space left on device"):
            extract(tmp_path, *made, encode=counting, batch_size=1)
    assert len(calls) <= 2  # out of more than 40 batches
    assert threading.active_count() == before
    extract(tmp_path, *made, batch_size=1)  # its shards are not locked
    assert not store_faults(tmp_path, embedding_faults)


def test_an_interrupt_leaves_whole_shards(
    made: tuple[dict[int, str], ProposalStore], tmp_path: Path
) -> None:
    """The shard being written is finished; the one being encoded is not written."""
    calls: list[int] = []

    def interrupted(crops: Tensor) -> Tensor:
        calls.append(len(crops))
        if sum(calls) > 2 * sum(ROWS[:2]) + 4:
            raise KeyboardInterrupt
        return stub(crops)

    with pytest.raises(KeyboardInterrupt):
        extract(tmp_path / "e", *made, encode=interrupted)
    assert [path.name for path in (tmp_path / "e").glob("shard_*")] == ["shard_00000.safetensors"]
    store = extract(tmp_path / "e", *made)
    assert store.digest == extract(tmp_path / "whole", *made).digest


class Transfers(TorchDispatchMode):
    """Counts copies from the CPU to another device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[1] if func is torch.ops.aten.copy_.default else args[0]
            self.count += source.device.type == "cpu" and result.device.type != "cpu"
        return result


def test_boxes_take_one_transfer_to_the_device(
    made: tuple[dict[int, str], ProposalStore],
) -> None:
    """In addition to one per image; the teacher's statistics are already on the device."""
    files, proposals = made
    mean_std = torch.zeros(3), torch.ones(3)
    cropper = RegionCropper(
        proposals,
        files,
        CropRule(),
        **{"limit": 300, "size": SIZE, "batch_size": 300, "device": "meta", "normalise": mean_std},
    )
    with Transfers() as transfers:
        (batch,) = cropper.batches([list(files)])
    assert batch.crops.device.type == "meta"
    crop_calls = 2 * sum(rows > 0 for rows in ROWS)
    assert 0 < transfers.count <= len(files) + crop_calls
