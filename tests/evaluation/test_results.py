from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.structures import Instances

from vild.evaluation import (
    ResultsWriter,
    encode_masks,
)
from vild.evaluation.results import Detection, Results, iterate_detections, merge_parts

from .perturbing import instances, read_json

IDS = [3, 5, 8]


def image(number: int, *, seed: int = 0) -> Instances:
    rng = np.random.RandomState(seed)
    masks = rng.rand(number, 20, 30) > 0.5
    return instances(list(masks), rng.randint(0, 3, number), (20, 30), rng)


def test_detections_are_read_back_equal(tmp_path: Path) -> None:
    found = image(7)
    with ResultsWriter(tmp_path / "new" / "r.json") as writer:
        writer.add(11, found, IDS)
    items = read_json(tmp_path / "new" / "r.json")
    assert json.loads((tmp_path / "new" / "r.json").read_text(encoding="utf-8")) == items
    assert [item["image_id"] for item in items] == [11] * 7
    assert [item["category_id"] for item in items] == [IDS[c] for c in found.pred_classes]
    assert [item["score"] for item in items] == found.scores.tolist()
    x1, y1, x2, y2 = found.pred_boxes.tensor.unbind(1)
    expected = torch.stack([x1, y1, x2 - x1, y2 - y1], dim=1)
    assert torch.equal(torch.tensor([item["bbox"] for item in items]), expected)
    for item, mask in zip(items, found.pred_masks.numpy(), strict=True):
        assert item["segmentation"]["size"] == [20, 30]
        assert np.array_equal(mask_util.decode(item["segmentation"]).astype(bool), mask)


def test_masks_are_encoded_as_pycocotools_does() -> None:
    masks = image(7).pred_masks
    encoded = encode_masks(masks)
    for mask, item in zip(masks.numpy(), encoded, strict=True):
        expected = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert item == {"size": [20, 30], "counts": expected["counts"].decode()}
    strided = masks.transpose(1, 2).contiguous().transpose(1, 2)
    assert encode_masks(strided) == encoded
    assert encode_masks(masks[:0]) == []


@pytest.mark.parametrize(
    "masks", [torch.zeros(1, 1, 28, 28), torch.zeros(1, 28, 28), torch.zeros(28, 28).bool()]
)
def test_masks_that_are_not_pasted_are_refused(masks: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected masks"):
        encode_masks(masks)


def test_masks_are_left_out_where_there_are_none_or_none_are_wanted(tmp_path: Path) -> None:
    without = image(2)
    without.remove("pred_masks")
    with ResultsWriter(tmp_path / "a.json") as writer:
        writer.add(1, without, IDS)
    with ResultsWriter(tmp_path / "b.json", masks=False) as writer:
        writer.add(1, image(2), IDS)
    first, second = read_json(tmp_path / "a.json"), read_json(tmp_path / "b.json")
    assert first == second
    assert set(first[0]) == {"image_id", "category_id", "bbox", "score"}


@pytest.mark.parametrize("numbers", [(), (0,), (0, 2, 0), (2, 0, 3)])
def test_images_without_detections(tmp_path: Path, numbers: tuple[int, ...]) -> None:
    with ResultsWriter(tmp_path / "r.json") as writer:
        for image_id, number in enumerate(numbers):
            writer.add(image_id, image(number), IDS)
    items = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    expected = [image_id for image_id, number in enumerate(numbers) for _ in range(number)]
    assert [item["image_id"] for item in items] == expected
    assert read_json(tmp_path / "r.json") == items


def write_and_die(target: Path) -> None:
    writer = ResultsWriter(target)
    for image_id in range(50):
        writer.add(image_id, image(5), IDS)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_leaves_the_old_file_or_none(tmp_path: Path) -> None:
    target = tmp_path / "r.json"
    process = multiprocessing.get_context("fork").Process(target=write_and_die, args=(target,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not target.exists()
    assert list(tmp_path.iterdir())  # killed during the write


def write_and_fail(target: Path) -> None:
    with ResultsWriter(target) as writer:
        writer.add(2, image(3), IDS)
        raise RuntimeError("on the way")


def test_an_error_leaves_the_old_file_alone(tmp_path: Path) -> None:
    target = tmp_path / "r.json"
    with ResultsWriter(target) as writer:
        writer.add(1, image(2), IDS)
    before = target.read_bytes()
    with pytest.raises(RuntimeError, match="on the way"):
        write_and_fail(target)
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(ValueError, match="already closed"):
        writer.add(3, image(1), IDS)


def test_a_writer_that_nobody_closes_leaves_nothing(tmp_path: Path) -> None:
    writer = ResultsWriter(tmp_path / "r.json")
    writer.add(1, image(2), IDS)
    del writer
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda d: d.scores.fill_(float("nan")), "expected finite"),
        (lambda d: d.pred_boxes.tensor.fill_(float("inf")), "expected finite"),
        (lambda d: d.pred_classes.fill_(3), "expected classes below 3, got 3"),
        (lambda d: d.pred_classes.fill_(-1), "expected classes below 3, got -1"),
    ],
)
def test_impossible_detections_are_refused(tmp_path: Path, change: Any, complaint: str) -> None:
    writer = ResultsWriter(tmp_path / "r.json")
    writer.add(1, image(1), IDS)
    bad = image(2)
    change(bad)
    with pytest.raises(ValueError, match=complaint) as error:
        writer.add(77, bad, IDS)
    assert "77" in str(error.value)
    writer.close()
    assert len(read_json(tmp_path / "r.json")) == 1  # without the bad image


