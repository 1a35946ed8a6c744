"""Small datasets on disk; those that a test registers are removed after it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from vild.data.inspection import EXPECTED, DatasetReport

from .test_annotations import annotation, write

WIDTH, HEIGHT = 40, 30
Contents = dict[str, Any]


def write_image(path: Path, width: int = WIDTH, height: int = HEIGHT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def contents(names: list[str], *, coco_url: bool = False, categories: int = 3) -> Contents:
    """Return annotations with one object of every class per image; 102 is class 2 in image 1.

    LVIS refers to images by URL, COCO by file name.
    """
    images: list[dict[str, Any]] = []
    for index, name in enumerate(names):
        where = {"coco_url": f"http://images.example/{name}"} if coco_url else {"file_name": name}
        images.append({"id": index + 1, "width": WIDTH, "height": HEIGHT, **where})
    return {
        "images": images,
        "annotations": [
            {
                "id": 100 * image["id"] + category,
                "image_id": image["id"],
                "category_id": category,
                "bbox": [1, 2, 10, 10],
                "area": 100,
                "segmentation": [[1, 2, 11, 2, 11, 12, 1, 12]],
            }
            for image in images
            for category in range(1, categories + 1)
        ],
        "categories": [
            {"id": i + 1, "name": f"class {i + 1}", "frequency": "rcf"[i % 3]}
            for i in range(categories)
        ],
    }


def write_json(path: Path, data: Contents) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


def make_lvis(root: Path, flat: bool = False) -> tuple[Path, Path]:
    """Write a small LVIS; return the folders of its json files and of its images."""
    annotations = root / ("annotations" if flat else "lvis")
    images = root if flat else root / "coco"
    names = {
        "train": ["train2017/1.jpg", "train2017/2.jpg", "train2017/3.jpg"],
        "val": ["val2017/4.jpg", "train2017/5.jpg"],
    }
    for split, paths in names.items():
        write_json(annotations / f"lvis_v1_{split}.json", contents(paths, coco_url=True))
        for path in paths:
            write_image(images / path)
    return annotations, images


def make_coco(root: Path, flat: bool = False) -> Path:
    """Write a small COCO; return the folder that contains it."""
    folder = root if flat else root / "coco"
    for split, names in (("train", ["1.jpg", "2.jpg", "3.jpg"]), ("val", ["4.jpg", "5.jpg"])):
        data = contents(names)
        for category in data["categories"]:
            del category["frequency"]
        write_json(folder / "annotations" / f"instances_{split}2017.json", data)
        for name in names:
            write_image(folder / f"{split}2017" / name)
    return folder


def expect_small(monkeypatch: pytest.MonkeyPatch) -> None:  # instead of the official numbers
    groups = {"classes": 3, "frequent classes": 1, "common classes": 1, "rare classes": 1}
    monkeypatch.setitem(EXPECTED, ("lvis", "train"), {"images": 3, **groups})
    monkeypatch.setitem(EXPECTED, ("lvis", "val"), {"images": 2, **groups})
    monkeypatch.setitem(EXPECTED, ("coco", "train"), {"images": 3, "classes": 3})
    monkeypatch.setitem(EXPECTED, ("coco", "val"), {"images": 2, "classes": 3})


def write_custom(
    folder: Path, data: Contents | None = None, split: str = "val", more: str = ""
) -> Path:
    """Write a custom dataset with one split: its images, and ``data`` as the json.

    Args:
        more: lines to add to the yaml.
    """
    data = contents(["a.png", "b.png"]) if data is None else data
    write_json(folder / f"{split}.json", data)
    (folder / "images").mkdir(exist_ok=True)
    for image in data["images"]:
        if "file_name" in image:
            write_image(folder / "images" / image["file_name"])
    yaml_file = folder / "small.yaml"
    yaml_file.write_text(
        f"name: small\n{split}: {{json: {split}.json, images: images}}\nnovel: [class 2]\n{more}",
        encoding="utf-8",
    )
    return yaml_file


def texts(report: DatasetReport, severity: str = "error") -> list[str]:
    return [problem.text for problem in report.problems if problem.severity == severity]


def only_text(report: DatasetReport, severity: str = "error") -> str:
    """Return the text of the only problem, which must have this severity."""
    assert [problem.severity for problem in report.problems] == [severity], report.problems
    return report.problems[0].text


def problems_of(report: DatasetReport) -> list[tuple[str, str]]:
    """Return severity and text, without the json's name, of all problems of the only split."""
    (split,) = report.splits
    start = f"{split.json_file}: expected "
    assert all(problem.text.startswith(start) for problem in report.problems), report.problems
    return [(problem.severity, problem.text.removeprefix(start)) for problem in report.problems]


def objects_of(report: DatasetReport) -> dict[str, int]:
    """Return the numbers of base and of novel objects in the only split."""
    (split,) = report.splits
    assert split.counts is not None
    return dict(split.counts.objects)


BIRDS = {4: "sparrow", 8: "red kite", 2: "crow", 6: "osprey"}

Spec = dict[str, Any]


def bird_contents(**image_keys: object) -> dict[str, Any]:
    """Return twelve images: crows and ospreys in all, sparrows and one kite in the first."""
    shown = [(1, 4), (1, 8), *((image, id) for image in range(1, 13) for id in (2, 6))]
    return {
        "images": [
            {"id": id, "file_name": f"{id}.jpg", "height": 20, "width": 30, **image_keys}
            for id in range(1, 13)
        ],
        "annotations": [annotation(n, image, id) for n, (image, id) in enumerate(shown)],
        "categories": [{"id": id, "name": name} for id, name in BIRDS.items()],
    }


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    """Return a description of two splits whose files lie in ``tmp_path / "birds"``."""
    for split in ("train", "val"):
        write(tmp_path / "birds", bird_contents(), f"{split}.json")
        (tmp_path / "birds" / split).mkdir()
    return {
        "name": "birds",
        "train": {"json": "birds/train.json", "images": "birds/train"},
        "val": {"json": "birds/val.json", "images": "birds/val"},
        "novel": ["red kite", "osprey"],
    }


def write_yaml(folder: Path, spec: object) -> Path:
    """Write a description as ``birds.yaml``."""
    path = folder / "birds.yaml"
    path.write_text(yaml.safe_dump(spec), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _registrations_are_undone() -> Iterator[None]:
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
