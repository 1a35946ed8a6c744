"""Inspect datasets on disk: report missing and broken files and implausible annotations."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

from detectron2.data import MetadataCatalog
from tqdm import tqdm

from vild.data.annotations import Annotations, decode_annotations
from vild.data.coco_format import Id, ImageEntry
from vild.data.custom_datasets import read_spec, register_custom, resolve_paths
from vild.data.images import ImageFinder, UnreadableImageError, read_image
from vild.data.problems import Findings, Problem
from vild.data.registry import data_root, layouts

DATASETS, SPLITS = ("lvis", "coco"), ("train", "val")
IMAGE_CHECKS = ("none", "sample", "all")
LAYOUTS = ("Detectron2's", "flat")  # in the order in which the registry tries them
SAMPLE_SIZE = 200  # images per split
_T = TypeVar("_T")


@dataclass(frozen=True)
class Entry:
    """A file or folder that a dataset consists of."""

    path: Path
    is_folder: bool = False

    @property
    def exists(self) -> bool:
        """Return whether it exists."""
        return os.path.isdir(self.path) if self.is_folder else os.path.isfile(self.path)


@dataclass(frozen=True)
class Counts:
    """Numbers of entries in a json.

    Attributes:
        images: number of images.
        annotations: number of annotations, including unusable ones.
        categories: number of classes.
        frequencies: number of classes per frequency group.
        usable: usable objects per category id, without crowds.
        objects: usable objects of ``base`` and ``novel`` classes; empty if the novel classes are
            unknown.
    """

    images: int
    annotations: int
    categories: int
    frequencies: Mapping[str, int]
    usable: Mapping[Id, int]
    objects: dict[str, int] = field(default_factory=dict)


@dataclass
class SplitReport:
    """One json and its images; ``counts`` is None if the json is missing or unreadable."""

    name: str
    json_file: Path
    findings: Findings
    counts: Counts | None = None
    images_opened: int = 0

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All problems of the split."""
        return self.findings.problems()


