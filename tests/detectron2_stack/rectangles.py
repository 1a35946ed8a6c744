"""Images of plain rectangles with LVIS annotations, made in the blink of an eye."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = ((220, 40, 40), (40, 200, 60), (60, 80, 230))
FREQUENCIES = ("f", "c", "r")


def write_lvis_json(folder: Path, images: int = 6, size: int = 96) -> Path:
    """Write ``images`` images of one rectangle per class and their LVIS json; return its path."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    records, annotations = [], []
    for image_id in range(1, images + 1):
        pixels = rng.integers(90, 130, (size, size, 3)).astype(np.uint8)
        for category_id, colour in enumerate(COLOURS, start=1):
            w, h = (int(v) for v in rng.integers(20, 30, 2))
            x = int(rng.integers(0, size - w))
            y = (category_id - 1) * size // 3
            pixels[y : y + h, x : x + w] = colour
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
        name = f"{image_id:012d}.png"
        Image.fromarray(pixels).save(folder / "images" / name)
        records.append(
            {
                "id": image_id,
                "height": size,
                "width": size,
                "coco_url": f"none://images/{name}",
                "neg_category_ids": [],
                "not_exhaustive_category_ids": [],
            }
        )
    categories = [
        {
            "id": index + 1,
            "name": f"rectangle_{index}",
            "synonyms": [f"rectangle_{index}"],
            "frequency": frequency,
            "image_count": images,
            "instance_count": images,
        }
        for index, frequency in enumerate(FREQUENCIES)
    ]
    path = folder / "lvis.json"
    path.write_text(
        json.dumps({"images": records, "annotations": annotations, "categories": categories}),
        encoding="utf-8",
    )
    return path
