"""A valid dataset of four images, and ways to break the files that describe it."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hypothesis import strategies as st
from PIL import Image

HEIGHT, WIDTH = 40, 48
CLASSES = ("plain red star", "striped blue heart", "dotted green ring")


def sound_annotations() -> dict[str, Any]:
    """Return annotations with a polygon, run lengths, no mask and a crowd."""
    masks: list[Any] = [
        [[4, 4, 20, 4, 20, 20, 4, 20]],
        {"size": [HEIGHT, WIDTH], "counts": [4 * HEIGHT + 4, 16, 24, 16, HEIGHT * WIDTH - 220]},
        None,
        [[4, 4, 20, 4, 20, 20]],
    ]
    annotations = []
    for image in range(1, 5):
        for n, mask in enumerate(masks):
            item = {
                "id": 10 * image + n,
                "image_id": image,
                "category_id": 1 + n % 3,
                "bbox": [4.0, 4.0, 16.0, 16.0],
                "area": 256.0,
                "iscrowd": int(n == 3 and image == 4),
                "segmentation": mask,
            }
            annotations.append({key: value for key, value in item.items() if value is not None})
    return {
        "images": [
            {"id": i, "file_name": f"p{i}.png", "height": HEIGHT, "width": WIDTH}
            for i in range(1, 5)
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)],
    }


def sound_results() -> list[dict[str, Any]]:
    """Return detections with boxes and masks."""
    counts = [4 * HEIGHT + 4, 16, 24, 16, HEIGHT * WIDTH - 220]
    return [
        {
            "image_id": i,
            "category_id": c,
            "bbox": [4.0, 4.0, 16.0, 16.0],
            "score": 0.5,
            "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts},
        }
        for i in range(1, 5)
        for c in range(1, 4)
    ]


def sound_yaml() -> dict[str, Any]:
    """Return the description of the dataset."""
    return {
        "name": "mutated",
        "train": {"json": "train.json", "images": "images"},
        "val": {"json": "val.json", "images": "images"},
        "novel": [CLASSES[2]],
    }


def write_data_set(folder: Path) -> Path:
    """Write the valid dataset; return its yaml."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(1, 5):
        pixels = rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"p{i}.png")
    for split in ("train", "val"):
        write_json(folder / f"{split}.json", sound_annotations())
    file = folder / "mutated.yaml"
    file.write_text(yaml.safe_dump(sound_yaml()), encoding="utf-8")
    return file


def write_json(path: Path, contents: Any) -> None:
    """Write json that may contain NaN, as Python and pandas write it."""
    path.write_text(json.dumps(contents), encoding="utf-8")


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all values below ``value``."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


OPERATIONS = ("drop", "duplicate", "nest", "wrap", "text", "negate", "value")
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 0.5, 1.5, 1e30, -1e30, 10**30, math.nan, math.inf),
    *("", " ", "x", "7", "1.5", "NaN", "true", "../p1.png", "p1.PNG", "images\\p1.png", "p1%2Epng"),
    *("\x00", "é", "r", "lvis", "coco", "plain red star", "Plain_red  star"),
    *([], {}, [[]], [[[]]], [None], [1], [1, 2, 3, 4, 5, 6], {"a": 1}, {"size": [1, 1]}),
    *([[1, 2], [3, 4], [9, 1]], {"size": [40, 48], "counts": "b'0'"}, "counts"),
)


@st.composite
def mutations(draw: st.DrawFn, sound: Any) -> Any:
    """Return ``sound`` after one to three mutations."""
    contents = copy.deepcopy(sound)
    for _ in range(draw(st.integers(1, 3))):
        known = list(places(contents))
        if not known:
            break
        path = draw(st.sampled_from(known))
        holder = contents
        for key in path[:-1]:
            holder = holder[key]
        _apply(holder, path[-1], draw(st.sampled_from(OPERATIONS)), draw(st.sampled_from(VALUES)))
    return contents


def _apply(holder: Any, key: Any, operation: str, value: Any) -> None:
    old = holder[key]
    if operation == "drop":
        del holder[key]
    elif operation == "duplicate":
        if isinstance(holder, list):
            holder.append(copy.deepcopy(old))
        else:
            holder[f"{key}_2"] = copy.deepcopy(old)
    elif operation == "nest":
        holder[key] = [copy.deepcopy(old)]
    elif operation == "wrap":
        holder[key] = {"value": copy.deepcopy(old)}
    elif operation == "text":
        holder[key] = str(old)
    elif operation == "negate":
        holder[key] = -old if isinstance(old, int | float) else copy.deepcopy(value)
    else:
        holder[key] = copy.deepcopy(value)
