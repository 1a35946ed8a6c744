"""Two datasets with detections: `shapes` in LVIS format and a small COCO."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances

from vild.data import read_annotations, register_split
from vild.data.novel_classes import coco_ovd_categories, novel_flags
from vild.data.shapes import generate_shapes, shapes_vocabulary

from .perturbing import perturbed, read_json, write

SHAPES, COCO_MINI = "evaluated_shapes_val", "evaluated_coco_ovd_val"


@dataclass(frozen=True)
class Case:
    """A registered dataset with detections, in memory and on disk."""

    name: str
    json_file: Path
    contents: dict[str, Any]
    dataset_ids: list[int]
    novel: dict[int, bool]
    found: dict[int, Instances]
    results: Path


def forget(name: str) -> None:
    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp("shapes")
    generate_shapes(folder / "made", train_images=1, val_images=24, workers=1, progress=False)
    contents = read_json(folder / "made/annotations/val.json")
    # one class without objects, and one that is not exhaustively annotated somewhere
    contents["annotations"] = [a for a in contents["annotations"] if a["category_id"] != 3]
    for image in contents["images"][:6]:
        own = [a["category_id"] for a in contents["annotations"] if a["image_id"] == image["id"]]
        image["not_exhaustive_category_ids"] = own[:1]
    json_file = folder / "val.json"
    json_file.write_text(json.dumps(contents), encoding="utf-8")
    categories, novel = read_annotations(json_file).categories, shapes_vocabulary(0).novel
    register_split(
        SHAPES,
        json_file,
        folder / "made/val",
        categories,
        novel,
        base_only=False,
        evaluator_type="lvis",
    )
    yield made(SHAPES, json_file, contents, folder, novel, crowded=320)
    forget(SHAPES)


@pytest.fixture(scope="session")
def coco(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Case]:
    data = repository.parent / "shared" / "data" / "coco_mini"
    json_file = data / "annotations" / "instances_val2017.json"
    if not json_file.is_file():
        pytest.skip(f"needs the little COCO at {data}, which is not here")
    categories = coco_ovd_categories()
    novel = novel_flags(categories, "r", "coco")
    register_split(
        COCO_MINI,
        json_file,
        data / "val2017",
        categories,
        novel,
        base_only=False,
        evaluator_type="coco",
    )
    folder = tmp_path_factory.mktemp("coco")
    yield made(COCO_MINI, json_file, read_json(json_file), folder, novel, crowded=120)
    forget(COCO_MINI)


def made(
    name: str, json_file: Path, contents: dict[str, Any], folder: Path, novel: Any, crowded: int
) -> Case:
    rows = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
    ids = sorted(rows, key=rows.__getitem__)
    found = perturbed(contents, ids, crowded=crowded)
    results = write(folder / "results.json", found, ids)
    return Case(name, json_file, contents, ids, dict(zip(ids, novel, strict=True)), found, results)