@dataclass
class DatasetReport:
    """Findings about a dataset: ``lvis``, ``coco``, or the name in a yaml.

    Attributes:
        root: the folder searched.
        layout: one of :data:`LAYOUTS`, or ``custom``.
        entries: the files and folders that the dataset consists of.
        splits: findings about its annotations and images.
        other_problems: problems that do not belong to a single split.
    """

    name: str
    root: Path
    layout: str
    entries: list[Entry] = field(default_factory=list)
    splits: list[SplitReport] = field(default_factory=list)
    other_problems: list[Problem] = field(default_factory=list)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All problems of the dataset."""
        return (*self.other_problems, *(p for split in self.splits for p in split.problems))

    @property
    def errors(self) -> int:
        """Number of problems that are errors."""
        return sum(problem.severity == "error" for problem in self.problems)

    def require_entries(self, advice: str) -> None:
        """Report missing entries as errors."""
        for entry in self.entries:
            if not entry.exists:
                kind = "a folder of images" if entry.is_folder else "annotations"
                text = f"expected {kind} at {entry.path}, found none. {advice}"
                self.other_problems.append(Problem("error", text))


_GROUPS = {"f": "frequent classes", "c": "common classes", "r": "rare classes"}
_LVIS_CLASSES = {"classes": 1203, _GROUPS["f"]: 405, _GROUPS["c"]: 461, _GROUPS["r"]: 337}
# numbers of entries in the official json files
EXPECTED: dict[tuple[str, str], dict[str, int]] = {
    ("lvis", "train"): {"images": 100_170, **_LVIS_CLASSES},
    ("lvis", "val"): {"images": 19_809, **_LVIS_CLASSES},
    ("coco", "train"): {"images": 118_287, "classes": 80},
    ("coco", "val"): {"images": 5_000, "classes": 80},
}


def inspect_dataset(name: str, root: Path | None = None, images: str = "sample") -> DatasetReport:
    """Inspect LVIS v1 or COCO 2017.

    Args:
        name: one of :data:`DATASETS`.
        root: the data root; :func:`~vild.data.registry.data_root` by default.
        images: which images to decode, one of :data:`IMAGE_CHECKS`: ``none``, ``sample``
            (:data:`SAMPLE_SIZE` per split, evenly spaced) or ``all``. Missing images are reported
            in any case.
    """
    root = data_root() if root is None else root
    in_use = layout_in_use(name, root)
    # the registry, too, chooses the layout per json
    chosen = {}
    for split in SPLITS:
        options = layouts(name, split, root)
        chosen[split] = next((own for own in options if own[0].is_file()), options[in_use])
    report = DatasetReport(name, root, LAYOUTS[in_use])
    report.entries += [Entry(json_file) for json_file, _ in chosen.values()]
    folders = _folders(name, [folder for _, folder in chosen.values()])
    report.entries += [Entry(folder, is_folder=True) for folder in folders]
    command = f"python datasets/check_datasets.py --root {root} --download {name}"
    report.require_entries(f"Run `{command}`, or put it there.")
    for split, files in chosen.items():
        expected = EXPECTED[name, split]
        report.splits.append(_inspect_split(split, *files, images, expected=expected))
    return report


def inspect_custom(yaml_file: Path, images: str = "sample") -> DatasetReport:
    """Inspect a dataset described by a yaml (:mod:`vild.data.custom_datasets`).

    If its files are sound, its splits are registered to check that registration works.

    Args:
        yaml_file: the description.
        images: see :func:`inspect_dataset`.
    """
    report = DatasetReport(yaml_file.stem, yaml_file.parent, "custom")
    try:
        spec = read_spec(yaml_file)
        report.name = str(spec.name)
        for split, paths in spec.splits().items():
            files = resolve_paths(paths, yaml_file, split)
            report.entries += [Entry(files[0]), Entry(files[1], is_folder=True)]
            crowds = spec.crowds_are_objects
            report.splits.append(_inspect_split(split, *files, images, crowds))
        report.require_entries("Correct the path in the yaml, or put it there.")
        if not report.errors:
            register_custom(yaml_file)
            for inspected in report.splits:
                _count_objects(inspected, f"{spec.name}_{inspected.name}")
    except ValueError as error:
        report.other_problems.append(Problem("error", str(error)))
    return report


def layout_in_use(name: str, root: Path) -> int:
    """Return the index into :data:`LAYOUTS` of the layout in which a dataset lies below ``root``.

    This is the first layout with any of its json files, as in the registry; without a json, the
    layout with most of its folders; Detectron2's if nothing exists.
    """
    by_layout = list(zip(*(layouts(name, split, root) for split in SPLITS), strict=True))
    with_json = [any(json_file.is_file() for json_file, _ in files) for files in by_layout]
    if any(with_json):
        return with_json.index(True)
    folders = [_folders(name, [folder for _, folder in files]) for files in by_layout]
    present = [sum(folder.is_dir() for folder in own) for own in folders]
    return present.index(max(present))


def _folders(name: str, roots: Sequence[Path]) -> list[Path]:
    """Return the image folders. LVIS uses COCO's images; those of its val are in both folders."""
    if name == "coco":
        return list(roots)
    return [root / folder for root in dict.fromkeys(roots) for folder in ("train2017", "val2017")]


def _inspect_split(
    name: str,
    json_file: Path,
    folder: Path,
    images: str,
    crowds_are_objects: bool = False,
    expected: Mapping[str, int] | None = None,
) -> SplitReport:
    report = SplitReport(name, json_file, Findings(str(json_file)))
    if not os.path.isfile(json_file):
        return report  # already reported as a missing entry
    try:
        found = decode_annotations(json_file, crowds_are_objects)
    except ValueError as error:
        report.findings.fail(str(error))
        return report
    report.findings = found.findings
    if not found.images:
        found.findings.count("no_images")
    report.counts = _counts(found, expected or {})
    there = _find_images(found, folder)
    chosen = {"none": [], "sample": evenly_spaced(there, SAMPLE_SIZE), "all": there}[images]
    _open_images(chosen, found.findings)
    report.images_opened = len(chosen)
    return report


