"""Damaged, copied and missing stores raise clear errors, never a traceback or wrong data."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vild.storage import CorruptStoreError, RecordStore, StoreError, StoreWriter, store_faults
from vild.storage import writer as writing
from vild.storage.layout import manifest_digest

from .making import IMAGES, contents, record, spec, write, write_shard

Json = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "store")
    return tmp_path / "store"


def copy(source: Path, target: Path) -> Path:
    """Copy like ``cp -a``: keep times and hidden files."""
    shutil.copytree(source, target, copy_function=shutil.copy2)
    return target


def flip(path: Path, position: int = -1) -> None:
    """Flip a bit of a file, but keep its modification time."""
    time.sleep(0.02)  # time stamps of file systems have a resolution of at most 10 ms
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_damaged_copy_is_not_opened(folder: Path, tmp_path: Path) -> None:
    RecordStore(folder, "proposals")
    shard = "shard_00001.safetensors"
    for number, position in enumerate((9, 300, -1)):
        copied = copy(folder, tmp_path / f"copy{number}")
        flip(copied / shard, position)
        assert (copied / shard).stat().st_mtime_ns == (folder / shard).stat().st_mtime_ns
        with pytest.raises(CorruptStoreError, match=r"shard_00001.*checksum"):
            RecordStore(copied, "proposals")
    assert len(RecordStore(copy(folder, tmp_path / "whole"), "proposals")) == len(IMAGES)


def test_a_copy_is_read_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = copy(folder, tmp_path / "copy")
    RecordStore(copied, "proposals")
    monkeypatch.setattr("vild.storage.reader.file_digests", lambda path: pytest.fail("read again"))
    RecordStore(copied, "proposals")
    copied.rename(tmp_path / "moved")  # the same files under another name
    RecordStore(tmp_path / "moved", "proposals")


def test_damage_in_place_is_found_whatever_the_time(folder: Path) -> None:
    RecordStore(folder, "proposals")
    flip(folder / "shard_00002.safetensors")
    with pytest.raises(CorruptStoreError, match="shard_00002"):
        RecordStore(folder, "proposals")


def test_damage_before_the_end_is_found(tmp_path: Path) -> None:
    """A shard damaged after writing is detected, even if its writer finishes the store."""
    writer = StoreWriter(tmp_path, spec(), IMAGES)
    for number in writer.pending():
        write_shard(writer, number)
    flip(tmp_path / "shard_00000.safetensors")
    assert writer.finish({})
    with pytest.raises(CorruptStoreError, match="shard_00000"):
        RecordStore(tmp_path, "proposals")


@pytest.mark.parametrize("record", ["[]", "null", "3", "{", '"x"', '{"digest": 1}', "[" * 99_999])
def test_the_record_of_checks_may_be_anything(folder: Path, record: str) -> None:
    path = folder / ".checked.json"
    digest = json.loads(path.read_text(encoding="utf-8"))["digest"]
    for text in (record, json.dumps({"digest": digest, "shards": record})):
        path.write_text(text, encoding="utf-8")
        RecordStore(folder, "proposals")
        assert len(json.loads(path.read_text(encoding="utf-8"))["shards"]) == 4
    path.unlink()
    path.mkdir()
    RecordStore(folder, "proposals")


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values within a nested json value."""
    found = [path] if path else []
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in inner:
            found += places(item, (*path, key))
    return found


def changed(value: Json, path: tuple[Any, ...], new: Any, remove: bool = False) -> Json:
    result = json.loads(json.dumps(value))
    inner = result
    for key in path[:-1]:
        inner = inner[key]
    if remove:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return result


def open_and_verify(folder: Path) -> tuple[str, list[str]]:
    """Return the error of opening a store, if any, and its faults; check that each is one line."""
    error = ""
    try:
        RecordStore(folder, "proposals")
    except StoreError as caught:
        error = str(caught)
    faults = store_faults(folder)
    assert not any("\n" in text for text in (error, *faults))
    return error, faults


