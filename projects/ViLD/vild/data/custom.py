"""Any data set in COCO or LVIS format, described by a yaml instead of code.

    name: birds
    train: {json: annotations/train.json, images: train}
    val: {json: annotations/val.json, images: val}
    novel: [red kite, osprey]     # names or json ids; or a frequency group: novel: r
    base: [sparrow, crow]         # optional: classes in neither list are left out
    evaluator: coco               # optional: lvis or coco

registers ``birds_train_base``, ``birds_train`` and ``birds_val``. Paths are relative to the yaml's
folder; ``~`` and ``$VARIABLES`` are expanded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from vild.data.annotations import Category, read_annotation_file, read_categories
from vild.data.registry import register_splits
from vild.data.splits import novel_flags, select_rows

_KEYS = {"name", "train", "val", "novel", "base", "evaluator"}


def register_custom(yaml_file: str | os.PathLike[str]) -> list[str]:
    """Register the splits that ``yaml_file`` describes.

    Returns:
        their names.

    Raises:
        ValueError: the yaml or a json is missing or malformed, a class does not exist, the
            classes of train and val differ, or every class is novel.
    """
    path = Path(yaml_file)
    spec = read_spec(path)
    name = str(spec["name"])
    files: dict[str, tuple[Path, Path]] = {}
    contents: dict[str, dict[str, Any]] = {}
    for split in ("train", "val"):
        if split in spec:
            files[split] = resolve_paths(spec[split], path, split)
            contents[split] = read_annotation_file(files[split][0])
    categories = {split: read_categories(c, str(files[split][0])) for split, c in contents.items()}
    first = next(iter(categories))  # train, where there is one: its counts make the frequencies
    _check_same_classes(categories, path)
    classes, novel = _apply_split(categories[first], spec, path)
    evaluator = spec.get("evaluator") or _evaluator(contents[first])

    return register_splits(name, files, classes, novel, evaluator)


def read_spec(path: Path) -> dict[str, Any]:
    """Read and check the yaml of a data set; the files that it names are not looked at.

    Raises:
        ValueError: it is missing or malformed.
    """
    if not path.is_file():
        raise ValueError(f"expected a yaml that describes a data set at {path}: no such file")
    try:
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid yaml: {error}") from None
    if not isinstance(spec, dict):
        raise ValueError(f"{path}: expected the keys {sorted(_KEYS)}, got {type(spec).__name__}")
    unknown = sorted(set(map(str, spec)) - _KEYS)
    if unknown:
        raise ValueError(f"{path}: unknown key {unknown[0]!r}; known are {sorted(_KEYS)}")
    for key in ("name", "novel"):
        if spec.get(key) is None:
            raise ValueError(f"{path}: the key {key!r} is missing or empty")
    if "train" not in spec and "val" not in spec:
        raise ValueError(f"{path}: expected at least one of the keys 'train' and 'val'")
    if not re.fullmatch(r"\w[\w.-]*", str(spec["name"])):
        raise ValueError(
            f"{path}: expected a name of letters, digits, '_', '-' and '.', got {spec['name']!r}"
        )
    for key in ("novel", "base"):
        if key in spec and not isinstance(spec[key], list | str):
            raise ValueError(f"{path}: expected a list under {key!r}, got {spec[key]!r}")
    if spec.get("evaluator", "lvis") not in ("lvis", "coco"):
        raise ValueError(f"{path}: evaluator must be 'lvis' or 'coco', got {spec['evaluator']!r}")
    return spec


def resolve_paths(entry: Any, yaml_file: Path, split: str) -> tuple[Path, Path]:
    """The json and the folder of pictures that a split's entry names.

    Raises:
        ValueError: the entry is malformed, a variable is not set, or the folder is missing.
    """
    if not isinstance(entry, Mapping) or set(entry) != {"json", "images"}:
        raise ValueError(
            f"{yaml_file}: expected '{split}: {{json: FILE, images: FOLDER}}', got {entry!r}"
        )
    paths = []
    for key in ("json", "images"):
        text = os.path.expandvars(os.path.expanduser(str(entry[key])))
        if "$" in text:
            raise ValueError(
                f"{yaml_file}: {split}.{key} is {entry[key]!r}, but that environment variable is "
                "not set"
            )
        paths.append(yaml_file.parent / text)
    if not paths[1].is_dir():
        raise ValueError(f"{yaml_file}: {split}.images: there is no folder {paths[1]}")
    return paths[0], paths[1]


def _check_same_classes(categories: Mapping[str, list[Category]], where: Path) -> None:
    if len(categories) < 2:
        return
    train, val = ({c.id: c.name for c in categories[split]} for split in ("train", "val"))
    if train != val:
        odd = sorted(train.items() ^ val.items())[0]
        raise ValueError(
            f"{where}: the classes of train and val differ ({len(train)} and {len(val)} classes; "
            f"the first difference is id {odd[0]}, {odd[1]!r}). Both files need the same list."
        )


def _apply_split(
    categories: list[Category], spec: Mapping[str, Any], where: Path
) -> tuple[list[Category], tuple[bool, ...]]:
    """Classes that take part, and their novel flags."""
    novel = novel_flags(categories, spec["novel"], str(where))
    if "base" in spec:
        if isinstance(spec["base"], str):
            raise ValueError(f"{where}: expected a list under 'base', got {spec['base']!r}")
        base = select_rows(categories, spec["base"], str(where), "base")
        both = sorted(categories[row].name for row in base if novel[row])
        if both:
            raise ValueError(f"{where}: {both[0]!r} is listed as base and as novel")
        kept = [row for row in range(len(categories)) if row in base or novel[row]]
        categories = [categories[row] for row in kept]
        novel = tuple(novel[row] for row in kept)
    if all(novel):
        raise ValueError(
            f"{where}: all {len(novel)} classes are novel; nothing is left to train on"
        )
    if not isinstance(spec["novel"], str):
        # A split by name is reported like LVIS's: APr is the AP of the novel classes.
        categories = [
            replace(c, frequency="r" if n else ("c" if c.frequency == "r" else c.frequency))
            for c, n in zip(categories, novel, strict=True)
        ]
    return categories, novel


def _evaluator(contents: Mapping[str, Any]) -> str:
    """LVIS's evaluator where the pictures say what was looked for in them, else COCO's."""
    images = contents["images"]
    return "lvis" if images and all("neg_category_ids" in image for image in images) else "coco"