def _counts(found: Annotations, expected: Mapping[str, int]) -> Counts:
    """Return the numbers of entries in a json; report those that differ from the expected ones."""
    classes = [category for category in found.categories if category.id != found.root]
    groups = Counter(category.frequency for category in classes)
    got = {"images": len(found.images), "classes": len(classes)}
    got |= {name: groups[group] for group, name in _GROUPS.items()}
    wrong = [
        f"{got[what]:,} {what} instead of {want:,}"
        for what, want in expected.items()
        if got[what] != want
    ]
    found.findings.add("official", *wrong)
    usable = Counter(
        item.category_id
        for item in found.objects
        if not item.iscrowd and item.bbox and min(item.bbox[2:]) > 0
    )
    return Counts(len(found.images), found.listed, len(classes), groups, usable)


def _count_objects(split: SplitReport, dataset_name: str) -> None:
    """Count the objects of base and novel classes, and report classes without objects."""
    assert split.counts is not None
    metadata = MetadataCatalog.get(dataset_name)
    objects = split.counts.objects
    objects |= {"base": 0, "novel": 0}
    unused = []
    for category_id, row in metadata.thing_dataset_id_to_contiguous_id.items():
        number = split.counts.usable.get(category_id, 0)
        objects["novel" if metadata.novel[row] else "base"] += number
        # training does not use annotations of novel classes
        if not number and not (split.name == "train" and metadata.novel[row]):
            unused.append(metadata.thing_classes[row])
    if split.name == "train" and not objects["base"]:
        split.findings.count("no_base_objects")
    else:
        split.findings.add("unused", *unused)


def _find_images(found: Annotations, folder: Path) -> list[tuple[Path, ImageEntry]]:
    """Return existing images with their json entries; report missing and duplicate ones."""
    there, missing = [], []
    names_of: dict[Path, list[str]] = defaultdict(list)
    finder = ImageFinder(folder)
    for image in found.images:
        if not image.path:
            continue  # already reported by the annotation checks
        path = Path(finder.path(image.path))
        if os.path.isfile(path):
            there.append((path, image))
            names_of[path].append(image.path)
        else:
            missing.append(image.path)
    names = sorted(path.name for path in folder.iterdir())[:3] if folder.is_dir() else []
    present = ", ".join(names) or "no files"
    total = f"{len(found.images):,}"
    found.findings.add("missing_files", *missing, total=total, folder=folder, present=present)
    for path, own in names_of.items():
        if len(own) > 1:
            kind = "same_files" if _mean_one_image(own) else "one_file"
            found.findings.add(kind, f"{path} ({', '.join(sorted(set(own))[:3])})")
    return there


def _mean_one_image(names: Sequence[str]) -> bool:
    """Return whether names of one file differ only in spelling or in leading folders."""
    spelled = {
        unicodedata.normalize("NFC", unquote(n)).replace("\\", "/").casefold() for n in names
    }
    longest = max(spelled, key=len)
    return all(f"/{longest}".endswith(f"/{other}") for other in spelled)


def _open_images(images: Sequence[tuple[Path, ImageEntry]], findings: Findings) -> None:
    """Decode images in full, as training does, and compare their sizes with the json."""
    for path, entry in tqdm(images, "opening images", disable=None):  # None: off without a terminal
        try:
            height, width = read_image(path).shape[:2]
        except UnreadableImageError as error:
            findings.add("unreadable", str(error).rstrip("."))
            continue
        if (width, height) != (entry.width, entry.height):
            listed = f"{entry.width} x {entry.height}"
            findings.add("unreadable", f"{path} ({width} x {height} instead of {listed})")


def evenly_spaced(items: Sequence[_T], number: int) -> list[_T]:
    """Return up to ``number`` evenly spaced items, including the first and the last."""
    if len(items) <= number:
        return list(items)
    return [items[round(i * (len(items) - 1) / (number - 1))] for i in range(number)]
