"""A split with a few images of shapes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from vild.data import read_annotations, register_split
from vild.data.shapes import generate_shapes, shapes_vocabulary


@pytest.fixture(scope="session")
def shapes_val(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the name of a registered split of three images."""
    folder: Path = tmp_path_factory.mktemp("inference") / "shapes"
    generate_shapes(folder, train_images=1, val_images=3, workers=1, progress=False)
    file, name = folder / "annotations/val.json", "inference_shapes_val"
    categories = read_annotations(file).categories
    register_split(
        name,
        file,
        folder / "val",
        categories,
        shapes_vocabulary(0).novel,
        base_only=False,
        evaluator_type="lvis",
    )
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