def read(results: Results) -> list[Detection]:
    return list(iterate_detections(results, range(100), range(100), "the data"))


def test_parts_are_merged(tmp_path: Path) -> None:
    parts, expected = [], []
    for rank, number in enumerate((0, 3, 2, 0)):
        with ResultsWriter(tmp_path / f"part{rank}.json") as writer:
            writer.add(rank, image(number, seed=rank), IDS)
        parts.append(writer.path)
        expected += read_json(writer.path)
    foreign = tmp_path / "foreign.json"  # another program's layout
    foreign.write_text(" [" + json.dumps(expected[0]) + ",\n" + json.dumps(expected[1]) + "  ] \n")
    merged = merge_parts([*parts, foreign], tmp_path / "all.json")
    assert json.loads(merged.read_text(encoding="utf-8")) == expected + expected[:2]
    assert read_json(merged) == expected + expected[:2]
    assert json.loads(merge_parts(parts[:1], tmp_path / "no.json").read_text()) == []


def test_parts_that_are_missing_or_cut_off_are_refused(tmp_path: Path) -> None:
    with ResultsWriter(tmp_path / "part0.json") as writer:
        writer.add(1, image(3), IDS)
    with pytest.raises(ValueError, match=r"expected a part of the results at .*part1"):
        merge_parts([writer.path, tmp_path / "part1.json"], tmp_path / "all.json")
    writer.path.write_bytes(writer.path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="not a complete json array"):
        merge_parts([writer.path], tmp_path / "all.json")
    assert not (tmp_path / "all.json").exists()


GOOD = {"image_id": 1, "category_id": 2, "bbox": [0, 1, 2, 3.5], "score": 0.5}


def text_with(**changes: Any) -> str:
    return json.dumps([GOOD, {k: v for k, v in {**GOOD, **changes}.items() if v is not None}])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "expected results at .*: the file is empty"),
        ("hello", "is not a json file"),
        ('{"images": []}', "expected a list of detections, got a dict"),
        (json.dumps([GOOD, GOOD])[:-1], "is truncated"),
        (json.dumps([GOOD, GOOD])[:-9], "is truncated"),
        ("[", "is truncated"),
        (json.dumps([GOOD])[:-1] + ",]", "is not a json file"),
        (json.dumps([GOOD]) + "]", "is not a json file"),
        (json.dumps([GOOD])[:-1] + json.dumps(GOOD) + "]", "is not a json file"),
        ("[1, 2]", "detection 0: expected an object, got 1"),
        (text_with(score=None), "detection 1: object missing required field score"),
        (
            text_with(image_id=None, category_id=None),
            "detection 1: object missing required field image_id",
        ),
        (text_with(bbox=None), "detection 1: expected a 'bbox' or a 'segmentation'"),
        (text_with(category_id=[7]), r"detection 1.category_id: expected int \| str, got array"),
        (text_with(score=float("nan")), "detection 1: object missing required field score"),
        (text_with(bbox=[1, 2, float("nan"), 4]), "detection 1: expected a box of 4 finite"),
        (text_with(bbox=[1, 2, 3]), r"4 finite numbers, got \[1.0, 2.0, 3.0\]"),
        (text_with(segmentation="ab"), "detection 1: expected polygons or run lengths"),
        (text_with(bbox=[1, 2, -3, 4]), r"as the box, got \[1.0, 2.0, -3.0, 4.0\]"),
        (text_with(bbox=[1e308] * 4), "detection 1: expected a box of 4 finite numbers"),
        (text_with(category_id=True), r"detection 1.category_id: expected int \| str, got bool"),
        (text_with(image_id=2**70), f"id of an image of the data, got {2**70}. Are these its"),
        (text_with(image_id="x" * 5000), r"id of an image of the data, got 'x+\. Are these its"),
        (text_with(category_id=101), "id of a class of the data, got 101. Are these its results"),
        (text_with(score=10**400), "detection 1.score: number out of range"),
        (
            text_with(score=[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]),
            "detection 1.score: expected fl",
        ),
        (text_with(bbox=json.loads("[" * 300 + "]" * 300)), r"detection 1.bbox\[0\]: expected flo"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "r.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=complaint) as error:
        read(file)
    assert str(file) in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 500


def test_a_missing_and_a_binary_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected results at .*r\.json: No such file"):
        read(tmp_path / "r.json")
    (tmp_path / "r.json").write_bytes(b"\x80\x04\x95" * 10)
    with pytest.raises(ValueError, match="is not a json file"):
        read(tmp_path / "r.json")


@pytest.mark.parametrize("layout", [{}, {"indent": 2}, {"separators": (",", ":")}])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_any_layout_and_encoding_is_read(
    tmp_path: Path, layout: dict[str, Any], encoding: str
) -> None:
    items = [{**GOOD, "image_id": n, "score": n / 7} for n in range(5)]
    (tmp_path / "r.json").write_text(json.dumps(items, **layout), encoding=encoding)
    found = read(tmp_path / "r.json")
    assert found == read(items)
    assert [(d.image_id, d.score) for d in found] == [(n, n / 7) for n in range(5)]


def test_ids_are_those_of_the_dataset() -> None:
    items = [{**GOOD, "image_id": "1", "category_id": 2}]
    (found,) = iterate_detections(items, [1], ["2"], "the data")
    assert (found.image_id, found.category_id) == (1, "2")
