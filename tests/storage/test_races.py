"""Several processes that open the same folder at the same moment."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from vild.storage import RecordStore, StoreError, StoreMismatchError, StoreWriter, store_faults
from vild.storage import writer as writing

from .making import IMAGES, contents, spec, write, write_shard

WRITERS, RACES = 4, 60


def race(folder: Path, rank: int, differ: bool, barrier: Any, results: Any) -> None:
    own = spec(by=f"writer {rank if differ else 0}")
    found = []
    for number in range(RACES):
        barrier.wait(60)
        try:
            StoreWriter(folder / str(number), own, IMAGES)
            found.append("")
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
    results.put(found)


def outcomes(folder: Path, differ: bool) -> list[list[str]]:
    """Return the outcome of each writer, one list per race."""
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(WRITERS), context.Queue()
    writers = [
        context.Process(target=race, args=(folder, rank, differ, barrier, results))
        for rank in range(WRITERS)
    ]
    for writer in writers:
        writer.start()
    by_writer = [results.get(timeout=60) for _ in writers]
    for writer in writers:
        writer.join()
    return [list(found) for found in zip(*by_writer, strict=True)]


@pytest.mark.skipif(os.name != "posix", reason="forks")
def test_one_of_several_specs_wins(tmp_path: Path) -> None:
    for found in outcomes(tmp_path, differ=True):
        assert found.count("") == 1, found
        refused = [error for error in found if error]
        assert all("StoreMismatchError" in e and "source.by: 'writer" in e for e in refused)


@pytest.mark.skipif(os.name != "posix", reason="forks")
def test_writers_of_one_spec_all_go_on(tmp_path: Path) -> None:
    assert all(not any(found) for found in outcomes(tmp_path, differ=False))
    assert not list(tmp_path.glob("*/.spec*"))


def no_links(*_: object) -> None:
    raise OSError(95, "Operation not supported")


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.link", no_links)
    write(tmp_path / "a")
    with pytest.raises(StoreMismatchError):
        StoreWriter(tmp_path / "a", spec(by="hand"), IMAGES)
    monkeypatch.undo()
    write(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("error", [OSError(37, "No locks available"), NotImplementedError("flock")])
def test_a_file_system_without_locks(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def acquire(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(writing.FileLock, "acquire", acquire)
    with pytest.raises(StoreError, match=r"cannot lock files in .*\.locks .*another disk"):
        write(tmp_path)


def test_shards_of_two_specs_are_never_one_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards record their spec, in case two writers with different specs were let in."""
    mixed, other = tmp_path / "mixed", tmp_path / "other"
    writers = StoreWriter(mixed, spec(), IMAGES), StoreWriter(other, spec(by="hand"), IMAGES)
    for number in range(4):
        write_shard(writers[number % 2], number)
    for number in (1, 3):
        name = f"shard_0000{number}.safetensors"
        (other / name).rename(mixed / name)
    with pytest.raises(StoreError, match=r"shard_00001\S* was made with other options"):
        writers[0].finish({})
    with pytest.raises(StoreError, match=r"shard_00001\S* was made with other options"):
        StoreWriter(mixed, spec(), IMAGES).pending()

    # a manifest that lists them nevertheless
    entries = [writing.read_entry(mixed / f"shard_0000{n}.safetensors") for n in range(4)]
    monkeypatch.setattr(writers[0], "_entry", lambda number: entries[number])
    assert writers[0].finish({})
    with pytest.raises(StoreError, match=r"shard_00001\S* was made with other options"):
        RecordStore(mixed, "proposals")
    assert len([fault for fault in store_faults(mixed) if "other options" in fault]) == 2
    # follow the advice of the message
    for number in (1, 3):
        (mixed / f"shard_0000{number}.safetensors").unlink()
    write(mixed)
    assert not store_faults(mixed)


def test_failed_images_are_tried_again_by_their_own_ranks(tmp_path: Path) -> None:
    """A rank must not remove shards that another rank has found to be finished."""
    write(tmp_path, failing=[101, 104])
    one, two = (StoreWriter(tmp_path, spec(), IMAGES) for _ in range(2))
    assert two.retry_failed(1, 2) == 1
    assert two.pending(1, 2) == [1]
    assert one.retry_failed(0, 2) == 1
    assert one.pending(0, 2) == [0]
    write_shard(one, 0)
    assert not one.finish({})
    write_shard(two, 1)
    assert two.finish({})
    assert not RecordStore(tmp_path, "proposals").failed
