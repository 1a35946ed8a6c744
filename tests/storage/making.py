"""Small stores for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vild.storage import Field, ImageId, SplitImages, StoreSpec, StoreWriter, store_spec

FIELDS = {"boxes": Field("float32", 4), "objectness": Field("float32")}
IMAGES = list(range(100, 110))


def spec(images: Sequence[ImageId] = IMAGES, **source: Any) -> StoreSpec:
    split = SplitImages.from_records("split", records(images))
    return store_spec("proposals", split, FIELDS, source or {"by": "test"}, 3)


def records(images: Sequence[ImageId], folder: str = "images") -> list[dict[str, Any]]:
    return [
        {"image_id": i, "file_name": f"{folder}/{i}.png", "height": 50, "width": 60} for i in images
    ]


def record(image_id: ImageId, rows: int | None = None) -> dict[str, np.ndarray]:
    """Return an image's record, which depends on its id."""
    count = int(image_id) % 4 if rows is None else rows
    draw = np.random.default_rng(int(image_id))
    corners = draw.uniform(0, 40, (count, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + 5], axis=1)
    objectness = np.sort(draw.normal(size=count).astype(np.float32))[::-1]
    return {"boxes": boxes, "objectness": objectness}


def write(
    folder: Path, images: Sequence[ImageId] = IMAGES, *, failing: Sequence[ImageId] = ()
) -> StoreWriter:
    writer = StoreWriter(folder, spec(images), images)
    for number in writer.pending():
        write_shard(writer, number, failing)
    assert writer.finish({"vild": "test"})
    return writer


def write_shard(writer: StoreWriter, number: int, failing: Sequence[ImageId] = ()) -> None:
    with writer.shard(number) as builder:
        for image in builder.images:
            if image in failing:
                builder.fail(image, "broken")
            else:
                builder.add(image, 50, 60, record(image))


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files that make up the store's content, byte for byte."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if not p.name.startswith(".")}
