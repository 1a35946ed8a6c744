"""All metrics, compared with the official packages on the same files."""

from __future__ import annotations

import copy
import io
import json
import math
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lvis import LVIS, LVISEval, LVISResults
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vild.data.masks import to_rle
from vild.evaluation import (
    Detections,
    GroundTruth,
    encode_masks,
    evaluate_coco_open_vocabulary,
    evaluate_lvis,
)
from vild.evaluation.coco_metrics import METRICS as COCO_METRICS
from vild.evaluation.lvis_metrics import METRICS as LVIS_METRICS

from .conftest import Case
from .perturbing import decoded, read_json

TASKS = ("bbox", "segm")


def official_lvis(case: Case, task: str) -> LVISEval:
    truth = LVIS(str(case.json_file))
    evaluation = LVISEval(truth, LVISResults(truth, str(case.results)), task)
    evaluation.run()
    return evaluation


def official_coco(case: Case, task: str, results: Path | None = None) -> COCOeval:
    with redirect_stdout(io.StringIO()):
        truth = COCO(str(case.json_file))
        evaluation = COCOeval(truth, truth.loadRes(str(results or case.results)), task)
        evaluation.params.catIds = case.dataset_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def percent(value: float) -> float:
    return value * 100 if value > -1 else math.nan


def mean(precision: np.ndarray) -> float:
    return percent(precision[precision > -1].mean()) if (precision > -1).any() else math.nan


def same(found: Any, expected: Any) -> None:
    assert found == pytest.approx(expected, abs=1e-9, rel=0, nan_ok=True)


def test_lvis_equals_the_official_package(shapes: Case) -> None:
    figures = evaluate_lvis(shapes.json_file, shapes.results, TASKS, shapes.novel)
    assert list(figures) == list(TASKS)
    for task, found in figures.items():
        official = official_lvis(shapes, task)
        assert list(found.metrics) == [*LVIS_METRICS, "AP-novel", "AP-base"]
        same(
            {name: found.metrics[name] for name in LVIS_METRICS},
            {name: percent(official.results[name]) for name in LVIS_METRICS},
        )
        precision = official.eval["precision"][..., 0]  # (T, R, K)
        ids = official.params.cat_ids
        for k, category_id in enumerate(ids):
            same(found.ap[category_id], mean(precision[:, :, k]))
            same(found.ap50[category_id], mean(precision[:1, :, k]))
        flags = np.array([shapes.novel[i] for i in ids])
        same(found.metrics["AP-novel"], mean(precision[:, :, flags]))
        same(found.metrics["AP-base"], mean(precision[:, :, ~flags]))
        # the case is not trivial
        assert math.isnan(found.ap[3])
        assert 5 < found.metrics["AP"] < 95
        assert len(set(found.ap.values())) > 10
    assert figures["bbox"].metrics["AP"] != figures["segm"].metrics["AP"]


def test_coco_equals_the_official_package(coco: Case) -> None:
    figures = evaluate_coco_open_vocabulary(coco.json_file, coco.results, TASKS, coco.novel)
    groups = ["AP-novel", "AP-base", "AP50-novel", "AP50-base", "AP50-all"]
    for task, found in figures.items():
        official = official_coco(coco, task)
        assert list(found.metrics) == [*COCO_METRICS, *groups]
        same([found.metrics[name] for name in COCO_METRICS], list(map(percent, official.stats[:6])))
        precision = official.eval["precision"][:, :, :, 0, -1]
        ids = official.params.catIds
        assert len(ids) == 65
        for k, category_id in enumerate(ids):
            same(found.ap[category_id], mean(precision[:, :, k]))
            same(found.ap50[category_id], mean(precision[:1, :, k]))
        flags = np.array([coco.novel[i] for i in ids])
        assert flags.sum() == 17
        for prefix, part in (("AP", precision), ("AP50", precision[:1])):
            same(found.metrics[f"{prefix}-novel"], mean(part[:, :, flags]))
            same(found.metrics[f"{prefix}-base"], mean(part[:, :, ~flags]))
        same(found.metrics["AP50-all"], mean(precision[:1]))
        assert len({found.metrics[f"AP50-{group}"] for group in ("novel", "base", "all")}) == 3
        assert 5 < found.metrics["AP"] < 95


