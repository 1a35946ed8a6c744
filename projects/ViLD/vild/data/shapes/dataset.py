"""Write ``shapes`` to disk in LVIS format and register it.

Layout: ``shapes/{train,val}/000001.png``, ``shapes/annotations/{train,val}.json``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from vild.data.registry import data_root, register_splits
from vild.data.shapes.categories import shapes_vocabulary
from vild.data.shapes.polygons import mask_to_polygons
from vild.data.shapes.scenes import MIN_VISIBLE, SIZE, draw_scene
from vild.utils.files import atomic_folder, require_writable_folder, write_errors_named

logger = logging.getLogger(__name__)

TRAIN_IMAGES, VAL_IMAGES = 2000, 500
NEGATIVES = 20  # negative classes listed per image, as in LVIS
FORMAT = 4  # increase it whenever the same seed gives other images or annotations
_SPLITS = {"train": 2, "val": 3}  # part of the seed of every image
_RECIPE = "shapes.json"


def generate_shapes(
    folder: str | os.PathLike[str],
    seed: int = 0,
    train_images: int = TRAIN_IMAGES,
    val_images: int = VAL_IMAGES,
    workers: int | None = None,
    progress: bool = True,
) -> bool:
    """Write the dataset, unless it already exists with all its files.

    The result does not depend on ``workers``. The folder is written under a temporary name and
    renamed, so an interrupted run keeps an older dataset and never leaves an incomplete one.

    Args:
        folder: target folder; created, or replaced if it holds another ``shapes``.
        seed: other seeds give other classes and images.
        train_images: number of training images.
        val_images: number of validation images.
        workers: number of processes; one per core by default.
        progress: show a progress bar.

    Returns:
        True if it was written, False if it already existed.

    Raises:
        ValueError: a number is out of range, ``folder`` holds something else, or its parent is not
            writable.
        OSError: it cannot be written.
    """
    if train_images < 1 or val_images < 1:
        raise ValueError(
            f"expected at least one image per split, got {train_images} and {val_images}"
        )
    if not 0 <= seed < 2**32:
        raise ValueError(f"expected a seed from 0 to {2**32 - 1}, got {seed}")
    if workers is not None and workers < 1:
        raise ValueError(f"expected at least one worker, got {workers}")
    folder = Path(folder)
    recipe = {"format": FORMAT, "seed": seed, "train": train_images, "val": val_images}
    if (folder / _RECIPE).is_file():
        if _is_complete(folder, recipe):
            return False
    elif folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"expected an empty folder or a 'shapes' dataset at {folder}, got files")
    require_writable_folder(folder.absolute().parent, f"the parent of {folder}")
    with atomic_folder(folder) as temporary:
        (temporary / "annotations").mkdir()
        with tqdm(total=train_images + val_images, unit="image", disable=not progress) as bar:
            for split, images in (("train", train_images), ("val", val_images)):
                (temporary / split).mkdir()
                contents = _write_split(temporary / split, seed, split, images, workers, bar)
                text = json.dumps(contents, separators=(",", ":"))
                _write_text(temporary / "annotations" / f"{split}.json", text, folder)
        _write_text(temporary / _RECIPE, json.dumps(recipe), folder)
    logger.info(
        "Wrote %d training and %d validation images to %s", *list(recipe.values())[2:], folder
    )
    return True


def _is_complete(folder: Path, recipe: dict[str, int]) -> bool:
    """Return whether a folder was made with this recipe and has all its files."""
    try:
        found = json.loads((folder / _RECIPE).read_text(encoding="utf-8"))
    except ValueError:  # damaged
        return False
    return found == recipe and all(
        (folder / "annotations" / f"{split}.json").is_file()
        and sum(1 for _ in (folder / split).glob("*.png")) == recipe[split]
        for split in _SPLITS
    )


def _write_text(path: Path, text: str, folder: Path) -> None:
    with write_errors_named(folder, path):
        path.write_text(text, encoding="utf-8")


def _write_split(
    folder: Path, seed: int, split: str, images: int, workers: int | None, bar: tqdm
) -> dict[str, Any]:
    vocabulary = shapes_vocabulary(seed)
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record, instances in _images(folder, seed, split, images, workers):
        bar.update()
        records.append(record)
        for instance in instances:
            annotations.append({"id": len(annotations) + 1, **instance})
    categories = []
    for category in vocabulary.categories():
        own = [a["image_id"] for a in annotations if a["category_id"] == category.id]
        categories.append(
            {
                "id": category.id,
                "name": category.name,
                "synonyms": list(category.synonyms),
                "frequency": category.frequency,
                "image_count": len(set(own)),
                "instance_count": len(own),
            }
        )
    return {"images": records, "annotations": annotations, "categories": categories}


def _images(
    folder: Path, seed: int, split: str, images: int, workers: int | None
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    write = partial(_write_image, folder, seed, split)
    numbers = range(1, images + 1)
    if workers == 1:
        yield from map(write, numbers)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(write, numbers, chunksize=16)


def _write_image(
    folder: Path, seed: int, split: str, number: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Draw and save image ``number``; return its record and annotations (without their ids)."""
    rng = np.random.RandomState([seed, _SPLITS[split], number])
    vocabulary = shapes_vocabulary(seed)
    image, objects = draw_scene(rng, vocabulary.compositions, np.cumsum(vocabulary.weights))
    name = f"{number:06d}.png"
    with write_errors_named(folder / name):
        Image.fromarray(image).save(folder / name, compress_level=1)
    instances, hidden, present = [], set(), set()
    for item in objects:
        category_id = item.index + 1
        present.add(category_id)
        if item.visible < MIN_VISIBLE:
            hidden.add(category_id)
            continue
        x0, y0, x1, y1 = item.box
        instances.append(
            {
                "image_id": number,
                "category_id": category_id,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": int(item.mask.sum()),
                "segmentation": mask_to_polygons(item.mask),
            }
        )
    absent = [i + 1 for i in rng.permutation(len(vocabulary.compositions)) if i + 1 not in present]
    record = {
        "id": number,
        "file_name": name,
        "height": SIZE,
        "width": SIZE,
        "neg_category_ids": sorted(int(i) for i in absent[:NEGATIVES]),
        # a mostly hidden object is not annotated, so detections of its class must not be judged
        "not_exhaustive_category_ids": sorted(hidden),
    }
    return record, instances


