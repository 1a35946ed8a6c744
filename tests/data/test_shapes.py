"""The shapes benchmark: identical on every machine, in LVIS format, and not trivial."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from vild.data.shapes import (
    ALL_COMPOSITIONS,
    draw_scene,
    generate_shapes,
    pixel_digest,
    register_shapes,
    shapes_vocabulary,
)
from vild.data.shapes.categories import COMMON, FREQUENT, LOOKS, NOVEL, UNSEEN_SHAPES
from vild.data.shapes.outlines import OUTLINES, coverage, place
from vild.data.shapes.polygons import mask_to_polygons
from vild.data.shapes.scenes import MIN_VISIBLE, SIZE
from vild.reporting.contact_sheet import write_contact_sheet
from vild.utils import files

# Pixels and annotations of seed 0 with 12 and 6 images. A change here invalidates all results
# measured on shapes: then increase FORMAT in vild/data/shapes/dataset.py.
GOLDEN = "27d5288af7e18ad06a0f9196c18de017525005b3346f25c57fd287f27725fa55"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    assert generate_shapes(folder, train_images=60, val_images=12, workers=1, progress=False)
    return folder


def test_pixels_and_annotations_are_the_recorded_ones(tmp_path: Path) -> None:
    generate_shapes(tmp_path / "a", train_images=12, val_images=6, workers=1, progress=False)
    assert pixel_digest(tmp_path / "a") == GOLDEN


def test_two_runs_are_byte_identical_whatever_the_workers(tmp_path: Path) -> None:
    for name, workers in (("a", 1), ("b", 2)):
        generate_shapes(tmp_path / name, 3, 8, 4, workers=workers, progress=False)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 8 + 4 + 3
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_another_seed_gives_other_classes_and_images(tmp_path: Path) -> None:
    assert shapes_vocabulary(0).compositions != shapes_vocabulary(1).compositions
    for seed in (0, 1):
        generate_shapes(tmp_path / str(seed), seed, 2, 1, workers=1, progress=False)
    assert pixel_digest(tmp_path / "0") != pixel_digest(tmp_path / "1")


def test_what_is_there_is_not_made_again(shapes: Path) -> None:
    before = pixel_digest(shapes)
    assert not generate_shapes(shapes, train_images=60, val_images=12, progress=False)
    assert pixel_digest(shapes) == before


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="expected an empty folder or a 'shapes' dataset"):
        generate_shapes(tmp_path, train_images=1, val_images=1, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vild.data.shapes.dataset._write_image", fail)
    with pytest.raises(KeyboardInterrupt):
        generate_shapes(
            tmp_path / "shapes", train_images=2, val_images=1, workers=1, progress=False
        )
    assert not list(tmp_path.iterdir())


def killed_at(call: int, function: Callable[[], object]) -> bool:
    """Return whether a process running ``function`` was killed at this call to modify a folder."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) != 0
    calls = 0

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                os._exit(1)  # like a kill: no cleanup
            return original(*args, **more)

        return run

    for name in ("replace", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
    function()
    os._exit(0)


def test_a_kill_in_replacing_an_older_set_leaves_nothing_that_looks_complete(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "shapes"
    make = partial(generate_shapes, folder, val_images=1, workers=1, progress=False)
    make(train_images=2)
    call = 1
    while killed_at(call, partial(make, train_images=3)):
        files._remove_stale_once.cache_clear()  # simulate another process
        make(train_images=2)
        assert len(list(folder.glob("train/*.png"))) == 2
        assert json.loads((folder / "shapes.json").read_text(encoding="utf-8"))["train"] == 2
        call += 1
    assert call > 10
    assert [file.name for file in tmp_path.iterdir()] == ["shapes"]


@pytest.mark.parametrize("lost", ["annotations/val.json", "train/000002.png", "shapes.json"])
def test_a_set_that_lost_a_file_is_made_again(tmp_path: Path, lost: str) -> None:
    small = {"train_images": 3, "val_images": 2, "workers": 1, "progress": False}
    generate_shapes(tmp_path / "shapes", **small)
    if lost == "shapes.json":
        (tmp_path / "shapes" / lost).write_text("{", encoding="utf-8")
    else:
        (tmp_path / "shapes" / lost).unlink()
    assert generate_shapes(tmp_path / "shapes", **small)
    assert (tmp_path / "shapes" / lost).is_file()
    assert not generate_shapes(tmp_path / "shapes", **small)


def test_a_linked_folder_is_replaced_where_it_lies(tmp_path: Path) -> None:
    small = {"val_images": 1, "workers": 1, "progress": False}
    (tmp_path / "disk").mkdir()
    (tmp_path / "shapes").symlink_to(tmp_path / "disk")
    for images in (2, 3):
        generate_shapes(tmp_path / "shapes", train_images=images, **small)
        assert len(list((tmp_path / "disk" / "train").iterdir())) == images


def test_vocabulary_has_lvis_s_structure() -> None:
    for seed in range(5):
        classes = shapes_vocabulary(seed)
        assert Counter(classes.frequency) == {"f": FREQUENT, "c": COMMON, "r": NOVEL}
        assert len(set(classes.compositions)) == FREQUENT + COMMON + NOVEL
        assert sum(classes.weights) == pytest.approx(1)
        base_shapes = {
            c.shape for c, n in zip(classes.compositions, classes.novel, strict=True) if not n
        }
        novel = [c for c, n in zip(classes.compositions, classes.novel, strict=True) if n]
        assert len({c.shape for c in novel}) == UNSEEN_SHAPES
        assert not base_shapes & {c.shape for c in novel}
        assert len({c.colour for c in classes.compositions}) == 6
        assert len({c.pattern for c in classes.compositions}) == 4


def test_no_class_is_told_by_its_look_alone() -> None:
    for seed in range(20):
        classes = shapes_vocabulary(seed)
        pairs = list(zip(classes.compositions, classes.novel, strict=True))
        assert len({c.look for c in classes.compositions}) == LOOKS
        others = Counter(c.look for c, novel in pairs if not novel)
        unseen = Counter(c.look for c, novel in pairs if novel)
        # every unseen shape has each of their looks, and so do labelled shapes
        assert set(unseen.values()) == {UNSEEN_SHAPES}
        assert sum(others[look] for look in unseen) / len(unseen) > 2


def test_names_are_unique_and_readable() -> None:
    names = [c.name for c in ALL_COMPOSITIONS] + [c.synonym for c in ALL_COMPOSITIONS]
    assert len(set(names)) == 2 * 10 * 6 * 4
    assert "striped red star" in names
    assert "red star with stripes" in names


def test_json_is_lvis_s_format(shapes: Path) -> None:
    from lvis import LVIS

    contents = json.loads((shapes / "annotations" / "train.json").read_text(encoding="utf-8"))
    api = LVIS(str(shapes / "annotations" / "train.json"))
    assert len(api.get_cat_ids()) == FREQUENT + COMMON + NOVEL
    counts = Counter(a["category_id"] for a in contents["annotations"])
    present: dict[int, set[int]] = {image["id"]: set() for image in contents["images"]}
    for a in contents["annotations"]:
        present[a["image_id"]].add(a["category_id"])
        mask = api.ann_to_mask(a)
        assert mask.sum() == a["area"]
        x, y, w, h = a["bbox"]
        assert mask[y : y + h, x : x + w].sum() == a["area"]
    for category in contents["categories"]:
        assert category["instance_count"] == counts[category["id"]]
    for image in contents["images"]:
        assert not present[image["id"]] & set(image["neg_category_ids"])


def test_base_split_has_the_images_and_no_novel_annotation(shapes: Path) -> None:
    names = register_shapes(0, shapes)
    assert names == ["shapes_train_base", "shapes_train", "shapes_val"]
    novel = MetadataCatalog.get("shapes_train_base").novel
    everything, base = DatasetCatalog.get("shapes_train"), DatasetCatalog.get("shapes_train_base")
    assert [r["file_name"] for r in everything] == [r["file_name"] for r in base]
    rows = [a["category_id"] for r in base for a in r["annotations"]]
    assert rows
    assert not any(novel[row] for row in rows)
    all_rows = [a["category_id"] for r in everything for a in r["annotations"]]
    share = sum(novel[row] for row in all_rows) / len(all_rows)
    assert 0.1 < share < 0.25  # novel objects are in the images, unlabelled
    register_shapes()


def test_built_in_names_are_registered_without_files() -> None:
    import vild  # noqa: F401

    assert sum(MetadataCatalog.get("shapes_train_base").novel) == NOVEL
    assert MetadataCatalog.get("shapes_val").evaluator_type == "lvis"


def test_hidden_objects_are_declared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("vild.data.shapes.dataset.MIN_VISIBLE", 0.95)
    generate_shapes(tmp_path / "s", train_images=20, val_images=1, workers=1, progress=False)
    contents = json.loads((tmp_path / "s/annotations/train.json").read_text(encoding="utf-8"))
    declared = [i for image in contents["images"] for i in image["not_exhaustive_category_ids"]]
    assert declared


def test_scene_is_cluttered_and_objects_are_visible() -> None:
    classes = shapes_vocabulary(0)
    counts, visible = [], []
    for number in range(40):
        rng = np.random.RandomState(number)
        image, objects = draw_scene(rng, classes.compositions, np.cumsum(classes.weights))
        assert image.shape == (SIZE, SIZE, 3)
        assert image.dtype == np.uint8
        assert image.std() > 10
        counts.append(len(objects))
        visible += [item.visible for item in objects]
        total = np.zeros((SIZE, SIZE), int)
        for item in objects:
            total += item.mask
        assert total.max() <= 1  # visible parts do not overlap
    assert min(counts) >= 2
    assert max(counts) == 8
    assert min(visible) < 0.9  # some are partly covered
    assert np.mean([v >= MIN_VISIBLE for v in visible]) > 0.95


@pytest.mark.parametrize("shape", list(OUTLINES))
def test_outline_is_rasterised_with_its_area(shape: str) -> None:
    vertices = place(OUTLINES[shape], (40.0, 40.0), 30.0, 0)
    x, y = vertices[:, 0], vertices[:, 1]
    area = abs(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2
    covered = coverage(vertices, 80, 80)
    assert covered.sum() == pytest.approx(area, rel=0.02)
    assert covered.max() == 1
    assert not covered[:, 0].any()


def test_polygons_give_the_mask_back() -> None:
    rng = np.random.RandomState(0)
    for _ in range(30):
        mask = np.zeros((40, 50), bool)
        for _ in range(3):
            x, y = rng.randint(0, 30, 2)
            w, h = rng.randint(1, 12, 2)
            mask[y : y + h, x : x + w] ^= True
        without_holes = mask.copy()
        polygons = mask_to_polygons(mask)
        rles = mask_util.frPyObjects(polygons, 40, 50)
        drawn = mask_util.decode(mask_util.merge(rles)).astype(bool)
        assert (drawn >= without_holes).all()  # holes, which COCO cannot represent, are filled
        assert (drawn & ~mask).sum() <= _hole_area(mask)


def _hole_area(mask: np.ndarray) -> int:
    """Return the number of pixels outside the mask that are not connected to the border."""
    outside = np.pad(~mask, 1, constant_values=True)
    reached = np.zeros_like(outside)
    reached[0, 0] = True
    while True:
        grown = reached.copy()
        grown[1:] |= reached[:-1]
        grown[:-1] |= reached[1:]
        grown[:, 1:] |= reached[:, :-1]
        grown[:, :-1] |= reached[:, 1:]
        grown &= outside
        if (grown == reached).all():
            return int((outside & ~reached).sum())
        reached = grown


def test_polygon_of_a_square_has_its_four_corners() -> None:
    mask = np.zeros((6, 6), bool)
    mask[1:3, 2:5] = True
    (polygon,) = mask_to_polygons(mask)
    corners = {tuple(polygon[i : i + 2]) for i in range(0, 8, 2)}
    assert len(polygon) == 8
    assert corners == {(2.0, 1.0), (5.0, 1.0), (5.0, 3.0), (2.0, 3.0)}
    assert mask_to_polygons(np.zeros((3, 3), bool)) == []


def test_contact_sheet_shows_boxes_and_names(shapes: Path, tmp_path: Path) -> None:
    from PIL import Image

    register_shapes(0, shapes)
    path = write_contact_sheet("shapes_train", tmp_path / "sheet.png", 5)
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (960, 1920, 3)
    first = np.asarray(Image.open(DatasetCatalog.get("shapes_train")[0]["file_name"]))
    enlarged = np.asarray(Image.fromarray(first).resize((472, 472)))
    difference = np.abs(sheet[4:476, 4:476].astype(int) - enlarged).mean()
    assert 1 < difference < 60  # the image shows, and something was drawn on it
    register_shapes()


def test_contact_sheet_draws_boxes_where_a_mask_is_missing(shapes: Path, tmp_path: Path) -> None:
    register_shapes(0, shapes)
    records = DatasetCatalog.get("shapes_train")[:1]
    del records[0]["annotations"][0]["segmentation"]
    DatasetCatalog.register("shapes_one_mask_less", lambda: records)
    metadata = MetadataCatalog.get("shapes_train")
    MetadataCatalog.get("shapes_one_mask_less").set(thing_classes=metadata.thing_classes)
    assert write_contact_sheet("shapes_one_mask_less", tmp_path / "sheet.png").is_file()
    register_shapes()


@pytest.mark.parametrize("counts", [(0, 5), (5, 0)])
def test_no_images_is_refused(tmp_path: Path, counts: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected at least one image per split"):
        generate_shapes(tmp_path / "s", 0, *counts)