def test_coco_leaves_out_classes_outside_of_the_vocabulary(coco: Case, tmp_path: Path) -> None:
    outside = sorted({c["id"] for c in coco.contents["categories"]} - set(coco.dataset_ids))
    assert len(outside) == 15
    items = read_json(coco.results)
    other = [{**item, "category_id": outside[n % 15]} for n, item in enumerate(items)]
    more = tmp_path / "more.json"
    more.write_text(json.dumps(items + other), encoding="utf-8")
    found = evaluate_coco_open_vocabulary(coco.json_file, more, ["bbox"], coco.novel)["bbox"]
    figures = evaluate_coco_open_vocabulary(coco.json_file, coco.results, ["bbox"], coco.novel)
    same(found.metrics, figures["bbox"].metrics)
    same(found.metrics["AP"], percent(official_coco(coco, "bbox", more).stats[0]))


def test_the_order_of_the_detections_and_of_the_images_does_not_matter(shapes: Case) -> None:
    items = read_json(shapes.results)
    # sorted by class, so that an image's detections are scattered; ties keep their order
    items.sort(key=lambda item: item["category_id"])
    before = copy.deepcopy(items)
    scattered = evaluate_lvis(shapes.json_file, items, ["segm"], shapes.novel)["segm"]
    assert items == before  # the caller's list is unchanged
    official = LVISEval(str(shapes.json_file), LVISResults(str(shapes.json_file), items), "segm")
    official.run()
    same(
        [scattered.metrics[name] for name in LVIS_METRICS],
        [percent(official.results[name]) for name in LVIS_METRICS],
    )


def test_only_the_300_best_of_a_image_count(shapes: Case) -> None:
    counts = [len(found) for found in shapes.found.values()]
    assert max(counts) > 300
    detections = Detections.read(shapes.results, GroundTruth.read(shapes.json_file, shapes.novel))
    best = detections.best(300)
    assert len(best) == sum(min(count, 300) for count in counts)
    assert best.mask_counts is not None
    assert len(best.mask_counts) == len(best)
    # same selection as the official package, including ties
    official = LVISResults(str(shapes.json_file), read_json(shapes.results))
    chosen = {(a["image_id"], a["score"], *a["bbox"]) for a in official.dataset["annotations"]}
    assert best.boxes is not None
    assert chosen == {
        (image, score, *box)
        for image, score, box in zip(
            best.image_ids.tolist(), best.scores.tolist(), best.boxes.tolist(), strict=True
        )
    }
    assert detections.best(1000) is detections


@pytest.mark.parametrize("kind", ["shapes", "coco"])
def test_no_detections_are_zero_and_no_objects_are_nan(
    kind: str, request: pytest.FixtureRequest
) -> None:
    case: Case = request.getfixturevalue(kind)
    evaluate = evaluate_lvis if kind == "shapes" else evaluate_coco_open_vocabulary
    figures = evaluate(case.json_file, [], TASKS, case.novel)
    present = {a["category_id"] for a in case.contents["annotations"] if not a.get("iscrowd")}
    for found in figures.values():
        assert found.metrics["AP"] == found.metrics["AP-novel"] == found.metrics["AP-base"] == 0
        for category_id, value in found.ap.items():
            assert value == 0 if category_id in present else math.isnan(value)
        assert -100 not in found.metrics.values()


def test_groups_without_classes_are_nan(shapes: Case) -> None:
    items = read_json(shapes.results)
    base = dict.fromkeys(shapes.novel, False)
    found = evaluate_lvis(shapes.json_file, items, ["bbox"], base)["bbox"]
    assert math.isnan(found.metrics["AP-novel"])
    same(found.metrics["AP-base"], found.metrics["AP"])


def test_boxes_alone_and_masks_alone(shapes: Case, coco: Case) -> None:
    for case, evaluate in ((shapes, evaluate_lvis), (coco, evaluate_coco_open_vocabulary)):
        items = read_json(case.results)
        both = evaluate(case.json_file, items, TASKS, case.novel)
        boxes = [{k: v for k, v in item.items() if k != "segmentation"} for item in items]
        alone = evaluate(case.json_file, boxes, ["bbox"], case.novel)["bbox"]
        same(alone.metrics, both["bbox"].metrics)
        same(alone.ap50, both["bbox"].ap50)
        masks = [{k: v for k, v in item.items() if k != "bbox"} for item in items]
        alone = evaluate(case.json_file, masks, ["segm"], case.novel)["segm"]
        for name in ("AP", "AP50", "AP-novel"):  # size metrics use the masks now
            same(alone.metrics[name], both["segm"].metrics[name])


