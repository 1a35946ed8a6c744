"""Register datasets in Detectron2's catalogues, and look them up.

To add a dataset, write a yaml: see ``custom_datasets.py`` and datasets/README.md. Only the built-in
datasets are registered here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from vild.data.annotations import Category
from vild.data.novel_classes import coco_ovd_categories, lvis_v1_categories, novel_flags
from vild.data.records import load_records
from vild.utils.formatting import did_you_mean


def register_split(
    name: str,
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    categories: Sequence[Category],
    novel: Sequence[bool],
    *,
    base_only: bool,
    evaluator_type: str,
    crowds_are_objects: bool = False,
) -> None:
    """Register one split, replacing a previous registration. Files are read on first use.

    Args:
        name: name in Detectron2's catalogues.
        json_file: annotations in COCO or LVIS format.
        image_root: folder of the images.
        categories: the classes; row i of the classifier is ``categories[i]``.
        novel: novel flag per row.
        base_only: drop annotations of novel classes. Images and rows are kept.
        evaluator_type: ``lvis`` or ``coco``.
        crowds_are_objects: see :func:`vild.data.read_annotations`.
    """
    if len(novel) != len(categories):
        raise ValueError(
            f"{name}: expected one novel flag per class, got {len(novel)} flags for "
            f"{len(categories)} classes"
        )
    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)
    rows = {category.id: row for row, category in enumerate(categories)}
    kept = [row for row, is_novel in enumerate(novel) if not (base_only and is_novel)]
    DatasetCatalog.register(
        name, lambda: load_records(json_file, image_root, rows, kept, crowds_are_objects)
    )
    metadata = MetadataCatalog.get(name).set(
        json_file=str(json_file),
        image_root=str(image_root),
        evaluator_type=evaluator_type,
        crowds_are_objects=crowds_are_objects,
        thing_classes=[category.name for category in categories],
        thing_dataset_id_to_contiguous_id=rows,
        synonyms=[list(category.synonyms) for category in categories],
        frequency=[category.frequency for category in categories],
        novel=[bool(flag) for flag in novel],
    )
    if all(category.image_count is not None for category in categories):
        # the key that Detectron2's LVIS metadata uses for the counts
        metadata.set(
            class_image_count=[
                {"id": category.id, "image_count": category.image_count} for category in categories
            ]
        )


def register_splits(
    prefix: str,
    files: Mapping[str, tuple[Path, Path]],
    categories: Sequence[Category],
    novel: Sequence[bool],
    evaluator_type: str,
    crowds_are_objects: bool = False,
) -> list[str]:
    """Register ``<prefix>_train_base``, ``<prefix>_train`` and ``<prefix>_val``.

    Args:
        prefix: prefix of the names.
        files: (json, image folder) of ``train``, of ``val`` or of both.
        categories: see :func:`register_split`.
        novel: see :func:`register_split`.
        evaluator_type: ``lvis`` or ``coco``.
        crowds_are_objects: see :func:`vild.data.read_annotations`.

    Returns:
        the names of the splits.
    """
    names = []
    for suffix in ("train_base", "train", "val"):
        split = suffix.removesuffix("_base")
        if split in files:
            names.append(f"{prefix}_{suffix}")
            register_split(
                names[-1],
                *files[split],
                categories,
                novel,
                base_only=suffix == "train_base",
                evaluator_type=evaluator_type,
                crowds_are_objects=crowds_are_objects,
            )
    return names


def data_root() -> Path:
    """Return the folder of datasets: ``$DETECTRON2_DATASETS``, or ``datasets`` as in Detectron2."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def layouts(dataset: str, split: str, root: Path) -> tuple[tuple[Path, Path], ...]:
    """Return (json, folder that image paths are relative to) of a split in each supported layout.

    The first layout is Detectron2's, the second one is flat.

    Args:
        dataset: ``lvis`` or ``coco``.
        split: ``train`` or ``val``.
        root: see :func:`data_root`.
    """
    if dataset == "lvis":
        name = f"lvis_v1_{split}.json"
        return (root / "lvis" / name, root / "coco"), (root / "annotations" / name, root)
    name, folder = f"instances_{split}2017.json", f"{split}2017"
    return (
        (root / "coco" / "annotations" / name, root / "coco" / folder),
        (root / "annotations" / name, root / folder),
    )


def register_builtin() -> None:
    """Register LVIS v1 and open-vocabulary COCO in the layout found below :func:`data_root`."""
    for prefix, dataset, categories in (
        ("lvis_v1", "lvis", lvis_v1_categories()),
        ("coco_2017_ovd", "coco", coco_ovd_categories()),
    ):
        files = {}
        for split in ("train", "val"):
            options = layouts(dataset, split, data_root())
            files[split] = next((own for own in options if own[0].is_file()), options[0])
        novel = novel_flags(categories, "r", prefix)
        register_splits(prefix, files, categories, novel, evaluator_type=dataset)


def require_split(name: str, what: str = "a registered split") -> None:
    """Raise unless a split of this name is registered.

    Args:
        name: name of the split.
        what: what the name was given for, for the error message.

    Raises:
        ValueError: the split is not registered; the message suggests names.
    """
    known = sorted(DatasetCatalog.list())
    if name in known:
        return
    hint = did_you_mean(name, known, cutoff=0.5) or f"Registered: {known}."
    raise ValueError(
        f"expected {what}, got {name!r}, which is not registered. {hint} Register your own splits "
        "with --dataset-yaml or DATASETS.CUSTOM"
    )


def find_split(name: str) -> list[dict[str, Any]]:
    """Return the records of a registered split in Detectron2's format.

    Raises:
        ValueError: the split is not registered; see :func:`require_split`.
    """
    require_split(name)
    return DatasetCatalog.get(name)
