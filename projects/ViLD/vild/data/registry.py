"""Register datasets in Detectron2's catalogues, with novel flags and synonyms."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from vild.data.annotations import Category
from vild.data.records import load_records
from vild.data.splits import coco_ovd_categories, lvis_v1_categories, novel_flags


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


def lvis_layouts(root: Path, json_name: str) -> tuple[tuple[Path, Path], ...]:
    """Return (json, folder of ``train2017`` and ``val2017``) of LVIS per supported layout."""
    return (
        (root / "lvis" / json_name, root / "coco"),  # Detectron2's
        (root / "annotations" / json_name, root),  # flat
    )


def coco_layouts(root: Path, split: str) -> tuple[tuple[Path, Path], ...]:
    """Return (json, image folder) of COCO per supported layout."""
    json_name = f"instances_{split}.json"
    return (
        (root / "coco" / "annotations" / json_name, root / "coco" / split),
        (root / "annotations" / json_name, root / split),
    )


def _existing(layouts: tuple[tuple[Path, Path], ...]) -> tuple[Path, Path]:
    return next((layout for layout in layouts if layout[0].is_file()), layouts[0])


def register_builtin() -> None:
    """Register LVIS v1 and open-vocabulary COCO in the layout found below :func:`data_root`."""
    root = data_root()
    lvis, coco = lvis_v1_categories(), coco_ovd_categories()
    for prefix, categories, layouts, evaluator_type in (
        ("lvis_v1", lvis, lambda split: lvis_layouts(root, f"lvis_v1_{split}.json"), "lvis"),
        ("coco_2017_ovd", coco, lambda split: coco_layouts(root, f"{split}2017"), "coco"),
    ):
        files = {split: _existing(layouts(split)) for split in ("train", "val")}
        novel = novel_flags(categories, "r", prefix)
        register_splits(prefix, files, categories, novel, evaluator_type)