DAMAGES = [None, 3, -1, "x", [], {}, "remove"]


def test_a_damaged_manifest_is_an_error_of_one_line(tmp_path: Path) -> None:
    """Every value in it is replaced or removed."""
    folder = tmp_path / "store"
    write(folder, IMAGES[:2])
    path = folder / "manifest.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    for place in places(whole):
        for new in DAMAGES:
            manifest = changed(whole, place, new, new == "remove")
            path.write_text(json.dumps(manifest), encoding="utf-8")
            error, faults = open_and_verify(folder)
            if manifest != whole and place[0] != "made_by":
                assert error, (place, new)
                assert faults, (place, new)
            # with a matching digest: an error as well, unless the change does not matter
            if {"spec", "shards"} <= manifest.keys():
                digest = manifest_digest(manifest["spec"], manifest["shards"])
                path.write_text(json.dumps({**manifest, "digest": digest}), encoding="utf-8")
                open_and_verify(folder)


@pytest.mark.parametrize("seed", range(4))
def test_random_damage(folder: Path, tmp_path: Path, seed: int) -> None:
    """Flipped bits, truncation or zeros in any file give a one-line error or correct records."""
    draw = np.random.default_rng(seed)
    files = sorted(path.name for path in folder.iterdir())
    for number in range(25):
        copied = copy(folder, tmp_path / f"copy{number}")
        path = copied / str(draw.choice(files))
        content = bytearray(path.read_bytes())
        start = int(draw.integers(len(content)))
        kind = draw.integers(3)
        if kind == 0:
            content[start] ^= 1 << int(draw.integers(8))
        elif kind == 1:
            del content[start:]
        else:
            content[start : start + 40] = bytes(len(content[start : start + 40]))
        path.write_bytes(content)
        error, faults = open_and_verify(copied)
        is_changed = path.read_bytes() != (folder / path.name).read_bytes()
        if is_changed and path.name.startswith("shard"):
            assert error, (path.name, kind, start)
            assert faults, (path.name, kind, start)
        if not error:
            store = RecordStore(copied, "proposals")
            for image in IMAGES:
                for name, array in record(image).items():
                    np.testing.assert_array_equal(store.arrays(image)[name].numpy(), array)


@pytest.mark.parametrize("text", ["", "[]", "null", "7", "{}", "{", '{"fields": 1}', "1" * 5000])
def test_a_damaged_spec_is_an_error(folder: Path, text: str) -> None:
    path = folder / "spec.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(StoreError, match=r"spec\.json"):
        StoreWriter(folder, spec(), IMAGES)
    RecordStore(folder, "proposals")  # the manifest is sufficient
    (folder / "manifest.json").unlink()
    with pytest.raises(StoreError, match=r"spec|description"):
        RecordStore(folder, "proposals")
    assert store_faults(folder)


