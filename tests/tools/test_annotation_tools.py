"""Exports of annotation tools work in the checker, in training and in evaluation.

The files are generated in the tools' formats: which keys they write, the first id, how masks and
names look. Images and objects come from `shapes`.
"""

from __future__ import annotations

import copy
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog
from detectron2.structures import polygons_to_bitmask

from vild.config import read_config
from vild.data import register_custom
from vild.data.shapes import generate_shapes
from vild.engine import Trainer
from vild.evaluation import evaluate_results

from ..making import text_embeddings

ROOT = Path(__file__).parents[2]
Contents = dict[str, Any]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "shapes"
    generate_shapes(folder, train_images=4, val_images=1, workers=1, progress=False)
    return folder


def plain(folder: Path) -> Contents:
    """Return the annotations of a few classes, with polygons."""
    contents = json.loads((folder / "annotations/train.json").read_text(encoding="utf-8"))
    used = sorted({a["category_id"] for a in contents["annotations"]})
    keys = ("id", "image_id", "category_id", "bbox", "area", "segmentation")
    return {
        "images": [
            {k: i[k] for k in ("id", "file_name", "height", "width")} for i in contents["images"]
        ],
        "annotations": [{k: a[k] for k in keys} for a in contents["annotations"]],
        "categories": [
            {"id": c["id"], "name": c["name"]} for c in contents["categories"] if c["id"] in used
        ],
    }


def polygons(item: dict[str, Any]) -> list[list[float]]:
    return [[float(v) for v in points] for points in item["segmentation"]]


def renumbered(contents: Contents, first: int) -> Contents:
    """Renumber images, annotations and classes from ``first``, in their order."""
    made = copy.deepcopy(contents)
    new = {
        key: {item["id"]: n for n, item in enumerate(made[key], first)}
        for key in ("images", "categories", "annotations")
    }
    for key, ids in new.items():
        for item in made[key]:
            item["id"] = ids[item["id"]]
    for item in made["annotations"]:
        item["image_id"] = new["images"][item["image_id"]]
        item["category_id"] = new["categories"][item["category_id"]]
    return made


def label_studio(contents: Contents) -> Contents:
    """Convert to ids from 0, paths with folder and backslashes, boxes without polygons."""
    made = renumbered(contents, 0)
    for image in made["images"]:
        image["file_name"] = "images\\" + image["file_name"]
    for item in made["annotations"]:
        item.update(segmentation=[], ignore=0, iscrowd=0)
    return made


def cvat(contents: Contents) -> Contents:
    """Convert to masks as uncompressed run lengths, all of them crowds, with attributes."""
    made = renumbered(contents, 1)
    sizes = {image["id"]: (image["height"], image["width"]) for image in made["images"]}
    for item in made["annotations"]:
        height, width = sizes[item["image_id"]]
        mask = polygons_to_bitmask([np.array(p) for p in polygons(item)], height, width)
        flat = mask.astype(np.uint8).ravel(order="F")
        edges = [*np.flatnonzero(np.diff(flat, prepend=0)).tolist(), len(flat)]
        counts = [edges[0], *np.diff(edges).tolist()]
        item.update(segmentation={"size": [height, width], "counts": counts}, iscrowd=1)
        item["attributes"] = {"occluded": False, "rotation": 0.0}
    for image in made["images"]:
        image.update(license=0, flickr_url="", coco_url="", date_captured=0)
    for category in made["categories"]:
        category["supercategory"] = ""
    return made