def test_frequencies_are_counted_where_the_json_has_none(shapes: Case, tmp_path: Path) -> None:
    contents = copy.deepcopy(shapes.contents)
    for category in contents["categories"]:
        del category["frequency"]
    (tmp_path / "a.json").write_text(json.dumps(contents), encoding="utf-8")
    found = evaluate_lvis(tmp_path / "a.json", shapes.results, ["bbox"], shapes.novel)["bbox"]
    # each class occurs in few of the 24 images
    assert math.isnan(found.metrics["APf"])
    assert found.metrics["APr"] > 5


def test_annotations_without_area_and_crowd_flag(coco: Case, tmp_path: Path) -> None:
    contents = copy.deepcopy(coco.contents)
    contents["annotations"] = [a for a in contents["annotations"] if not a["iscrowd"]]
    with_them = tmp_path / "with.json"
    for item in contents["annotations"]:
        item["area"] = item["bbox"][2] * item["bbox"][3]
    with_them.write_text(json.dumps(contents), encoding="utf-8")
    for item in contents["annotations"]:
        del item["area"], item["iscrowd"]
    (tmp_path / "without.json").write_text(json.dumps(contents), encoding="utf-8")
    expected, found = (
        evaluate_coco_open_vocabulary(file, coco.results, ["bbox"], coco.novel)
        for file in (with_them, tmp_path / "without.json")
    )
    same(found["bbox"].metrics, expected["bbox"].metrics)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"image_id": 9999}, r"detection 4: expected the id of an image of .*val\.json, got 9999"),
        ({"category_id": 777}, r"detection 4: expected the id of a class of .*val\.json, got 777"),
        ({"bbox": [0, 0, math.nan, 1]}, "detection 4: expected a box of 4 finite numbers"),
        (
            {"segmentation": {"size": [9, 9], "counts": "Q2"}},
            r"mask of its image for detection 4 .*\[9, 9\]",
        ),
    ],
)
def test_detections_of_another_data_set_are_refused(
    shapes: Case, change: dict[str, Any], complaint: str
) -> None:
    items = read_json(shapes.results)
    items[4].update(change)
    items[6].update(change)
    with pytest.raises(ValueError, match=complaint):
        evaluate_lvis(shapes.json_file, items, TASKS, shapes.novel)


def test_tasks_must_fit(shapes: Case, tmp_path: Path) -> None:
    items = read_json(shapes.results)
    boxes = [{k: v for k, v in item.items() if k != "segmentation"} for item in items]
    with pytest.raises(ValueError, match="the detections have no masks, which the task 'segm'"):
        evaluate_lvis(shapes.json_file, boxes, TASKS, shapes.novel)
    with pytest.raises(ValueError, match="'segmentation' for all detections or for none"):
        evaluate_lvis(shapes.json_file, [*boxes[:3], *items[3:]], TASKS, shapes.novel)
    with pytest.raises(ValueError, match="'segmentation' for all detections or for none"):
        evaluate_lvis(shapes.json_file, [*items[:3], *boxes[3:]], TASKS, shapes.novel)
    for tasks in ([], ["keypoints"], ["bbox", "bbox"]):
        with pytest.raises(ValueError, match="expected tasks among"):
            evaluate_lvis(shapes.json_file, items, tasks, shapes.novel)
    contents = copy.deepcopy(shapes.contents)
    for item in contents["annotations"]:
        del item["segmentation"]
    (tmp_path / "a.json").write_text(json.dumps(contents), encoding="utf-8")
    with pytest.raises(ValueError, match="has no masks: evaluate the task 'bbox' alone"):
        evaluate_lvis(tmp_path / "a.json", items, TASKS, shapes.novel)