def test_a_lost_spec_and_manifest_are_made_again(folder: Path) -> None:
    before = contents(folder)
    (folder / "spec.json").unlink()
    (folder / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(StoreError, match="cannot be continued"):
        StoreWriter(folder, spec(by="hand"), IMAGES)
    assert write(folder).pending() == []
    assert contents(folder) == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda m: m["spec"]["source"].update(by="TEST"),
        lambda m: m["shards"].pop(),
        lambda m: m.update(digest=""),
        lambda m: m.update(format="x"),
    ],
)
def test_a_changed_manifest_is_made_again(folder: Path, damage: Callable[[Json], Any]) -> None:
    before = contents(folder)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    damage(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(StoreError):
        RecordStore(folder, "proposals")
    write(folder)
    assert contents(folder) == before


def test_a_missing_shard_of_a_finished_store_is_made_again(folder: Path) -> None:
    before = contents(folder)
    (folder / "shard_00001.safetensors").unlink()
    writer = StoreWriter(folder, spec(), IMAGES)
    assert writer.pending() == [1]
    assert not writer.finish({})
    with pytest.raises(ValueError, match="expected 3 images, got 0"), writer.shard(1):
        assert not (folder / "manifest.json").exists()  # unfinished meanwhile
    write(folder)
    assert contents(folder) == before


def test_a_store_that_disappears(folder: Path, tmp_path: Path) -> None:
    store = RecordStore(folder, "proposals")
    store.arrays(101)
    shutil.rmtree(folder)
    store.arrays(102)  # opens its shard
    with pytest.raises(CorruptStoreError, match=r"shard_00001\S* is no longer readable"):
        store.arrays(104)
    with pytest.raises(StoreError, match="not found"):
        RecordStore(folder, "proposals")
    assert store_faults(folder) == [
        f"{folder / 'manifest.json'} is missing: the store is unfinished"
    ]

    writer = StoreWriter(tmp_path / "begun", spec(), IMAGES)
    write_shard(writer, 0)
    shutil.rmtree(tmp_path / "begun")
    with pytest.raises((StoreError, OSError), match="begun"):
        write_shard(writer, 1)
    assert not writer.finish({})


@pytest.mark.parametrize("name", ["shard_00001.safetensors", "manifest.json"])
def test_a_folder_in_place_of_a_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises((StoreError, OSError), match=str(folder)):
        RecordStore(folder, "proposals")
    assert any(name in fault for fault in store_faults(folder))


def test_a_shard_damaged_while_in_use(folder: Path) -> None:
    store = RecordStore(folder, "proposals")
    path = folder / "shard_00000.safetensors"
    path.write_bytes(b"not a shard")
    with pytest.raises(CorruptStoreError, match="shard_00000"):
        store.arrays(101)


@pytest.mark.parametrize("failing", range(7))
def test_a_disk_that_is_full_at_any_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """The error names the file, and the same command resumes."""
    write(tmp_path / "whole")
    count = 0
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == failing + 1:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr("vild.utils.files._sync_folder", lambda folder: None)
    monkeypatch.setattr("os.fsync", fsync)
    names = ["spec", *(f"shard_0000{n}" for n in range(4)), ".checked", "manifest"]
    with pytest.raises((StoreError, OSError), match=rf"{names[failing]}\.|No space") as caught:
        write(tmp_path / "store")
    assert names[failing] in str(caught.value)
    write(tmp_path / "store")
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")
    assert not list((tmp_path / "store").glob(".*vild-*"))


def test_a_read_only_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading needs no lock and no record of checks; copies are verified every time."""
    (folder / ".checked.json").unlink()

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system", str(path))

    for name in ("write_text", "write_bytes", "mkdir", "unlink"):
        monkeypatch.setattr(Path, name, refuse)
    before = sorted(folder.iterdir())
    assert len(RecordStore(folder, "proposals")) == len(IMAGES)
    assert not store_faults(folder)
    assert sorted(folder.iterdir()) == before


def test_shards_without_the_digest_of_their_spec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stores of earlier versions can be read, verified and finished."""
    own = writing.write_shard

    def as_before(path: Path, arrays: Any, described: Json) -> None:
        own(path, arrays, {k: v for k, v in described.items() if k != "spec_sha256"})

    monkeypatch.setattr(writing, "write_shard", as_before)
    writer = StoreWriter(tmp_path, spec(), IMAGES)
    write_shard(writer, 0)
    monkeypatch.undo()
    write(tmp_path)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    assert [shard.pop("spec_sha256") is None for shard in manifest["shards"]][:2] == [True, False]
    assert len(RecordStore(tmp_path, "proposals")) == len(IMAGES)
    assert not store_faults(tmp_path)
    manifest["digest"] = manifest_digest(manifest["spec"], manifest["shards"])
    path.write_text(json.dumps(manifest), encoding="utf-8")
    assert len(RecordStore(tmp_path, "proposals")) == len(IMAGES)
    assert not store_faults(tmp_path)