def roboflow(contents: Contents) -> Contents:
    """Add a parent class as the first one; ids from 0; no polygons."""
    made = renumbered(contents, 1)
    for category in made["categories"]:
        category["supercategory"] = "things"
    made["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})
    for image in made["images"]:
        image.update(license=1, date_captured="2024-01-01T00:00:00+00:00", extra={"name": "p"})
    for number, item in enumerate(made["annotations"]):
        item.update(id=number, segmentation=[], iscrowd=0)
    return made


def via(contents: Contents) -> Contents:
    """Convert to ids as text, flat polygon lists, and annotations without area."""
    made = renumbered(contents, 0)
    for image in made["images"]:
        image.update(id=str(image["id"]), license=0, flickr_url="", coco_url="")
    for item in made["annotations"]:
        item.update(id=str(item["id"]), image_id=str(item["image_id"]), iscrowd=0)
        item["segmentation"] = polygons(item)[0]
        item["area"] = None
    return made


def labelme2coco(contents: Contents) -> Contents:
    """Convert to boxes as polygons of two points, absolute image paths, class ids from 0."""
    made = renumbered(contents, 0)
    for image in made["images"]:
        image["id"] += 1
        image["file_name"] = "/home/me/labelme/" + image["file_name"]
    for number, item in enumerate(made["annotations"]):
        x, y, w, h = item["bbox"]
        item.update(id=number + 1, image_id=item["image_id"] + 1, iscrowd=0)
        item["segmentation"] = polygons(item) if number % 2 else [[x, y, x + w, y + h]]
    for category in made["categories"]:
        category["supercategory"] = category["name"]
    return made


# export -> an expected remark of the checker
EXPORTS: dict[Callable[[Contents], Contents], str] = {
    label_studio: "objects without",
    cvat: "",
    roboflow: "that only groups the others: things",
    via: "annotations without. The areas of their boxes",
    labelme2coco: "no polygon of 3 or more points",
}


@pytest.mark.parametrize("export", EXPORTS, ids=lambda export: export.__name__)
def test_from_the_checker_to_an_evaluation(
    export: Callable[[Contents], Contents],
    shapes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    contents = export(plain(shapes))
    (tmp_path / "export.json").write_text(json.dumps(contents), encoding="utf-8")
    names = [c["name"] for c in contents["categories"] if c["name"] != "things"]
    name = f"of_{export.__name__}"
    split = {"json": "export.json", "images": str(shapes / "train")}
    spec = {"name": name, "train": split, "val": split, "novel": names[-1:]}
    if export is cvat:
        spec["crowds_are_objects"] = True
    file = tmp_path / "data.yaml"
    file.write_text(yaml.safe_dump(spec), encoding="utf-8")

    check = runpy.run_path(str(ROOT / "datasets/check_datasets.py"))["main"]
    assert check(["--custom", str(file), "--images", "all"]) == 0
    said = capsys.readouterr().out
    assert EXPORTS[export] in said
    objects = len(contents["annotations"])
    register_custom(file)
    records = DatasetCatalog.get(f"{name}_train")
    assert sum(len(record["annotations"]) for record in records) == objects
    novel = sum(a["category_id"] == len(names) - 1 for r in records for a in r["annotations"])
    assert f"objects: {objects - novel:,} of base classes, {novel:,} of novel classes" in said

    trained(file, name, names, tmp_path / "out")
    written = json.loads((tmp_path / "out" / f"{name}_val_results.json").read_text())
    given = {image["id"] for image in contents["images"]}
    assert {item["image_id"] for item in written} <= given  # the ids of the export

    # the annotations as detections, with the ids of the export
    perfect = [
        {**{k: a[k] for k in ("image_id", "category_id", "bbox")}, "score": 1.0}
        for a in contents["annotations"]
    ]
    (tmp_path / "perfect.json").write_text(json.dumps(perfect), encoding="utf-8")
    metrics = evaluate_results(f"{name}_val", tmp_path / "perfect.json")
    assert metrics["bbox"]["AP"] == pytest.approx(100)
    assert metrics["bbox"]["AP-novel"] == pytest.approx(100)


def trained(file: Path, name: str, names: list[str], out: Path) -> None:
    """Train two steps on the base classes, with the evaluation at the end."""
    text = text_embeddings(names, 64)
    text.save(out / "text.safetensors")
    options = {
        "DATASETS.CUSTOM": [str(file)],
        "MODEL.VILD.TEXT_EMBEDDINGS": str(out / "text.safetensors"),
        "MODEL.ROI_HEADS.NUM_CLASSES": len(names),
        "MODEL.DEVICE": "cpu",
        "DATASETS.TRAIN": (f"{name}_train_base",),
        "DATASETS.TEST": (f"{name}_val",),
        "SOLVER.MAX_ITER": 2,
        "SOLVER.STEPS": (),
        "SOLVER.IMS_PER_BATCH": 2,
        "TEST.DETECTIONS_PER_IMAGE": 5,
        "OUTPUT_DIR": str(out),
    }
    flat = [value for pair in options.items() for value in pair]
    cfg = read_config(ROOT / "configs/shapes/vild_text.yaml", flat)
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    metrics = json.loads((out / f"{name}_val_metrics.json").read_text())["metrics"]
    masks = any(
        "segmentation" in a for r in DatasetCatalog.get(f"{name}_val") for a in r["annotations"]
    )
    assert list(metrics) == (["bbox", "segm"] if masks else ["bbox"])
    losses = trainer.storage.latest()
    assert np.isfinite(losses["total_loss"][0])
