from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.structures import BoxMode
from PIL import Image

from vild.data import UnreadableImageError
from vild.reporting import ImageWriter
from vild.reporting.image_writer import safe_stem

from .scenes import CROW, OWL, VOCABULARY, found, plain, warmth


def record(folder: Path, image_id: Any = 7) -> dict[str, Any]:
    file = folder / "image.png"
    Image.fromarray(plain()).save(file)
    item = {"bbox": [40, 40, 60, 50], "bbox_mode": BoxMode.XYWH_ABS, "category_id": CROW}
    return {
        "file_name": str(file),
        "image_id": image_id,
        "height": 120,
        "width": 160,
        "annotations": [item],
    }


def read(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def test_ground_truth_is_on_the_left_and_detections_on_the_right(tmp_path: Path) -> None:
    own = record(tmp_path)
    writer = ImageWriter(tmp_path / "new" / "folder", VOCABULARY, [own])
    # a model's input: the file name and a resized image
    given = {"image_id": 7, "file_name": own["file_name"], "image": np.zeros((3, 4, 4))}
    path = writer.write(given, found(([40, 40, 100, 90], 0.9, OWL)))
    assert path == tmp_path / "new" / "folder" / "7.jpg"
    assert writer.written == 1
    drawn = read(path)
    assert drawn.shape[1] > 1600
    assert warmth(drawn[:, :800]) < -1000
    assert warmth(drawn[:, 810:]) > 1000
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_without_ground_truth_there_is_one_image(tmp_path: Path) -> None:
    writer = ImageWriter(tmp_path / "out", VOCABULARY, threshold=0.5)
    high = writer.write(record(tmp_path, 1), found(([40, 40, 100, 90], 0.9, OWL)))
    low = writer.write(record(tmp_path, 2), found(([40, 40, 100, 90], 0.4, OWL)))
    assert read(high).shape == (600, 800, 3)
    assert warmth(read(high)) > 1000
    assert warmth(read(low)) == 0
    assert writer.written == 2


def test_a_broken_image_is_named_and_not_counted(tmp_path: Path) -> None:
    own = record(tmp_path)
    Path(own["file_name"]).write_bytes(b"")
    writer = ImageWriter(tmp_path / "out", VOCABULARY, [own])
    with pytest.raises(UnreadableImageError, match=r"image\.png"):
        writer.write(own, found())
    assert writer.written == 0
    assert list(writer.folder.iterdir()) == []


def test_misuse_is_named(tmp_path: Path) -> None:
    writer = ImageWriter(tmp_path, VOCABULARY)
    with pytest.raises(ValueError, match="file_name of image 3"):
        writer.write({"image_id": 3}, found())
    with pytest.raises(ValueError, match="image_id"):
        writer.write({}, found())


def test_file_names_are_safe_and_different() -> None:
    ids = [12, "000012", "a/b", "a_b", "a\\b", "../../etc/passwd", "..", "", "é", "x" * 300, "a b"]
    stems = [safe_stem(image_id) for image_id in ids]
    assert stems[:2] == ["12", "000012"]
    assert stems[3] == "a_b"
    assert len(set(stems)) == len(ids)
    for stem in stems:
        assert 0 < len(stem) <= 90
        assert set(stem) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
