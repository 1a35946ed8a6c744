"""Records are read as they were written, after interruptions, forks and restarts."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from vild.storage import (
    CorruptStoreError,
    MissingImageError,
    RecordStore,
    SplitImages,
    StoreBusyError,
    StoreError,
    StoreMismatchError,
    StoreWriter,
    UnfinishedStoreError,
    require_disk_space,
    store_faults,
    store_spec,
)

from .making import FIELDS, IMAGES, contents, record, records, spec, write, write_shard


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "store")
    return tmp_path / "store"


def assert_records(store: RecordStore, images: list[int] = IMAGES) -> None:
    for image in images:
        arrays, expected = store.arrays(image), record(image)
        assert arrays.keys() == expected.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(array.numpy(), expected[name], err_msg=f"{image} {name}")


def test_records_come_back_in_any_order(folder: Path) -> None:
    store = RecordStore(folder, "proposals")
    assert list(store) == IMAGES
    assert_records(store, [*reversed(IMAGES), *IMAGES])
    assert store.image_size(101) == (50, 60)
    assert [store.count(image) for image in IMAGES] == [image % 4 for image in IMAGES]
    assert store.rows == sum(image % 4 for image in IMAGES)
    assert 100 in store
    assert 99 not in store


def test_string_ids(tmp_path: Path) -> None:
    images = ["7", "8"]
    write(tmp_path, images)
    np.testing.assert_array_equal(
        RecordStore(tmp_path, "proposals").arrays("7")["boxes"].numpy(), record("7")["boxes"]
    )


def test_a_record_is_a_copy(folder: Path) -> None:
    store = RecordStore(folder, "proposals")
    store.arrays(101)["boxes"].zero_()
    assert_records(store)


def _read_in_child(store: RecordStore, images: list[int]) -> None:
    assert_records(store, images)


@pytest.mark.parametrize(
    "method", ["fork", "forkserver", pytest.param("spawn", marks=pytest.mark.slow)]
)
def test_workers_open_the_shards_for_themselves(folder: Path, method: str) -> None:
    """Workers must not share a handle that was opened before they were forked."""
    store = RecordStore(folder, "proposals")
    assert_records(store)  # opens all shards in this process
    context = multiprocessing.get_context(method)
    workers = [context.Process(target=_read_in_child, args=(store, IMAGES)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_no_open_shard_crosses_to_another_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RecordStore(folder, "proposals")
    assert_records(store)
    assert not pickle.loads(pickle.dumps(store))._opened
    before = store._opened
    monkeypatch.setattr("os.getpid", lambda: -1)  # as in a forked child
    store.arrays(101)
    assert store._opened is not before
    assert len(store._opened) == 1


def test_a_missing_image_is_an_error_that_names_it(folder: Path) -> None:
    with pytest.raises(MissingImageError, match=r"no record of the image 99: not in its split"):
        RecordStore(folder, "proposals").arrays(99)


def test_failed_images_are_recorded_and_can_be_tried_again(tmp_path: Path) -> None:
    write(tmp_path, failing=[104])
    store = RecordStore(tmp_path, "proposals")
    assert store.failed == {104: "broken"}
    assert len(store) == len(IMAGES) - 1
    assert_records(store, [image for image in IMAGES if image != 104])
    with pytest.raises(MissingImageError, match=r"unreadable when .*broken"):
        store.arrays(104)

    writer = StoreWriter(tmp_path, spec(), IMAGES)
    assert writer.retry_failed() == 1
    assert writer.pending() == [1]
    write(tmp_path)
    assert_records(RecordStore(tmp_path, "proposals"))


def test_ranks_share_the_shards_and_make_the_same_store(folder: Path, tmp_path: Path) -> None:
    """N processes must share the work rather than each do all of it."""
    writers = [StoreWriter(tmp_path / "two", spec(), IMAGES) for _ in range(2)]
    parts = [writer.pending(rank, 2) for rank, writer in enumerate(writers)]
    assert sorted(parts[0] + parts[1]) == [0, 1, 2, 3]
    for writer, part in zip(writers, parts, strict=True):
        assert not writer.finish({"vild": "test"})
        for number in part:
            write_shard(writer, number)
    assert writers[0].finish({"vild": "test"})
    assert contents(tmp_path / "two") == contents(folder)


def test_an_unfinished_store_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "b", spec(), IMAGES)
    write_shard(writer, 2)
    inode = (tmp_path / "b/shard_00002.safetensors").stat().st_ino
    with pytest.raises(UnfinishedStoreError, match="1 of 4 shards"):
        RecordStore(tmp_path / "b", "proposals")
    assert StoreWriter(tmp_path / "b", spec(), IMAGES).pending() == [0, 1, 3]
    write(tmp_path / "b")
    assert (tmp_path / "b/shard_00002.safetensors").stat().st_ino == inode
    assert contents(tmp_path / "b") == contents(folder)


def test_a_finished_store_has_nothing_pending(folder: Path) -> None:
    before = contents(folder)
    assert write(folder).pending() == []
    assert contents(folder) == before


def test_an_error_in_a_shard_leaves_nothing_of_it(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, spec(), IMAGES)
    with pytest.raises(RuntimeError), writer.shard(0):
        raise RuntimeError
    assert not list(tmp_path.glob("*shard*"))
    assert writer.pending() == [0, 1, 2, 3]


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    leftover = tmp_path / ".shard_00000.vild-01234567-1-01234567.safetensors"
    leftover.write_bytes(b"half")
    write(tmp_path)
    assert not leftover.exists()


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_a_truncated_shard_is_made_again_before_the_end(tmp_path: Path, keep: int) -> None:
    writer = StoreWriter(tmp_path, spec(), IMAGES)
    write_shard(writer, 0)
    path = tmp_path / "shard_00000.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert writer.pending() == [0, 1, 2, 3]


@pytest.mark.parametrize("shard", range(4))
def test_a_flipped_byte_is_found_wherever_it_is(folder: Path, shard: int) -> None:
    path = folder / f"shard_{shard:05d}.safetensors"
    whole = path.read_bytes()
    for position in (0, 5, 8, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(bytes([*whole[:position], whole[position] ^ 1, *whole[position + 1 :]]))
        assert any(path.name in fault for fault in store_faults(folder)), position
        with pytest.raises(CorruptStoreError, match=path.name):
            RecordStore(folder, "proposals")
    path.write_bytes(whole)
    assert not store_faults(folder)
    assert_records(RecordStore(folder, "proposals"))


def test_a_truncated_or_missing_shard_is_found(folder: Path) -> None:
    path = folder / "shard_00001.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert "truncated" in store_faults(folder)[0]
    with pytest.raises(CorruptStoreError, match=r"shard_00001.*expected .* bytes"):
        RecordStore(folder, "proposals")
    path.unlink()
    assert store_faults(folder) == [f"{path} is missing"]
    with pytest.raises(CorruptStoreError, match=r"shard_00001.*missing"):
        RecordStore(folder, "proposals")
    # follow the advice of the message
    (folder / "manifest.json").unlink()
    write(folder)
    assert path.read_bytes() == whole


def test_two_shards_exchanged_are_found(folder: Path) -> None:
    first, second = (folder / f"shard_0000{n}.safetensors" for n in (0, 1))
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    with pytest.raises(CorruptStoreError):
        RecordStore(folder, "proposals")
    assert any("images differ" in fault for fault in store_faults(folder))


def test_checksums_are_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(
        "vild.storage.reader.file_digests",
        lambda path: read.append(path.name) or pytest.fail("read again"),
    )
    RecordStore(folder, "proposals")  # the process that wrote them knows they are intact
    monkeypatch.undo()
    (folder / ".checked.json").unlink()
    RecordStore(folder, "proposals")
    assert len(json.loads((folder / ".checked.json").read_text())["shards"]) == 4
    assert not read


def test_a_changed_manifest_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"by":"test"', '"by":"TEST"'), encoding="utf-8")
    with pytest.raises(CorruptStoreError, match=r"manifest\.json was modified"):
        RecordStore(folder, "proposals")
    assert "digest" in store_faults(folder)[0]
    path.write_text(text[:-20], encoding="utf-8")
    with pytest.raises(CorruptStoreError, match=r"manifest\.json is damaged"):
        RecordStore(folder, "proposals")
    assert store_faults(folder)
    incomplete = {k: v for k, v in json.loads(text).items() if k != "digest"}
    path.write_text(json.dumps({**incomplete, "more": 1}), encoding="utf-8")
    with pytest.raises(CorruptStoreError, match=r"manifest\.json was modified"):
        RecordStore(folder, "proposals")
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(StoreMismatchError):
        RecordStore(folder, "proposals")
    assert store_faults(folder)


def test_another_kind_or_spec_is_refused(folder: Path) -> None:
    with pytest.raises(StoreMismatchError, match="expected a store of embeddings, got one of prop"):
        RecordStore(folder, "embeddings")
    RecordStore(folder, "proposals", {"source": {"by": "test"}})
    with pytest.raises(StoreMismatchError, match=r"source\.by: 'test' / 'hand'"):
        RecordStore(folder, "proposals", {"source": {"by": "hand"}})
    with pytest.raises(UnfinishedStoreError, match="not found"):
        RecordStore(folder / "elsewhere", "proposals")


def test_another_run_does_not_mix_in(folder: Path) -> None:
    before = contents(folder)
    with pytest.raises(StoreMismatchError, match=r"source\.weights: None / 'new'"):
        StoreWriter(folder, spec(weights="new"), IMAGES)
    other = store_spec("embeddings", SplitImages.from_records("s", records(IMAGES)), FIELDS, {}, 3)
    with pytest.raises(
        StoreMismatchError, match=r"requested: kind: 'proposals' / 'embeddings'\. Choose"
    ):
        StoreWriter(folder, other, IMAGES)
    with pytest.raises(StoreMismatchError, match="images: 10 / 9"):
        StoreWriter(folder, spec(IMAGES[1:]), IMAGES[1:])
    assert contents(folder) == before


def test_two_writers_of_one_shard(tmp_path: Path) -> None:
    one, two = (StoreWriter(tmp_path, spec(), IMAGES) for _ in range(2))
    with one.shard(0) as builder:
        with pytest.raises(StoreBusyError, match="machine-rank"), two.shard(0):
            pass
        for image in builder.images:
            builder.add(image, 50, 60, record(image))
    write(tmp_path)
    assert_records(RecordStore(tmp_path, "proposals"))


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = StoreWriter(tmp_path, spec(), IMAGES)
    write_shard(writer, 0)

    def full(path: Path, data: bytes) -> int:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StoreError, match=r"No space left.*rerun the same command"):
        write_shard(writer, 1)
    monkeypatch.undo()
    assert writer.pending() == [1, 2, 3]
    write(tmp_path)
    assert_records(RecordStore(tmp_path, "proposals"))


def test_disk_space_is_checked(tmp_path: Path) -> None:
    assert "needs 10 bytes" in require_disk_space(tmp_path / "not" / "there", 10)
    with pytest.raises(StoreError, match=r"needs 1000000 TB on disk"):
        require_disk_space(tmp_path, 10**18)


def test_a_read_only_folder_is_an_oserror_and_still_opens(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, value: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    (folder / ".checked.json").unlink()
    monkeypatch.setattr("vild.storage.reader.write_json", refuse)
    assert_records(RecordStore(folder, "proposals"))
    monkeypatch.setattr("vild.storage.writer.create_json", refuse)
    with pytest.raises(PermissionError):
        StoreWriter(folder / "new", spec(), IMAGES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": np.zeros((2, 4))}, "one row count"),
        ({"boxes": np.zeros((3, 5))}, r"expected boxes of shape \(3, 4\), got \(3, 5\)"),
        ({"boxes": np.full((3, 4), np.nan)}, "in row 0 of boxes as float32"),
        ({"objectness": np.array([0.0, 1.0, np.inf])}, "in row 2 of objectness as float32"),
        ({"extra": np.zeros(3)}, "expected the fields"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, np.ndarray], message: str
) -> None:
    writer = StoreWriter(tmp_path, spec(), IMAGES)
    with pytest.raises(ValueError, match=message), writer.shard(0) as builder:
        builder.add(100, 50, 60, {**record(100, rows=3), **change})


def test_records_come_in_order_and_complete(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, spec(), IMAGES)
    with pytest.raises(ValueError, match="in this order, got 101"), writer.shard(0) as builder:
        builder.add(101, 50, 60, record(101))
    with pytest.raises(ValueError, match="expected 3 images, got 1"), writer.shard(0) as builder:
        builder.add(100, 50, 60, record(100))


def test_impossible_specs() -> None:
    with pytest.raises(ValueError, match="expected images"):
        SplitImages.from_records("split", [])
    with pytest.raises(ValueError, match="got 'a' more than once"):
        SplitImages.from_records("split", records(["a", "b", "a"]))
    with pytest.raises(ValueError, match="at least 1 image per shard"):
        store_spec("proposals", SplitImages("split", {1: "1.png"}, ""), FIELDS, {}, 0)


def test_strange_folders(tmp_path: Path) -> None:
    (tmp_path / "shard_00000.safetensors").write_bytes(b"x")
    with pytest.raises(StoreError, match=r"shards but no spec\.json"):
        StoreWriter(tmp_path, spec(), IMAGES)
    assert "missing" in store_faults(tmp_path)[0]


def test_a_file_too_many_is_a_fault(folder: Path) -> None:
    (folder / "shard_00009.safetensors").write_bytes(b"x")
    assert store_faults(folder) == [
        f"{folder / 'shard_00009.safetensors'} does not belong to the store"
    ]


def test_records_are_checked_one_by_one(folder: Path) -> None:
    faults = store_faults(folder, lambda arrays, size: [f"{len(arrays['boxes'])} at {size}"])
    assert len(faults) == len(IMAGES)
    assert "image 103: 3 at (50, 60)" in faults[3]


def test_everything_read_is_float32(folder: Path) -> None:
    assert {a.dtype for a in RecordStore(folder, "proposals").arrays(101).values()} == {
        torch.float32
    }
