"""Data loading: failing mappers, class histograms, Pascal VOC lists."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.data import DatasetFromList, MapDataset
from detectron2.data.build import print_instances_class_histogram
from detectron2.data.datasets.pascal_voc import load_voc_instances


def test_mapper_that_returns_none_falls_back_to_another_sample() -> None:
    dataset = MapDataset(DatasetFromList([0, 1, 2, 3]), lambda x: x if x != 2 else None)
    samples = [dataset[index] for index in (0, 1, 2, 3, 2)]
    assert samples[:2] + samples[3:4] == [0, 1, 3]
    assert samples[2] in {0, 1, 3}
    assert samples[4] in {0, 1, 3}


def test_class_histogram_counts_instances_and_not_crowds(caplog: pytest.LogCaptureFixture) -> None:
    annotations = [{"category_id": 1}, {"category_id": 1}, {"category_id": 0, "iscrowd": 1}]
    with caplog.at_level("INFO", "detectron2.data.build"):
        print_instances_class_histogram([{"annotations": annotations}], ["cat", "dog"])
    rows = [line.replace(" ", "") for line in caplog.text.splitlines() if "dog" in line]
    assert "|cat|0|dog|2|" in rows[0]


def test_pascal_voc_lists_load(tmp_path: Path) -> None:
    write_voc(tmp_path)
    record, second = load_voc_instances(str(tmp_path), "val", ["cat"])
    assert second["image_id"] == "000002"
    assert record["image_id"] == "000001"
    assert record["annotations"][0]["bbox"] == [9.0, 9.0, 30.0, 30.0]


def write_voc(folder: Path) -> None:
    """A Pascal VOC folder of two images with one cat each."""
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main" / "val.txt").write_text("000001\n000002\n", encoding="utf-8")
    for name in ("000001", "000002"):
        (folder / "Annotations" / f"{name}.xml").write_text(
            "<annotation><size><width>50</width><height>40</height></size>"
            "<object><name>cat</name><pose>Left</pose><truncated>0</truncated>"
            "<difficult>0</difficult><bndbox><xmin>10</xmin><ymin>10</ymin><xmax>30</xmax>"
            "<ymax>30</ymax></bndbox></object></annotation>",
            encoding="utf-8",
        )
