from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json

from vild.evaluation.results import Detection, iterate_detections
from vild.reporting import instances_from_results, read_results_by_image

from .scenes import CROW, OWL, found

ROWS = {7: CROW, 3: OWL}
IDS = {row: category for category, row in ROWS.items()}


def detections(written: list[dict[str, Any]]) -> list[Detection]:
    return list(iterate_detections(written, [12], None, "the data"))


def results(masks: bool = True) -> tuple[Any, list[dict[str, Any]]]:
    """Return detections and what Detectron2's evaluator writes for them."""
    mask = torch.zeros(2, 120, 160, dtype=torch.bool)
    mask[0, 45:60, 50:95] = True
    mask[1, 5:20, 10:30] = True
    fields = {"pred_masks": mask} if masks else {}
    instances = found(([40, 40, 100, 90], 0.9, OWL), ([5.5, 1, 31, 22], 0.25, CROW), **fields)
    written = instances_to_coco_json(instances, 12)
    for entry in written:
        entry["category_id"] = IDS[entry["category_id"]]
    return instances, json.loads(json.dumps(written))


@pytest.mark.parametrize("masks", [True, False])
def test_round_trip(masks: bool) -> None:
    instances, written = results(masks)
    back = instances_from_results(detections(written), (120, 160), ROWS)
    assert back.image_size == (120, 160)
    assert torch.equal(back.pred_boxes.tensor, instances.pred_boxes.tensor)
    assert torch.equal(back.scores, instances.scores)
    assert torch.equal(back.pred_classes, instances.pred_classes)
    assert back.has("pred_masks") == masks
    if masks:
        assert torch.equal(back.pred_masks, instances.pred_masks)


def test_of_nothing() -> None:
    back = instances_from_results([], (120, 160), ROWS)
    assert len(back) == 0
    assert back.pred_boxes.tensor.shape == (0, 4)


def test_a_box_is_taken_from_the_mask_where_there_is_none() -> None:
    _, written = results()
    del written[0]["bbox"]
    back = instances_from_results(detections(written), (120, 160), ROWS)
    assert back.pred_boxes.tensor[0].tolist() == [50, 45, 95, 60]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e[0].update(bbox=[1, 2, 3]), "box of 4 finite numbers"),
        (lambda e: e[0].pop("segmentation"), "in every detection"),
        (lambda e: e[0]["segmentation"].update(size=[10, 10]), r"run lengths of \[10, 10\]"),
        (lambda e: e[0]["segmentation"].update(counts="b'0'"), "expected compressed run lengths"),
        (lambda e: e[0].update(segmentation="ab"), "expected polygons or run lengths"),
    ],
)
def test_broken_results_are_named(change: Any, message: str) -> None:
    _, written = results()
    change(written)
    with pytest.raises(ValueError, match=message):
        instances_from_results(detections(written), (120, 160), ROWS)


def test_a_file_is_sorted_by_image(tmp_path: Path) -> None:
    entries = [
        {"image_id": i, "category_id": 3, "score": s, "bbox": [1, 2, 3, 4]}
        for i, s in ((2, 1), (1, 0.5), ("2", "0"))
    ]
    (tmp_path / "r.json").write_text(json.dumps(entries), encoding="utf-8")
    found = read_results_by_image(tmp_path / "r.json", [1, 2, 3], ROWS)
    assert {i: [d.score for d in own] for i, own in found.items()} == {2: [1.0, 0.0], 1: [0.5]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("{", "is not a json file"),
        ('{"images": []}', "expected a list of detections"),
        ("[3]", "detection 0: expected an object, got 3"),
        ('[{"image_id": 1, "category_id": 3}]', "detection 0: object missing required field score"),
        (
            '[{"image_id": 5, "category_id": 3, "score": 1, "bbox": [0, 0, 1, 1]}]',
            "of an image of the dataset, got 5",
        ),
        ('[{"image_id": 1, "category_id": 4, "score": 1, "bbox": [0, 0, 1, 1]}]', "category_id 4"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "r.json"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        read_results_by_image(file, [1], ROWS)
    assert str(file) in str(caught.value)


def test_classes_that_the_dataset_lacks_are_left_out_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries = [
        {"image_id": 1, "category_id": c, "score": 0.5, "bbox": [1, 2, 3, 4]} for c in (3, 8, 8, 9)
    ]
    (tmp_path / "r.json").write_text(json.dumps(entries), encoding="utf-8")
    found = read_results_by_image(tmp_path / "r.json", [1], ROWS)
    assert [d.category_id for d in found[1]] == [3]
    (record,) = caplog.records
    assert "3 detections have classes that the dataset lacks, category_id 8, 9" in record.message


def test_a_box_is_taken_from_run_lengths() -> None:
    segmentation = {"size": [4, 3], "counts": [5, 2, 5]}  # rows 1 and 2 of column 1
    written = [{"image_id": 12, "category_id": 3, "score": 1, "segmentation": segmentation}]
    back = instances_from_results(detections(written), (4, 3), ROWS)
    assert back.pred_boxes.tensor.tolist() == [[1, 1, 2, 3]]
