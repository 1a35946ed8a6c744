"""The checker, registration, training and evaluation agree on every file, however broken.

``VILD_EXAMPLES`` sets the number of mutations of each kind of file.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import HealthCheck, given, settings

from vild.data import register_custom
from vild.data.dataset_mapper import ViLDDatasetMapper
from vild.data.inspection import DatasetReport, inspect_custom
from vild.evaluation import evaluate_results
from vild.evaluation.evaluator import EvaluationProtocol
from vild.reporting import instances_from_results, read_results_by_image

from .mutating import (
    mutations,
    sound_annotations,
    sound_results,
    sound_yaml,
    write_data_set,
    write_json,
)

many = settings(
    max_examples=int(os.environ.get("VILD_EXAMPLES", "150")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("mutated") / "data"
    write_data_set(made)
    return made


def used(file: Path) -> dict[str, Counter[bool]]:
    """Return the objects that training and evaluation use, by split, novel or not.

    Raises:
        ValueError: they refuse the dataset.
    """
    found = {}
    for name in register_custom(file):
        metadata = MetadataCatalog.get(name)
        records = DatasetCatalog.get(name)
        mapper = ViLDDatasetMapper(
            True, augmentations=[], image_format="RGB", use_instance_mask=True
        )
        instances = [mapper(record)["instances"] for record in records]
        for own in instances:
            assert len(own.gt_masks) == len(own.gt_has_mask) == len(own)
            for row in range(len(own)):  # cropped as in the mask loss
                own.gt_masks[row : row + 1].crop_and_resize(own.gt_boxes.tensor[row : row + 1], 14)
        classes = [row for own in instances for row in own.gt_classes.tolist()]
        found[name] = Counter(metadata.novel[row] for row in classes)
        if not name.endswith("_base"):
            truth = EvaluationProtocol.from_dataset(name).read()
            measured = Counter(
                metadata.novel[metadata.thing_dataset_id_to_contiguous_id[category_id]]
                for category_id, own in truth.annotations.items()
                for item in own
                if not item["iscrowd"] and min(item["bbox"][2:]) > 0
            )
            assert measured == reported_objects(records, metadata.novel)
    return found


def reported_objects(records: list[dict[str, Any]], novel: list[bool]) -> Counter[bool]:
    return Counter(
        novel[item["category_id"]]
        for record in records
        for item in record["annotations"]
        if not item["iscrowd"] and min(item["bbox"][2:]) > 0
    )


def require_agreement(file: Path) -> DatasetReport:
    report = inspect_custom(file, images="all")
    errors = [p.text for p in report.problems if p.severity == "error"]
    nothing = [text for text in errors if "is nothing to train on" in text]
    try:
        found = used(file)
    except ValueError as error:
        if not errors:
            pytest.fail(f"the checker accepts what training or evaluation refuses: {error}")
        return report
    assert errors == nothing, f"the checker refuses what can be used: {errors}"
    name = report.name
    for split in report.splits:
        assert split.counts is not None
        own = found[f"{name}_{split.name}"]
        objects = split.counts.objects
        # training leaves out an object outside its image, which is reported
        if not any("boxes inside their image" in p.text for p in report.problems):
            assert {"base": own[False], "novel": own[True]} == objects
    return report


def test_the_sound_data_set_has_no_problem(tmp_path: Path) -> None:
    report = require_agreement(write_data_set(tmp_path / "data"))
    assert not [p for p in report.problems if p.severity != "note"]
    assert [split.counts.objects for split in report.splits] == [{"base": 11, "novel": 4}] * 2


@many
@given(contents=mutations(sound_annotations()))
def test_annotations(folder: Path, contents: Any) -> None:
    write_json(folder / "train.json", contents)
    write_json(folder / "val.json", contents)
    require_agreement(folder / "mutated.yaml")


@many
@given(spec=mutations({**sound_yaml(), "name": "described"}))
def test_descriptions(folder: Path, spec: Any) -> None:
    for split in ("train", "val"):
        write_json(folder / f"{split}.json", sound_annotations())
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    require_agreement(folder / "spec.yaml")


@many
@given(items=mutations(sound_results()))
def test_results(folder: Path, items: Any) -> None:
    for split in ("train", "val"):
        write_json(folder / f"{split}.json", sound_annotations())
    register_custom(folder / "mutated.yaml")
    write_json(folder / "results.json", items)
    rows = MetadataCatalog.get("mutated_val").thing_dataset_id_to_contiguous_id
    try:
        metrics = evaluate_results("mutated_val", folder / "results.json")
    except ValueError as error:
        if "results.json" not in str(error):
            pytest.fail(f"an error that does not name the file: {error}")
        return
    assert set(metrics) <= {"bbox", "segm"}
    # evaluated masks can be drawn
    for own in read_results_by_image(folder / "results.json", range(1, 5), rows).values():
        instances_from_results(own, (40, 48), rows)


def test_files_that_are_no_json(folder: Path) -> None:
    for content in (b"", b"[", b"\xff\xfe", b"[" * 100_000, b'{"images": [], "images"', b"null"):
        for split in ("train", "val"):
            (folder / f"{split}.json").write_bytes(content)
        assert require_agreement(folder / "mutated.yaml").errors


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    file = write_data_set(tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "images")
    assert require_agreement(file).errors
