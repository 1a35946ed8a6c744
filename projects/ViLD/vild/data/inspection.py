"""Looks at data sets on disk: what is there, what is missing, what is broken."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image, ImageOps
from tqdm import tqdm

from vild.data.annotations import read_annotation_file, relative_path, repeated
from vild.data.custom import read_spec, register_custom, resolve_paths
from vild.data.registry import coco_layouts, data_root, lvis_layouts

DATASETS, SPLITS = ("lvis", "coco"), ("train", "val")
IMAGE_CHECKS = ("none", "sample", "all")
LAYOUTS = ("Detectron2's", "flat")  # in the order that the registry looks for them
SAMPLE_SIZE = 200  # pictures per split
SLACK = 1.0  # pixels that a box may stick out of its picture without a remark
_SHOWN = 5  # ids or names in a message
_ENDLESS = (math.inf, math.inf)  # size of a picture without one, which is reported by itself
_MEND = "Mend the json."
_T = TypeVar("_T")


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be.

    Attributes:
        severity: ``error`` for what is missing or broken, ``warning`` for what training survives.
        text: what was expected, what came, what to do.
    """

    severity: str
    text: str


@dataclass(frozen=True)
class Entry:
    """A file or folder that a data set consists of, and whether it is there."""

    path: Path
    is_folder: bool
    there: bool


@dataclass(frozen=True)
class Counts:
    """What a json lists; ``frequencies``: classes per frequency group, empty if it has none."""

    images: int
    annotations: int
    categories: int
    frequencies: Mapping[str, int]


