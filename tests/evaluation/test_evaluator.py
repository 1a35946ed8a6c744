from __future__ import annotations

import copy
import csv
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import nn

from vild.data import Vocabulary, read_annotations, register_split
from vild.data.shapes import shapes_vocabulary
from vild.engine import launch
from vild.evaluation import OpenVocabularyEvaluator, evaluate_results

from .. import small_shapes
from ..making import text_embeddings, tiny_config, tiny_model
from .conftest import SHAPES, Case, forget
from .perturbing import read_json
from .test_metrics import LVIS_METRICS, official_lvis, percent, same


class Remembered(nn.Module):
    """A model that returns the detections of the case."""

    def __init__(self, found: dict[int, Any], masks: bool = True) -> None:
        super().__init__()
        self.found, self.masks = found, masks

    def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        outputs = [self.found[given["image_id"]] for given in inputs]
        if not self.masks:
            outputs = [type(o)(o.image_size, **o.get_fields()) for o in outputs]
            for output in outputs:
                output.remove("pred_masks")
        return [{"instances": output} for output in outputs]


def batches(case: Case, size: int = 3) -> list[list[dict[str, Any]]]:
    inputs = [{"image_id": image["id"]} for image in case.contents["images"]]
    return [inputs[n : n + size] for n in range(0, len(inputs), size)]


