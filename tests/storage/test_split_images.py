"""A store knows the images of its split, not only their ids."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from vild.storage import (
    MissingImageError,
    RecordStore,
    StoreMismatchError,
    StoreWriter,
    split_digest,
)

from .making import IMAGES, records, spec, write


@pytest.fixture
def register(tmp_path: Path) -> Iterator[None]:
    """Register two splits whose files have the same names in different folders."""
    for name in ("split", "other"):
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).set(image_root=str(tmp_path / name))
    yield
    for name in ("split", "other"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_the_digest_is_of_ids_names_and_sizes_in_any_order() -> None:
    own = records([1, 2])
    digest = split_digest("split", own)
    assert split_digest("other", own[::-1]) == digest
    for change in ({"image_id": 3}, {"file_name": "images/3.png"}, {"height": 51}, {"width": 61}):
        assert split_digest("split", [{**own[0], **change}, own[1]]) != digest
    assert split_digest("split", own[:1]) != digest
    # annotations and moving the folder do not matter
    assert split_digest("split", [{**r, "annotations": []} for r in own]) == digest
    assert split_digest("split", records([1, 2], "/elsewhere/images")) == digest
    bare = [{key: r[key] for key in ("image_id", "file_name")} for r in own]
    assert split_digest("split", bare) != digest


@pytest.mark.usefixtures("register")
def test_names_are_relative_to_the_folder_of_the_split(tmp_path: Path) -> None:
    before = split_digest("split", records([1], str(tmp_path / "split" / "a" / "b")))
    assert split_digest("other", records([1], str(tmp_path / "other" / "a" / "b"))) == before
    assert split_digest("other", records([1], str(tmp_path / "other" / "b"))) != before


def test_a_store_of_other_images_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "s")
    store = RecordStore(tmp_path / "s", "proposals")
    store.check_split("split", records(IMAGES))
    store.check_split("split_base", records(IMAGES))
    with pytest.raises(
        StoreMismatchError, match=r"a store of 'val' \(10 images\).* covers 'split'"
    ):
        store.check_split("val", records(IMAGES, "val"))


@pytest.mark.usefixtures("register")
def test_equal_names_in_other_folders_are_other_images(tmp_path: Path) -> None:
    write(tmp_path / "s")
    own, other = (records(IMAGES, str(tmp_path / name / "images")) for name in ("split", "other"))
    assert split_digest("split", own) == split_digest("other", other)
    store = RecordStore(tmp_path / "s", "proposals")
    store.check_split("split", own)
    with pytest.raises(StoreMismatchError, match="folders"):
        store.check_split("other", other)


def test_images_without_a_record_are_listed(tmp_path: Path) -> None:
    write(tmp_path / "s", failing=[101])
    store = RecordStore(tmp_path / "s", "proposals")
    store.check_images([100, 102])
    with pytest.raises(MissingImageError, match=r"2 images .*101 \(broken\); 7 \(not in the store"):
        store.check_images([100, 101, 7])


def test_stores_of_earlier_versions_have_to_be_made_again(tmp_path: Path) -> None:
    write(tmp_path)
    for name in ("manifest.json", "spec.json"):
        contents = json.loads((tmp_path / name).read_text(encoding="utf-8"))
        contents.get("spec", contents).pop("split_sha256")
        contents["format"] = "vild-store-1"
        if name == "spec.json":
            del contents["format"]
        (tmp_path / name).write_text(json.dumps(contents), encoding="utf-8")
    with pytest.raises(StoreMismatchError, match=r"an earlier version.*Remove the store"):
        RecordStore(tmp_path, "proposals")
    with pytest.raises(StoreMismatchError, match=r"an earlier version.*Remove the store"):
        StoreWriter(tmp_path, spec(), IMAGES)
