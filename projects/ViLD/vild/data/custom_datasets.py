"""Custom datasets in COCO or LVIS format, described by a yaml instead of code.

    name: birds
    train: {json: annotations/train.json, images: train}
    val: {json: annotations/val.json, images: val}
    novel: [red kite, osprey]     # names or json ids; or a frequency group: novel: r
    base: [sparrow, crow]         # optional: classes in neither list are left out
    evaluator: coco               # optional: lvis or coco
    crowds_are_objects: true      # optional: iscrowd: 1 is a single object, as CVAT writes masks

registers ``birds_train_base``, ``birds_train`` and ``birds_val``. Paths are relative to the yaml's
folder; ``~`` and ``$VARIABLES`` are expanded.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import msgspec
from detectron2.data import DatasetCatalog

from vild.data.annotations import FEDERATED, Annotations, Category, read_annotations
from vild.data.novel_classes import novel_flags, select_rows
from vild.data.registry import register_splits
from vild.utils.files import read_text
from vild.utils.yaml_loader import parse_yaml

logger = logging.getLogger(__name__)

_LONGEST_NAME = 100  # bytes; files are named after the dataset, and names are limited to 255 bytes
_LONGEST_PATH = 4096  # characters; the limit on Linux
_registered: dict[str, Path] = {}  # split -> its yaml, which may register it again


class SplitFiles(msgspec.Struct, forbid_unknown_fields=True):
    """Location of a split: ``json`` is a file, ``images`` a folder."""

    json: str
    images: str


class Spec(msgspec.Struct, forbid_unknown_fields=True):
    """Contents of a dataset's yaml; see the module docstring."""

    name: str | int
    novel: list[Any] | str
    train: SplitFiles | None = None
    val: SplitFiles | None = None
    base: list[Any] | None = None
    evaluator: Literal["lvis", "coco"] | None = None
    crowds_are_objects: bool = False

    def splits(self) -> dict[str, SplitFiles]:
        """Return the splits that the yaml lists, train first."""
        both = {"train": self.train, "val": self.val}
        return {name: files for name, files in both.items() if files is not None}


def register_custom(yaml_file: str | os.PathLike[str]) -> list[str]:
    """Register the splits that ``yaml_file`` describes.

    Returns:
        the names of the splits.

    Raises:
        ValueError: the yaml or a json is missing or malformed, a class does not exist, the
            classes of train and val differ, every class is novel, or the name is taken.
    """
    path = Path(yaml_file)
    spec = read_spec(path)
    files = {split: resolve_paths(own, path, split) for split, own in spec.splits().items()}
    contents = {
        split: read_annotations(json_file, spec.crowds_are_objects)
        for split, (json_file, _) in files.items()
    }
    classes, novel = _apply_split(_same_classes(contents, spec, path), spec, path)
    evaluator = _evaluator(contents, spec, path)
    names = [f"{spec.name}_{suffix}" for suffix in ("train_base", "train", "val")]
    own = path.resolve()
    taken = [name for name in names if name in DatasetCatalog and _registered.get(name) != own]
    if taken:
        raise ValueError(
            f"{path}: the name {spec.name!r} is taken ({taken[0]}); choose another one"
        )
    crowds = spec.crowds_are_objects
    names = register_splits(str(spec.name), files, classes, novel, evaluator, crowds)
    _registered.update(dict.fromkeys(names, own))
    return names


def read_spec(path: Path) -> Spec:
    """Read and validate a dataset's yaml without opening the files that it lists.

    Raises:
        ValueError: the yaml is missing or malformed.
    """
    loaded = parse_yaml(read_text(path, "a yaml that describes a dataset"), path)
    try:
        spec = msgspec.convert(loaded, Spec)
    except msgspec.ValidationError as error:
        known = ", ".join(Spec.__struct_fields__)
        reason = str(error) + ("; expected lvis or coco" if "$.evaluator" in str(error) else "")
        raise ValueError(
            f"{path}: expected the description of a dataset with the keys {known}: {reason}"
        ) from None
    if not spec.splits():
        raise ValueError(f"{path}: expected at least one of the keys 'train' and 'val'")
    name = str(spec.name)
    if not re.fullmatch(r"\w[\w.-]*", name) or len(name.encode()) > _LONGEST_NAME:
        raise ValueError(
            f"{path}: expected a name of letters, digits, '_', '-' and '.', at most "
            f"{_LONGEST_NAME} bytes, got {spec.name!r:.120}"
        )
    return spec