@pytest.mark.parametrize("kind", ["shapes", "coco"])
def test_in_detectron2s_loop(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case: Case = request.getfixturevalue(kind)
    evaluator = OpenVocabularyEvaluator(dataset_name=case.name, output_dir=tmp_path)
    with caplog.at_level(logging.INFO):
        metrics = inference_on_dataset(Remembered(case.found), batches(case), evaluator)
        print_csv_format(metrics)
    names = {f"{case.name}_{end}" for end in ("results.json", "per_class.csv", "metrics.json")}
    assert {file.name for file in tmp_path.iterdir()} == names
    results = tmp_path / f"{case.name}_results.json"
    assert results.read_bytes() == case.results.read_bytes()
    assert all(type(value) is float for value in flatten_results_dict(metrics).values())
    assert list(metrics) == ["bbox", "segm"]
    expected = flatten_results_dict(metrics)
    same(flatten_results_dict(evaluate_results(case.name, results)), expected)
    # a second evaluation gives the same result, without leftovers of the first
    again = inference_on_dataset(Remembered(case.found), batches(case), evaluator)
    same(flatten_results_dict(again), expected)
    written = json.loads((tmp_path / f"{case.name}_metrics.json").read_text(encoding="utf-8"))
    for name, value in metrics["segm"].items():
        assert written["metrics"]["segm"][name] == (None if math.isnan(value) else value)
    assert written["detections"] == len(read_json(results))
    assert written["annotations"] == str(case.json_file)
    copied = [r.message for r in caplog.records if r.message.startswith("copypaste:")]
    assert copied[1].startswith("copypaste: AP,AP50,AP75,APs,APm,APl")
    logged = "\n".join(record.getMessage() for record in caplog.records)
    assert f"{shapes_vocabulary(0).categories()[0].name if kind == 'shapes' else 'airplane'} " in (
        logged
    )
    if kind == "shapes":
        for task, found in metrics.items():
            official = official_lvis(case, task).results
            assert list(found) == [*LVIS_METRICS, "AP-novel", "AP-base"]
            same([found[n] for n in LVIS_METRICS], [percent(official[n]) for n in LVIS_METRICS])
    else:
        assert list(metrics["bbox"])[-3:] == ["AP50-novel", "AP50-base", "AP50-all"]


def test_the_csv_of_classes(shapes: Case, tmp_path: Path) -> None:
    metrics = evaluate_results(SHAPES, shapes.results, output_dir=tmp_path)
    with (tmp_path / f"{SHAPES}_per_class.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    known = ["class", "novel", "frequency", "instances"]
    assert list(rows[0]) == [*known, "bbox AP", "bbox AP50", "segm AP", "segm AP50"]
    categories = read_annotations(shapes.json_file).categories
    for row, category in zip(rows, categories, strict=True):
        objects = [a for a in shapes.contents["annotations"] if a["category_id"] == category.id]
        assert row["class"] == category.name
        assert row["novel"] == str(int(shapes.novel[category.id]))
        assert row["frequency"] == category.frequency
        assert row["instances"] == str(len(objects))
        assert (row["bbox AP"] == "") == (not objects)
    assert rows[2]["bbox AP"] == ""  # the class without objects
    for task in ("bbox", "segm"):
        official = official_lvis(shapes, task).eval["precision"][..., 0]
        for k, row in enumerate(rows):
            if row["instances"] != "0":
                same(float(row[f"{task} AP"]), official[:, :, k].mean() * 100)
                same(float(row[f"{task} AP50"]), official[0, :, k].mean() * 100)
        novel = [float(r[f"{task} AP"]) for r in rows if r["novel"] == "1" and r[f"{task} AP"]]
        same(metrics[task]["AP-novel"], sum(novel) / len(novel))


def test_boxes_alone(shapes: Case, tmp_path: Path) -> None:
    for masks in (True, False):
        evaluator = OpenVocabularyEvaluator(
            dataset_name=SHAPES, tasks=("bbox",), output_dir=tmp_path, out=tmp_path / "x" / "o.json"
        )
        model = Remembered(shapes.found, masks)
        metrics = inference_on_dataset(model, batches(shapes), evaluator)
        assert list(metrics) == ["bbox"]
        assert "segmentation" not in read_json(tmp_path / "x" / "o.json")[0]
        read_back = evaluate_results(SHAPES, tmp_path / "x" / "o.json")
        same(flatten_results_dict(read_back), flatten_results_dict(metrics))
    same(metrics["bbox"], evaluate_results(SHAPES, shapes.results, ("bbox",))["bbox"])
    assert not (tmp_path / f"{SHAPES}_results.json").exists()


def _as_two(name: str, folder: str, half: dict[int, list[Any]]) -> None:
    torch.set_num_threads(1)
    json_file = Path(folder, "val.json")
    register_split(
        name,
        json_file,
        folder,
        read_annotations(json_file).categories,
        shapes_vocabulary(0).novel,
        base_only=False,
        evaluator_type="lvis",
    )
    evaluator = OpenVocabularyEvaluator(dataset_name=name, output_dir=Path(folder, "out"))
    rank = comm.get_rank()
    found = torch.load(Path(folder, "found.pth"), weights_only=False)
    inputs = [[{"image_id": image_id}] for image_id in half[rank]]
    metrics = inference_on_dataset(Remembered(found), inputs, evaluator)
    Path(folder, f"rank{rank}.json").write_text(json.dumps(metrics), encoding="utf-8")


def test_two_processes_give_the_figures_of_one(
    shapes: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    images = list(shapes.found)
    (tmp_path / "val.json").write_text(json.dumps(shapes.contents), encoding="utf-8")
    torch.save(shapes.found, tmp_path / "found.pth")
    (tmp_path / "out").mkdir()
    # left by a run with more ranks
    (tmp_path / "out" / "two_results.part2.json").write_text("[1]", encoding="utf-8")
    halves = {0: images[:7], 1: images[7:]}
    launch(_as_two, 2, args=("two", str(tmp_path), halves), device="cpu")
    metrics, none = (
        json.loads((tmp_path / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)
    )
    assert none == {}
    same(metrics["segm"], evaluate_results(SHAPES, shapes.results)["segm"])
    assert read_json(tmp_path / "out" / "two_results.json") == read_json(shapes.results)
    left = {file.name for file in (tmp_path / "out").iterdir() if "part" in file.name}
    assert left == {"two_results.part2.json"}


@pytest.fixture
def unannotated(shapes: Case, tmp_path: Path) -> Iterator[str]:
    contents = {**shapes.contents, "annotations": []}
    (tmp_path / "test.json").write_text(json.dumps(contents), encoding="utf-8")
    register_split(
        "evaluated_test",
        tmp_path / "test.json",
        tmp_path,
        read_annotations(shapes.json_file).categories,
        shapes_vocabulary(0).novel,
        base_only=False,
        evaluator_type="lvis",
    )
    yield "evaluated_test"
    forget("evaluated_test")


def test_without_annotations_only_the_results_are_written(
    shapes: Case, unannotated: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluator = OpenVocabularyEvaluator(dataset_name=unannotated, output_dir=tmp_path / "out")
    with caplog.at_level(logging.INFO):
        metrics = inference_on_dataset(Remembered(shapes.found), batches(shapes), evaluator)
    assert metrics == {}
    print_csv_format(metrics)
    (written,) = (tmp_path / "out").iterdir()
    assert read_json(written) == read_json(shapes.results)
    assert "no annotations" in caplog.text


def test_images_that_were_not_processed_are_missed_with_a_warning(
    shapes: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluator = OpenVocabularyEvaluator(dataset_name=SHAPES, output_dir=tmp_path)
    metrics = inference_on_dataset(Remembered(shapes.found), batches(shapes)[:2], evaluator)
    assert "6 images were processed" in caplog.text
    assert metrics["bbox"]["AP"] < evaluate_results(SHAPES, shapes.results)["bbox"]["AP"]


def test_missing_masks_are_refused(shapes: Case, tmp_path: Path) -> None:
    evaluator = OpenVocabularyEvaluator(dataset_name=SHAPES, output_dir=tmp_path)
    with pytest.raises(ValueError, match=r"'segm' needs masks.*image 1\. Set MODEL\.MASK_ON"):
        inference_on_dataset(Remembered(shapes.found, masks=False), batches(shapes), evaluator)
    evaluator.reset()  # usable after an error
    assert len(list(tmp_path.iterdir())) == 1


def test_the_order_of_calls_is_checked(shapes: Case, tmp_path: Path) -> None:
    evaluator = OpenVocabularyEvaluator(dataset_name=SHAPES, output_dir=tmp_path)
    with pytest.raises(ValueError, match=r"call reset\(\) first"):
        evaluator.process([], [])
    with pytest.raises(ValueError, match=r"call reset\(\) and process\(\) first"):
        evaluator.evaluate()


def test_data_sets_that_cannot_be_evaluated_are_refused(shapes: Case, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'nowhere' is not registered"):
        evaluate_results("nowhere", shapes.results)
    with pytest.raises(ValueError, match="expected tasks among"):
        OpenVocabularyEvaluator(dataset_name=SHAPES, tasks=("box",), output_dir=tmp_path)
    categories = read_annotations(shapes.json_file).categories
    common = {"base_only": False, "evaluator_type": "lvis"}
    for change, complaint in (
        ({"json": "no.json"}, r"expected annotations at .*no\.json"),
        ({"evaluator_type": "pascal_voc"}, "evaluator_type 'lvis' or 'coco', got 'pascal_voc'"),
    ):
        options = {**common, **change}
        json_file = tmp_path / options.pop("json", "a.json")
        register_split(
            "evaluated_bad",
            json_file,
            tmp_path,
            categories,
            shapes_vocabulary(0).novel,
            **options,
        )
        with pytest.raises(ValueError, match=complaint):
            evaluate_results("evaluated_bad", shapes.results)
    forget("evaluated_bad")


def test_annotations_without_masks_are_evaluated_for_boxes(
    shapes: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    contents = copy.deepcopy(shapes.contents)
    for number, item in enumerate(contents["annotations"]):
        # None, an empty list, a polygon of two points
        item["segmentation"] = [None, [], [[1, 2, 3, 4]]][number % 3]
        item["area"] = None
    json_file = tmp_path / "boxes.json"
    json_file.write_text(json.dumps(contents), encoding="utf-8")
    name = "evaluated_boxes"
    register_split(
        name,
        json_file,
        tmp_path,
        read_annotations(json_file).categories,
        shapes_vocabulary(0).novel,
        base_only=False,
        evaluator_type="lvis",
    )
    try:
        metrics = evaluate_results(name, shapes.results)
        assert list(metrics) == ["bbox"]
        expected = evaluate_results(SHAPES, shapes.results, ("bbox",))["bbox"]
        for key in ("AP", "AP50", "APr", "AP-novel"):  # size metrics use the boxes
            same(metrics["bbox"][key], expected[key])
        assert "has no masks: only boxes are evaluated" in caplog.text
        with pytest.raises(ValueError, match="has no masks: evaluate the task 'bbox' alone"):
            evaluate_results(name, shapes.results, ("segm",))
    finally:
        forget(name)


def test_bad_results_are_refused(shapes: Case, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    items = read_json(shapes.results)
    for change, complaint in (
        ({"image_id": 4711}, r"r\.json: detection 2: expected the id of an image .* got 4711"),
        ({"category_id": 4711}, r"r\.json: detection 2: expected the id of a class .* got 4711"),
        ({"bbox": [1, 2, 3, math.nan]}, r"r\.json: detection 2: expected a box of 4"),
    ):
        file.write_text(json.dumps([*items[:2], {**items[2], **change}]), encoding="utf-8")
        with pytest.raises(ValueError, match=complaint):
            evaluate_results(SHAPES, file)
    with pytest.raises(ValueError, match="expected results at"):
        evaluate_results(SHAPES, tmp_path / "none.json")


def test_defaulttrainer_tests_a_detector(shapes: Case, tmp_path: Path) -> None:
    text = text_embeddings(Vocabulary.from_dataset(SHAPES).names)
    model = tiny_model(tmp_path, "ensemble", text)
    cfg = tiny_config(tmp_path, "ensemble", text, "DATASETS.TEST", (SHAPES,))
    cfg.DATALOADER.NUM_WORKERS = 0

    class Trainer(small_shapes.Trainer):
        @classmethod
        def build_evaluator(cls, cfg: Any, name: str) -> OpenVocabularyEvaluator:
            return OpenVocabularyEvaluator(dataset_name=name, output_dir=tmp_path / "out")

    metrics = Trainer.test(cfg, model)
    assert list(metrics) == ["bbox", "segm"]
    items = read_json(tmp_path / "out" / f"{SHAPES}_results.json")
    assert len(items) > 100
    assert {item["category_id"] for item in items} <= set(shapes.dataset_ids)
    assert 0 <= metrics["bbox"]["AP"] < 20  # random weights
