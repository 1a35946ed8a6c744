"""Average recall of proposals: Detectron2's procedure, separately for base and novel classes."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.evaluation.coco_evaluation import _evaluate_box_proposals
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools.coco import COCO

from vild.proposals import RecallMeter

NOVEL = [False, True, False, True, False]
LIMITS = (100, 300, 1000)
SIZES = ("all", "small", "medium", "large")
ImageInput = tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Use one thread: Detectron2's many small steps are far slower when threads wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def thing(
    bbox: list[float], category_id: int = 0, mode: int = BoxMode.XYWH_ABS, **more: object
) -> dict[str, Any]:
    return {"bbox": bbox, "bbox_mode": BoxMode(mode), "category_id": category_id, **more}


def images(seed: int) -> list[ImageInput]:
    """Return crowded images, so that objects compete for proposals; two are without objects."""
    rng = np.random.default_rng(seed)
    result: list[ImageInput] = []
    for count in (1, 0, 8, 0, 40, 25):
        corners = rng.uniform(0, 300, (count, 2))
        extents = np.exp(rng.uniform(np.log(8), np.log(250), (count, 2)))
        objects = [
            thing(
                [round(v, 2) for v in (*corners[i].tolist(), *extents[i].tolist())],
                int(rng.integers(len(NOVEL))),
                area=float(extents[i].prod() * rng.uniform(0.5, 1)),
                iscrowd=int(rng.random() < 0.15),
            )
            for i in range(count)
        ]
        proposals = int(rng.choice([40, 700, 1300]))
        around = np.concatenate([corners, corners + extents], axis=1)
        if count:
            boxes = around[rng.integers(count, size=proposals)]
            boxes = boxes + rng.normal(size=boxes.shape) * extents.mean() / 6
        else:
            boxes = rng.uniform(0, 300, (proposals, 4))
        boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]) - 1, boxes[:, 2:] + 1], 1)
        objectness = rng.normal(size=proposals).astype(np.float32)
        result.append((boxes.astype(np.float32), objectness, objects))
    return result


def detectron2_recall(
    content: list[ImageInput], kept: list[bool], size: str, limit: int
) -> tuple[float, int]:
    """Return Detectron2's average recall and number of objects of the classes ``kept``."""
    annotations = [
        {**item, "bbox_mode": 1, "image_id": image_id, "id": 1000 * image_id + i}
        for image_id, (_, _, objects) in enumerate(content)
        for i, item in enumerate(objects)
        if kept[item["category_id"]]
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = {
            "images": [{"id": image_id} for image_id in range(len(content))],
            "annotations": annotations,
            "categories": [{"id": i} for i in range(len(kept))],
        }
        api.createIndex()
    predictions = []
    for image_id, (boxes, objectness, _) in enumerate(content):
        instances = Instances((600, 600))
        instances.proposal_boxes = Boxes(torch.from_numpy(boxes))
        instances.objectness_logits = torch.from_numpy(objectness)
        predictions.append({"image_id": image_id, "proposals": instances})
    stats = _evaluate_box_proposals(predictions, api, area=size, limit=limit)
    return float(stats["ar"]), stats["num_pos"]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("seed", range(3))
def test_equals_detectron2(seed: int) -> None:
    content = images(seed)
    meter = RecallMeter(NOVEL, LIMITS)
    for image in content:
        meter.add(*image)
    summary = meter.summary()
    kept_by_group = {
        "base": [not flag for flag in NOVEL],
        "novel": NOVEL,
        "all": [True] * len(NOVEL),
    }
    values = set()
    for group, kept in kept_by_group.items():
        for size in SIZES:
            for limit in LIMITS:
                expected, objects = detectron2_recall(content, kept, size, limit)
                value = summary[f"AR@{limit}/{group}" + ("" if size == "all" else f"/{size}")]
                if not objects:
                    assert value is None
                    continue
                assert value is not None
                assert value / 100 == pytest.approx(expected, abs=1e-6)
                values.add(value)
    assert len(values) > 15, "the kinds should differ, or the test shows little"
    assert len(summary) == len(kept_by_group) * len(SIZES) * len(LIMITS)


def test_computed_by_hand() -> None:
    """Two novel objects compete for the best proposal; one base object is found exactly."""
    meter = RecallMeter([False, True], limits=(1, 3))
    objects = [
        thing([0, 0, 10, 10], 1, area=100),  # IoU 0.9 with the first proposal
        thing([0, 0, 10, 8], 1, area=80),  # 8/9 with the first: matched; 0.625 with the second
        thing([100, 0, 200, 50], 0, area=9217),  # 1 with the third
    ]
    boxes = np.array([[0, 0, 10, 9], [0, 0, 10, 5], [100, 0, 300, 50]], dtype=np.float32)
    # passed worst first: the meter sorts
    meter.add(boxes[::-1], np.array([0.1, 0.2, 0.9]), objects)
    assert meter.summary() == {
        "AR@1/base": 0,
        "AR@1/base/small": None,
        "AR@1/base/medium": None,
        "AR@1/base/large": 0,
        # one of two objects, at 0.5, 0.55 … 0.9: nine of ten thresholds
        "AR@1/novel": pytest.approx(45),
        "AR@1/novel/small": pytest.approx(45),
        "AR@1/novel/medium": None,
        "AR@1/novel/large": None,
        "AR@1/all": pytest.approx(30),
        "AR@1/all/small": pytest.approx(45),
        "AR@1/all/medium": None,
        "AR@1/all/large": 0,
        "AR@3/base": 100,
        "AR@3/base/small": None,
        "AR@3/base/medium": None,
        "AR@3/base/large": 100,
        # the second object at 0.5, 0.55, 0.6: three more
        "AR@3/novel": pytest.approx(60),
        "AR@3/novel/small": pytest.approx(60),
        "AR@3/novel/medium": None,
        "AR@3/novel/large": None,
        "AR@3/all": pytest.approx(100 * 22 / 30),
        "AR@3/all/small": pytest.approx(60),
        "AR@3/all/medium": None,
        "AR@3/all/large": 100,
    }


def test_the_example_in_the_docstring() -> None:
    meter = RecallMeter(novel=[False, True], limits=(100,))
    cat = {"bbox": [0, 0, 10, 10], "bbox_mode": 1, "category_id": 1, "area": 100}
    meter.add(np.array([[0, 0, 10, 8]]), np.array([0.9]), [cat])
    assert meter.summary()["AR@100/novel"] == 70.0


def test_of_equal_objectness_the_earlier_goes_first() -> None:
    boxes = np.array([[50, 50, 60, 60]] * 40 + [[0, 0, 10, 10]], dtype=np.float32)
    for row, expected in ((40, 0), (0, 100)):
        meter = RecallMeter([False], limits=(30,))
        meter.add(np.roll(boxes, row - 40, axis=0), np.zeros(41), [thing([0, 0, 10, 10])])
        assert meter.summary()["AR@30/base"] == expected


def test_nothing_counted() -> None:
    assert set(RecallMeter([True]).summary().values()) == {None}


def test_no_proposals_miss_every_object() -> None:
    meter = RecallMeter(NOVEL)
    meter.add(np.zeros((0, 4)), np.zeros(0), [thing([0, 0, 10, 10], 1)])
    assert meter.summary()["AR@1000/novel"] == 0
    meter.add(np.array([[0, 0, 10, 10]]), np.zeros(1), [thing([0, 0, 10, 10], 1)])
    assert meter.summary()["AR@1000/novel"] == 50


def test_no_ground_truth_changes_nothing() -> None:
    meter = RecallMeter(NOVEL)
    meter.add(np.array([[0, 0, 10, 10]]), np.zeros(1), [])
    meter.add(np.zeros((0, 4)), np.zeros(0), [])
    assert set(meter.summary().values()) == {None}


def test_crowds_do_not_count() -> None:
    meter = RecallMeter(NOVEL)
    crowd = thing([0, 0, 10, 10], iscrowd=1)
    meter.add(np.array([[0, 0, 10, 10]]), np.zeros(1), [crowd])
    assert meter.summary()["AR@100/all"] is None
    meter.add(np.array([[0, 0, 10, 10]]), np.zeros(1), [crowd, thing([0, 0, 10, 10])])
    assert meter.summary()["AR@100/all"] == 100


def test_an_object_on_a_boundary_is_of_both_sizes() -> None:
    meter = RecallMeter([False], limits=(10,))
    meter.add(np.array([[0, 0, 32, 32]]), np.zeros(1), [thing([0, 0, 32, 32], area=1024)])
    summary = meter.summary()
    assert summary["AR@10/base/small"] == summary["AR@10/base/medium"] == 100
    assert summary["AR@10/base/large"] is None


SQUARE = [2.0, 2.0, 32.0, 2.0, 32.0, 32.0, 2.0, 32.0]  # 900 pixels
LOWER = [2.0, 40.0, 32.0, 40.0, 32.0, 50.0, 2.0, 50.0]  # 300 more
RLE = {"size": [40, 50], "counts": [400, 1200, 400]}  # 1200 pixels


@pytest.mark.parametrize(
    ("more", "size"),
    [
        ({}, "medium"),  # 40 × 40, the box
        ({"segmentation": []}, "medium"),
        ({"area": 900, "segmentation": RLE}, "small"),
        ({"segmentation": [SQUARE]}, "small"),
        ({"segmentation": [SQUARE, LOWER]}, "medium"),
        ({"segmentation": [SQUARE, SQUARE]}, "small"),  # pixels count once
        ({"segmentation": [np.array(SQUARE)]}, "small"),
        ({"segmentation": RLE}, "medium"),
        ({"segmentation": {**RLE, "counts": [400, 900, 700]}}, "small"),
    ],
)
def test_the_size_of_an_object(more: dict[str, Any], size: str) -> None:
    meter = RecallMeter([False], limits=(10,))
    meter.add(np.array([[0, 0, 40, 40]]), np.zeros(1), [thing([0, 0, 40, 40], **more)])
    summary = meter.summary()
    found = {name for name in SIZES[1:] if summary[f"AR@10/base/{name}"] is not None}
    assert found == {size}


def test_corner_boxes_are_understood() -> None:
    meter = RecallMeter([False])
    meter.add(
        np.array([[5, 5, 20, 20]]), np.zeros(1), [thing([5, 5, 20, 20], mode=BoxMode.XYXY_ABS)]
    )
    assert meter.summary()["AR@100/all"] == 100


def test_the_table_shows_every_kind() -> None:
    meter = RecallMeter([False, True])
    meter.add(np.array([[0, 0, 10, 8]]), np.zeros(1), [thing([0, 0, 10, 10], 1)])
    lines = meter.table().splitlines()
    assert lines[0].split() == ["classes", "size", "objects", "AR@100", "AR@300", "AR@1000"]
    assert len({len(line) for line in lines}) == 1
    assert [line.split() for line in lines[1:6]] == [
        ["base", "all", "0", "-", "-", "-"],
        ["base", "small", "0", "-", "-", "-"],
        ["base", "medium", "0", "-", "-", "-"],
        ["base", "large", "0", "-", "-", "-"],
        ["novel", "all", "1", "70.0", "70.0", "70.0"],
    ]


BOX = np.array([[0.0, 0, 10, 10]])


@pytest.mark.parametrize(
    ("boxes", "objectness", "complaint"),
    [
        (BOX[0], np.zeros(1), "shape (R, 4)"),
        (np.zeros((2, 5)), np.zeros(2), "shape (R, 4)"),
        (BOX, np.zeros(2), "(1, 4) and (2,)"),
        (BOX, np.zeros((1, 1)), "(1, 4) and (1, 1)"),
        (BOX * np.nan, np.zeros(1), "finite"),
        (BOX, np.array([np.inf]), "finite"),
    ],
)
def test_malformed_proposals(boxes: np.ndarray, objectness: np.ndarray, complaint: str) -> None:
    meter = RecallMeter([False])
    with pytest.raises(ValueError, match=re.escape(complaint)):
        meter.add(boxes, objectness, [thing([0, 0, 10, 10])])
    assert meter.summary()["AR@100/all"] is None


@pytest.mark.parametrize("category_id", [-1, 2])
def test_a_class_without_a_flag(category_id: int) -> None:
    with pytest.raises(ValueError, match=f"from 0 to 1.*got the class {category_id}"):
        RecallMeter([False, True]).add(BOX, np.zeros(1), [thing([0, 0, 1, 1], category_id)])


@pytest.mark.parametrize("limits", [(), (0, 100), (100, 100)])
def test_malformed_limits(limits: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="limits"):
        RecallMeter([False], limits)


@pytest.mark.parametrize("novel", [[], [[True]]])
def test_malformed_flags(novel: Any) -> None:
    with pytest.raises(ValueError, match="one novel flag per class"):
        RecallMeter(novel)
