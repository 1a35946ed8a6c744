"""Roboflow's category that groups all classes is left out unless it is used."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog

from vild.data import register_custom
from vild.data.inspection import inspect_custom
from vild.evaluation.evaluator import EvaluationProtocol

from .conftest import (
    Spec,
    bird_contents,
    contents,
    objects_of,
    problems_of,
    texts,
    write_custom,
    write_yaml,
)
from .test_annotations import annotation, write


@pytest.mark.parametrize("name", ["things", "class 1", "class 2"])
def test_the_class_that_groups_the_others_is_left_out(tmp_path: Path, name: str) -> None:
    data = contents(["a.png", "b.png"])
    for category in data["categories"]:
        category["supercategory"] = name
    root = {"id": 0, "name": name, "supercategory": "none"}
    data["categories"].insert(0, root)
    report = inspect_custom(write_custom(tmp_path, data))
    note = (
        f"classes of objects, got 1 that only groups the others: {name}. It is ignored unless "
        "another split has objects of it or the yaml lists it."
    )
    assert problems_of(report) == [("note", note)]
    assert objects_of(report) == {"base": 4, "novel": 2}
    metadata = MetadataCatalog.get("small_val")
    assert metadata.thing_classes == ["class 1", "class 2", "class 3"]
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1, 3: 2}


def test_a_grouping_class_with_objects_is_a_class(tmp_path: Path) -> None:
    data = contents(["a.png", "b.png"])
    for category in data["categories"]:
        category["supercategory"] = "things"
    data["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})
    data["annotations"][0]["category_id"] = 0
    assert inspect_custom(write_custom(tmp_path, data)).problems == ()
    assert MetadataCatalog.get("small_val").thing_classes[0] == "things"
    data["categories"][2]["supercategory"] = "others"  # also used if it groups only some
    data["annotations"][0]["category_id"] = 1
    report = inspect_custom(write_custom(tmp_path, data))
    assert problems_of(report) == [
        ("warning", "objects of every class, got 1 classes without any: things.")
    ]


def _add_root(folder: Path, with_object: str | None = None) -> None:
    """Add Roboflow's first category to both files, with an object in at most one split."""
    for split in ("train", "val"):
        data = bird_contents()
        for category in data["categories"]:
            category["supercategory"] = "birds"
        data["categories"].insert(0, {"id": 0, "name": "birds", "supercategory": "none"})
        if split == with_object:
            data["annotations"].append(annotation(99, 1, 0))
        write(folder / "birds", data, f"{split}.json")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_grouping_class_with_objects_in_one_split_is_a_class_of_both(
    tmp_path: Path, spec: Spec, split: str
) -> None:
    _add_root(tmp_path, split)
    report = inspect_custom(write_yaml(tmp_path, spec), "none")
    assert not [text for text in texts(report) if "without a file" not in text]
    register_custom(write_yaml(tmp_path, spec))
    other = "val" if split == "train" else "train"
    assert MetadataCatalog.get(f"birds_{other}").thing_classes[0] == "birds"
    assert [len(EvaluationProtocol.from_dataset(f"birds_{s}").read()) for s in (split, other)] == [
        27,
        26,
    ]


@pytest.mark.parametrize("listed", ["birds", 0])
@pytest.mark.parametrize("role", ["novel", "base"])
def test_a_grouping_class_that_the_yaml_lists_is_a_class(
    tmp_path: Path, spec: Spec, listed: str | int, role: str
) -> None:
    _add_root(tmp_path)
    spec |= {"novel": ["osprey"], "base": ["crow"]}
    spec[role] = [*spec[role], listed]
    register_custom(write_yaml(tmp_path, spec))
    metadata = MetadataCatalog.get("birds_val")
    assert metadata.thing_classes == ["birds", "crow", "osprey"]
    assert metadata.novel[0] == (role == "novel")


def test_a_grouping_class_in_one_json_alone_is_left_out(tmp_path: Path, spec: Spec) -> None:
    _add_root(tmp_path)
    write(tmp_path / "birds", bird_contents(), "val.json")
    register_custom(write_yaml(tmp_path, spec))
    assert "birds" not in MetadataCatalog.get("birds_train").thing_classes