@dataclass(frozen=True)
class SplitReport:
    """One json (``counts`` is None if it is missing or unreadable) and its pictures."""

    name: str
    json_file: Path
    counts: Counts | None
    images_opened: int
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class DatasetReport:
    """A data set: ``lvis``, ``coco``, or what a yaml describes.

    Attributes:
        root: folder that it was looked for in.
        layout: one of :data:`LAYOUTS`, or ``custom``.
        entries: the files and folders it consists of.
        splits: what was found in its annotations and pictures.
        other_problems: what concerns no split alone.
    """

    name: str
    root: Path
    layout: str
    entries: tuple[Entry, ...]
    splits: tuple[SplitReport, ...]
    other_problems: tuple[Problem, ...]

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All problems of the data set."""
        return (*self.other_problems, *(p for split in self.splits for p in split.problems))

    @property
    def errors(self) -> int:
        """How many of the problems are errors."""
        return sum(problem.severity == "error" for problem in self.problems)


_GROUPS = {"f": "frequent classes", "c": "common classes", "r": "rare classes"}
_LVIS_CLASSES = {"classes": 1203, _GROUPS["f"]: 405, _GROUPS["c"]: 461, _GROUPS["r"]: 337}
# what the official json files list
EXPECTED: dict[tuple[str, str], dict[str, int]] = {
    ("lvis", "train"): {"images": 100_170, **_LVIS_CLASSES},
    ("lvis", "val"): {"images": 19_809, **_LVIS_CLASSES},
    ("coco", "train"): {"images": 118_287, "classes": 80},
    ("coco", "val"): {"images": 5_000, "classes": 80},
}


def inspect_dataset(
    name: str, root: Path | None = None, images: str = "sample", progress: bool = False
) -> DatasetReport:
    """Look at LVIS v1 or COCO 2017.

    Args:
        name: ``lvis`` or ``coco``.
        root: the data root; :func:`~vild.data.registry.data_root` by default.
        images: which pictures are decoded: ``none``, ``sample`` (:data:`SAMPLE_SIZE` per split,
            evenly spaced) or ``all``. All of them have to exist in any case.
        progress: show a progress bar for ``all`` where there is a terminal.

    Raises:
        ValueError: an unknown name or choice; what is wrong with the data is reported.
    """
    _check_choice("a data set", name, DATASETS)
    _check_choice("a choice of pictures", images, IMAGE_CHECKS)
    root = data_root() if root is None else root
    layouts, in_use = _layouts(name, root), layout_in_use(name, root)
    # the registry, too, chooses per json
    chosen = {
        split: next((layout[split] for layout in layouts if layout[split][0].is_file()), places)
        for split, places in layouts[in_use].items()
    }
    entries = [_entry(json_file) for json_file, _ in chosen.values()]
    entries += [_entry(folder, is_folder=True) for folder in _folders(name, chosen)]
    reports = [
        _inspect_split(split, *places, EXPECTED[name, split], images, progress)
        for split, places in chosen.items()
    ]
    command = f"python datasets/check_datasets.py --root {root} --download {name}"
    others = _missing(entries, f"Run `{command}`, or put it there.")
    return DatasetReport(name, root, LAYOUTS[in_use], tuple(entries), tuple(reports), others)


def inspect_custom(
    yaml_file: Path, images: str = "sample", progress: bool = False
) -> DatasetReport:
    """Look at a data set that a yaml describes (:mod:`vild.data.custom`).

    If its files are sound, its splits are registered, to see that they can be.

    Args:
        yaml_file: the description.
        images: see :func:`inspect_dataset`.
        progress: show a progress bar for ``all`` where there is a terminal.

    Raises:
        ValueError: an unknown choice of pictures; what is wrong with the data is reported.
    """
    _check_choice("a choice of pictures", images, IMAGE_CHECKS)
    name = yaml_file.stem
    entries: list[Entry] = []
    splits: list[SplitReport] = []
    others: list[Problem] = []

    def report() -> DatasetReport:
        args = (tuple(entries), tuple(splits), tuple(others))
        return DatasetReport(name, yaml_file.parent, "custom", *args)

    try:
        spec = read_spec(yaml_file)
        name = str(spec["name"])
        for split in SPLITS:
            if split in spec:
                json_file, folder = resolve_paths(spec[split], yaml_file, split)
                entries += [_entry(json_file), _entry(folder, is_folder=True)]
                splits.append(_inspect_split(split, json_file, folder, {}, images, progress))
        others += _missing(entries, "Correct the path in the yaml, or put it there.")
        if not report().errors:
            register_custom(yaml_file)
    except ValueError as error:
        others.append(Problem("error", str(error)))
    return report()


def layout_in_use(name: str, root: Path) -> int:
    """Index into :data:`LAYOUTS`: where ``lvis`` or ``coco`` lies below ``root``.

    The first layout with any of its json files, as the registry chooses; without one, the layout
    with most of its folders; Detectron2's if there is nothing.
    """
    layouts = _layouts(name, root)
    with_json = [any(json_file.is_file() for json_file, _ in s.values()) for s in layouts]
    folders = [sum(folder.is_dir() for folder in _folders(name, splits)) for splits in layouts]
    scores: list[int] = [*with_json] if any(with_json) else folders
    return scores.index(max(scores))


def _layouts(name: str, root: Path) -> list[dict[str, tuple[Path, Path]]]:
    """Per layout: split -> (json, folder that pictures' paths are relative to)."""
    if name == "lvis":
        splits = {split: lvis_layouts(root, f"lvis_v1_{split}.json") for split in SPLITS}
    else:
        splits = {split: coco_layouts(root, f"{split}2017") for split in SPLITS}
    return [{split: splits[split][i] for split in splits} for i in range(len(LAYOUTS))]


def _folders(name: str, splits: Mapping[str, tuple[Path, Path]]) -> list[Path]:
    """Folders of pictures. LVIS's pictures are COCO's: those of its val are in both folders."""
    roots = dict.fromkeys(image_root for _, image_root in splits.values())
    if name == "coco":
        return list(roots)
    return [root / folder for root in roots for folder in ("train2017", "val2017")]


def _entry(path: Path, is_folder: bool = False) -> Entry:
    return Entry(path, is_folder, path.is_dir() if is_folder else path.is_file())


def _missing(entries: Iterable[Entry], advice: str) -> tuple[Problem, ...]:
    kinds = {True: "a folder of pictures", False: "annotations"}
    return tuple(
        Problem("error", f"expected {kinds[e.is_folder]} at {e.path}, found none. {advice}")
        for e in entries
        if not e.there
    )


def _inspect_split(
    name: str,
    json_file: Path,
    image_root: Path,
    expected: Mapping[str, int],
    images: str,
    progress: bool,
) -> SplitReport:
    if not json_file.is_file():
        return SplitReport(name, json_file, None, 0, ())  # reported as an entry
    where = str(json_file)
    try:
        contents = read_annotation_file(json_file)
    except ValueError as error:
        return SplitReport(name, json_file, None, 0, (Problem("error", str(error)),))
    counts = _count(contents)
    problems = _count_problems(counts, expected, where)
    problems += _category_problems(contents, where) + _annotation_problems(contents, where)
    there, not_found = _find_images(contents, where, image_root)
    chosen = {"none": [], "sample": evenly_spaced(there, SAMPLE_SIZE), "all": there}[images]
    problems += not_found + _open_images(chosen, where, progress and images == "all")
    return SplitReport(name, json_file, counts, len(chosen), tuple(problems))


def _count(contents: Mapping[str, Any]) -> Counts:
    images, annotations, classes = (contents[k] for k in ("images", "annotations", "categories"))
    groups = Counter(str(item["frequency"]) for item in classes if "frequency" in item)
    return Counts(len(images), len(annotations), len(classes), groups)


def _count_problems(counts: Counts, expected: Mapping[str, int], where: str) -> list[Problem]:
    got = {"images": counts.images, "classes": counts.categories}
    got |= {name: counts.frequencies.get(group, 0) for group, name in _GROUPS.items()}
    advice = "This is not the official file; for other data, see --custom in datasets/README.md."
    return [
        Problem("error", f"{where}: expected {want:,} {what}, got {got[what]:,}. {advice}")
        for what, want in expected.items()
        if want != got[what]
    ]


def _category_problems(contents: Mapping[str, Any], where: str) -> list[Problem]:
    names = [(item["id"], str(item["name"] or "").strip()) for item in contents["categories"]]
    nameless = [key for key, name in names if not name]
    same_names = repeated(name for _, name in names if name)
    advice = "Mend the json: the classifier tells classes apart by their names."
    return _listed(
        where,
        (
            "error",
            "different class ids",
            "repeated ones:",
            repeated(key for key, _ in names),
            _MEND,
        ),
        ("error", "a name for every class", "without one, ids", nameless, advice),
        ("error", "different class names", "repeated ones:", same_names, advice),
    )


def _annotation_problems(contents: Mapping[str, Any], where: str) -> list[Problem]:
    sizes: dict[Any, Sequence[float]] = {}
    sizeless = []
    for image in contents["images"]:
        sizes[image["id"]] = (image["width"], image["height"])
        if not all(_is_number(side) and side > 0 for side in sizes[image["id"]]):
            sizeless.append(image["id"])
            sizes[image["id"]] = _ENDLESS
    same_images = repeated(image["id"] for image in contents["images"])
    same = repeated(item["id"] for item in contents["annotations"])
    known = {item["id"] for item in contents["categories"]}
    homeless, unknown, malformed, empty, outside = [], [], [], [], []
    for item in contents["annotations"]:
        box = item["bbox"]
        if item["image_id"] not in sizes:
            homeless.append(item["id"])
        if item["category_id"] not in known:
            unknown.append(item["id"])
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            malformed.append(item["id"])
        elif box[2] <= 0 or box[3] <= 0:
            empty.append(item["id"])
        elif _sticks_out(box, sizes.get(item["image_id"], _ENDLESS)):
            outside.append(item["id"])
    left_out = "Training leaves them out."
    inside = f"boxes inside their picture, to {SLACK:g} pixel"
    clipped = "Training clips them. If there are many: are they x, y, width, height in pixels?"
    return _listed(
        where,
        ("error", "different image ids", "repeated ones:", same_images, _MEND),
        ("error", "image sizes in pixels", "images without, ids", sizeless, _MEND),
        ("error", "different annotation ids", "repeated ones:", same, _MEND),
        ("error", "annotations of images in the json", "others, ids", homeless, _MEND),
        ("warning", "annotations of classes in the json", "others, ids", unknown, left_out),
        ("error", "boxes as 4 numbers (x, y, width, height)", "others, ids", malformed, _MEND),
        ("warning", "boxes of positive size", "others, annotation ids", empty, left_out),
        ("warning", inside, "that stick out, annotation ids", outside, clipped),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _sticks_out(box: Sequence[float], size: Sequence[float]) -> bool:
    x, y, width, height = box
    return min(x, y) < -SLACK or x + width > size[0] + SLACK or y + height > size[1] + SLACK


def _find_images(
    contents: Mapping[str, Any], where: str, image_root: Path
) -> tuple[list[tuple[Path, Mapping[str, Any]]], list[Problem]]:
    """Pictures on disk with their entries in the json, and what is wrong with the others."""
    there, missing, nowhere = [], [], []
    for image in contents["images"]:
        if not image.get("file_name") and not image.get("coco_url"):
            nowhere.append(image["id"])
        elif (path := image_root / relative_path(image, where)).is_file():
            there.append((path, image))
        else:
            missing.append(path)
    want = f"{len(contents['images']):,} pictures in {image_root}"
    advice = "Download or unpack the pictures again, or correct the folder."
    return there, _listed(
        where,
        ("error", "'file_name' or 'coco_url'", "images with neither, ids", nowhere, _MEND),
        ("error", want, "missing ones:", missing, advice),
    )


def _open_images(
    images: Sequence[tuple[Path, Mapping[str, Any]]], where: str, progress: bool
) -> list[Problem]:
    """Decode pictures in full, as training does, and compare their sizes with the json's."""
    wrong = []
    for path, entry in tqdm(images, "opening pictures", disable=None if progress else True):
        listed = (entry["width"], entry["height"])
        try:
            with Image.open(path) as image:
                image.load()
                size = ImageOps.exif_transpose(image).size
            if size != listed:
                wrong.append(f"{path} ({size[0]} x {size[1]} instead of {listed[0]} x {listed[1]})")
        except Exception as error:  # decoders raise nearly everything
            wrong.append(f"{path} ({error})")
    want = "pictures that open and have the size in the json"
    return _listed(where, ("error", want, "others:", wrong, "Download or unpack them again."))


def evenly_spaced(items: Sequence[_T], number: int) -> list[_T]:
    """``number`` of ``items``, the first and the last among them; all if there are no more."""
    if len(items) <= number:
        return list(items)
    return [items[round(i * (len(items) - 1) / (number - 1))] for i in range(number)]


def _listed(where: str, *findings: tuple[str, str, str, Sequence[Any], str]) -> list[Problem]:
    """Problems from (severity, what was expected, what came, the items, advice)."""
    problems = []
    for severity, want, what, items, advice in findings:
        if items:
            shown = ", ".join(map(str, items[:_SHOWN])) + (", …" if len(items) > _SHOWN else "")
            text = f"{where}: expected {want}, got {len(items):,} {what} {shown}. {advice}"
            problems.append(Problem(severity, text))
    return problems


def _check_choice(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"expected {what} among {', '.join(known)}, got {value!r}")