def _prefix(seed: int) -> str:
    return "shapes" if seed == 0 else f"shapes_seed{seed}"


def shapes_folder(seed: int = 0) -> Path:
    """Return the default folder of a seed's dataset, below the data root."""
    return data_root() / _prefix(seed)


def register_shapes(seed: int = 0, folder: str | os.PathLike[str] | None = None) -> list[str]:
    """Register ``shapes_train_base``, ``shapes_train`` and ``shapes_val``.

    Args:
        seed: seed of the dataset; for other seeds than 0 the names begin with ``shapes_seed<n>``.
        folder: its folder; ``shapes`` or ``shapes_seed<n>`` below the data root by default.

    Returns:
        the names of the splits.
    """
    root = Path(folder) if folder is not None else shapes_folder(seed)
    files = {split: (root / "annotations" / f"{split}.json", root / split) for split in _SPLITS}
    vocabulary = shapes_vocabulary(seed)
    return register_splits(_prefix(seed), files, vocabulary.categories(), vocabulary.novel, "lvis")


def register_made_shapes() -> list[str]:
    """Register ``shapes`` of seed 0, and of every other seed found below the data root.

    Returns:
        the names of the splits.
    """
    names = register_shapes()
    for folder in sorted(data_root().glob("shapes_seed*")):
        seed = folder.name.removeprefix("shapes_seed")
        if seed.isdecimal() and str(int(seed)) == seed and (folder / _RECIPE).is_file():
            names += register_shapes(int(seed))
    return names


def pixel_digest(folder: str | os.PathLike[str]) -> str:
    """Return the sha256 over the pixels and annotations of a written dataset.

    It is the same on every machine; the bytes of the png files may differ with the zlib version.
    """
    digest = hashlib.sha256()
    for split in _SPLITS:
        for file in sorted(Path(folder, split).glob("*.png")):
            digest.update(np.asarray(Image.open(file)).tobytes())
        digest.update(Path(folder, "annotations", f"{split}.json").read_bytes())
    return digest.hexdigest()