@pytest.mark.parametrize("kind", ["shapes", "coco"])
def test_objects_without_a_mask_are_ignored_where_masks_are_measured(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    case: Case = request.getfixturevalue(kind)
    evaluate = evaluate_lvis if kind == "shapes" else evaluate_coco_open_vocabulary
    contents = copy.deepcopy(case.contents)
    objects = [
        a
        for a in contents["annotations"]
        if not a.get("iscrowd") and a["category_id"] in case.novel
    ]
    perfect = [{k: a[k] for k in ("image_id", "category_id", "bbox")} for a in objects]
    sizes = {i["id"]: (i["height"], i["width"]) for i in contents["images"]}
    for item, own in zip(perfect, objects, strict=True):
        mask = decoded(own["segmentation"], *sizes[own["image_id"]])
        (item["segmentation"],) = encode_masks(torch.from_numpy(mask)[None])
        item["score"] = 1.0
    for own in objects[::3]:
        del own["segmentation"]
    (tmp_path / "a.json").write_text(json.dumps(contents), encoding="utf-8")
    found = evaluate(tmp_path / "a.json", perfect[1::3] + perfect[2::3], TASKS, case.novel)
    assert found["segm"].metrics["AP"] > 99.9
    assert found["bbox"].metrics["AP"] < 90  # their boxes count
    # detections of ignored objects are not false positives, since their boxes overlap enough
    rectangles = [
        {**item, "segmentation": rectangle(own["bbox"], *sizes[own["image_id"]])}
        for item, own in zip(perfect[::3], objects[::3], strict=True)
    ]
    found = evaluate(
        tmp_path / "a.json", rectangles + perfect[1::3] + perfect[2::3], ["segm"], case.novel
    )
    assert found["segm"].metrics["AP"] > 99.9


def rectangle(box: list[float], height: int, width: int) -> dict[str, Any]:
    x, y, w, h = box
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    return to_rle([polygon], height, width).to_dict()


def test_annotations_must_fit(shapes: Case, coco: Case, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lacks 'neg_category_ids', which LVIS"):
        evaluate_lvis(coco.json_file, coco.results, ["bbox"], coco.novel)
    with pytest.raises(ValueError, match="lacks the category id 4000 of the vocabulary"):
        GroundTruth.read(shapes.json_file, [1, 4000])
    for section, change, complaint in (
        ("images", {"id": 1}, "different image ids, got 1 repeated ones: 1"),
        ("annotations", {"image_id": 4000}, r"annotations\[3\] .*: image 4000"),
    ):
        contents = copy.deepcopy(shapes.contents)
        contents[section][3].update(change)
        (tmp_path / "a.json").write_text(json.dumps(contents), encoding="utf-8")
        with pytest.raises(ValueError, match=complaint):
            GroundTruth.read(tmp_path / "a.json", shapes.novel)


@pytest.mark.parametrize("kind", ["shapes", "coco"])
def test_ids_of_any_kind_give_the_same_figures(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    case: Case = request.getfixturevalue(kind)
    evaluate = evaluate_lvis if kind == "shapes" else evaluate_coco_open_vocabulary
    expected = evaluate(case.json_file, case.results, TASKS, case.novel)
    contents, items = copy.deepcopy(case.contents), read_json(case.results)
    # annotations from 0, images as text in the same order, and results with numbers as text
    order = sorted(image["id"] for image in contents["images"])
    names = {image_id: f"street/{n:05}" for n, image_id in enumerate(order)}
    for number, item in enumerate(contents["annotations"]):
        item["id"] = number
    for entry in (*contents["annotations"], *items):
        entry["image_id"] = names[entry["image_id"]]
    for image in contents["images"]:
        image["id"] = names[image["id"]]
    for item in items:
        item["category_id"] = str(item["category_id"])
    (tmp_path / "a.json").write_text(json.dumps(contents), encoding="utf-8")
    found = evaluate(tmp_path / "a.json", items, TASKS, case.novel)
    for task in TASKS:
        same(found[task].metrics, expected[task].metrics)
        same(found[task].ap, expected[task].ap)


def test_boxes_of_results_in_another_form(shapes: Case, caplog: pytest.LogCaptureFixture) -> None:
    items = [{k: v for k, v in i.items() if k != "segmentation"} for i in read_json(shapes.results)]
    truth = GroundTruth.read(shapes.json_file, shapes.novel)
    Detections.read(items, truth)
    assert "are they x, y, width, height" not in caplog.text
    fractions = [{**item, "bbox": [v / 160 for v in item["bbox"]]} for item in items]
    Detections.read(fractions, truth)
    assert "are they x, y, width, height in pixels?" in caplog.text
    items[3]["bbox"] = [50, 50, -10, 5]
    with pytest.raises(ValueError, match="width, height in pixels as the box, got"):
        Detections.read(items, truth)
