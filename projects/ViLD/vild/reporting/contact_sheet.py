"""Draw a contact sheet: several images of a dataset with boxes, masks and class names."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode
from detectron2.utils.visualizer import ColorMode, Visualizer
from PIL import Image

COLUMNS = 4
CELL = 480  # side of the square for each image, in pixels


def write_contact_sheet(dataset: str, path: str | os.PathLike[str], images: int = 12) -> Path:
    """Draw the annotations of the first images of a registered dataset.

    Novel classes are marked with a star after the name.

    Args:
        dataset: name in Detectron2's catalogue.
        path: PNG to write.
        images: number of images.

    Returns:
        ``path``.

    Raises:
        ValueError: the dataset has no images.
    """
    records = DatasetCatalog.get(dataset)[:images]
    if not records:
        raise ValueError(f"expected images in {dataset}, got none")
    metadata = MetadataCatalog.get(dataset)
    novel = metadata.get("novel") or [False] * len(metadata.thing_classes)
    names = [f"{n}*" if flag else n for n, flag in zip(metadata.thing_classes, novel, strict=True)]
    rows = -(-len(records) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * CELL, rows * CELL), "white")
    for index, record in enumerate(records):
        image = read_image(record["file_name"], format="RGB")
        scale = (CELL - 8) / max(image.shape[:2])
        visualizer = Visualizer(image, scale=scale, instance_mode=ColorMode.IMAGE)
        annotations = record["annotations"]
        # Draw masks only if every box has one: the drawing code matches them by position.
        masks = [a["segmentation"] for a in annotations if "segmentation" in a]
        drawn = visualizer.overlay_instances(
            boxes=np.array(
                [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
            )
            if annotations
            else None,
            labels=[names[a["category_id"]] for a in annotations],
            masks=masks if masks and len(masks) == len(annotations) else None,
            alpha=0.25,
        )
        tile = Image.fromarray(drawn.get_image())
        sheet.paste(tile, (index % COLUMNS * CELL + 4, index // COLUMNS * CELL + 4))
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(target)
    return target