def resolve_paths(files: SplitFiles, yaml_file: Path, split: str) -> tuple[Path, Path]:
    """Return the json file and the image folder of a split.

    Raises:
        ValueError: the path is invalid, a variable is not set, or the folder is missing.
    """
    paths = []
    for key in ("json", "images"):
        given = getattr(files, key)
        if not given.isprintable() or len(given) > _LONGEST_PATH:
            raise ValueError(f"{yaml_file}: {split}.{key}: expected a path, got {given!r:.100}")
        text = os.path.expandvars(os.path.expanduser(given))
        if "$" in text:
            raise ValueError(
                f"{yaml_file}: {split}.{key}: {given!r} has an environment variable that is not set"
            )
        paths.append(yaml_file.parent / text)
    if not os.path.isdir(paths[1]):
        raise ValueError(
            f"{yaml_file}: {split}.images: expected a folder at {paths[1]}, found none"
        )
    return paths[0], paths[1]


def _same_classes(contents: Mapping[str, Annotations], spec: Spec, where: Path) -> list[Category]:
    """Return the classes that both splits share, preferably those of train with its image counts.

    A category that only groups the others is dropped if no split has objects of it and the yaml
    does not list it.
    """
    listed = [*(spec.base or ()), *(spec.novel if isinstance(spec.novel, list) else ())]
    used = {c.id: c.name for f in contents.values() for c in f.categories if c.id != f.root}

    def takes_part(category: Category) -> bool:
        is_listed = category.name in listed and category.name not in used.values()
        return category.id in used or category.id in listed or is_listed

    categories = {split: list(filter(takes_part, f.categories)) for split, f in contents.items()}
    first, *others = categories.values()
    classes = {category.id: category.name for category in first}
    for other in others:
        differences = classes.items() ^ {category.id: category.name for category in other}.items()
        if differences:
            odd = min(differences, key=str)
            raise ValueError(
                f"{where}: the classes of train and val differ ({len(first)} and {len(other)} "
                f"classes; the first difference is id {odd[0]}, {odd[1]!r}). Use the same list in "
                "both files."
            )
    return first


def _apply_split(
    categories: list[Category], spec: Spec, where: Path
) -> tuple[list[Category], tuple[bool, ...]]:
    """Return the classes to use and their novel flags."""
    novel = novel_flags(categories, spec.novel, str(where))
    if spec.base is not None:
        base = select_rows(categories, spec.base, str(where), "base")
        both = sorted(categories[row].name for row in base if novel[row])
        if both:
            raise ValueError(f"{where}: {both[0]!r} is listed as base and as novel")
        kept = [row for row in range(len(categories)) if row in base or novel[row]]
        categories = [categories[row] for row in kept]
        novel = tuple(novel[row] for row in kept)
    if all(novel):
        raise ValueError(
            f"{where}: all {len(novel)} classes are novel; there is nothing to train on"
        )
    if not isinstance(spec.novel, str):
        # A split defined by names is reported like LVIS: APr is the AP of the novel classes.
        categories = [
            replace(c, frequency="r" if n else ("c" if c.frequency == "r" else c.frequency))
            for c, n in zip(categories, novel, strict=True)
        ]
    return categories, novel


def _evaluator(contents: Mapping[str, Annotations], spec: Spec, where: Path) -> str:
    """Return ``lvis`` if every image lists the classes searched for in it, else ``coco``."""
    lists = {
        (split, key): [getattr(image, key) is not None for image in found.images] or [False]
        for split, found in contents.items()
        for key in FEDERATED
    }
    lacking = next((place for place, present in lists.items() if not all(present)), None)
    if spec.evaluator == "lvis" and lacking:
        raise ValueError(
            f"{where}: evaluator: lvis needs {' and '.join(map(repr, FEDERATED))} for every image, "
            f"but images of {lacking[0]} have no {lacking[1]!r}. Use evaluator: coco"
        )
    if spec.evaluator is not None:
        return spec.evaluator
    if lacking and any(map(any, lists.values())):
        logger.warning(
            "%s: using COCO's evaluation: images of %s have no %r, which LVIS's evaluation needs",
            where,
            *lacking,
        )
    return "coco" if lacking else "lvis"
