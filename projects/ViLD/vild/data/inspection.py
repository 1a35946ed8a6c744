"""Looks at data sets on disk: what is there, what is missing, what is broken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from detectron2.data import MetadataCatalog
from tqdm import tqdm

from vild.data.annotations import Annotations, decode_annotations, repeated
from vild.data.custom import read_spec, register_custom, resolve_paths
from vild.data.entries import ImageEntry
from vild.data.images import ImageFinder, UnreadableImageError, read_image
from vild.data.problems import Problem
from vild.data.registry import coco_layouts, data_root, lvis_layouts

DATASETS, SPLITS = ("lvis", "coco"), ("train", "val")
IMAGE_CHECKS = ("none", "sample", "all")
LAYOUTS = ("Detectron2's", "flat")  # in the order that the registry looks for them
SAMPLE_SIZE = 200  # images per split
_SHOWN = 5  # names in a message
_T = TypeVar("_T")


@dataclass(frozen=True)
class Entry:
    """A file or folder that a data set consists of, and whether it is there."""

    path: Path
    is_folder: bool
    there: bool


@dataclass(frozen=True)
class Counts:
    """What a json lists.

    Attributes:
        images: images.
        annotations: annotations, whether they can be used or not.
        categories: classes.
        frequencies: classes per frequency group.
        objects: objects of ``base`` and ``novel`` classes that can be used, crowds left out; empty
            where nothing says which classes are novel.
    """

    images: int
    annotations: int
    categories: int
    frequencies: Mapping[str, int]
    objects: Mapping[str, int]


@dataclass(frozen=True)
class SplitReport:
    """One json (``counts`` is None if it is missing or unreadable) and its images."""

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
        _inspect_split(
            *(split, decode_annotations(json_file), folder),
            *(EXPECTED[name, split], images, progress),
        )
        for split, (json_file, folder) in chosen.items()
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
        name = str(spec.name)
        contents = []
        for split, files in spec.splits().items():
            json_file, folder = resolve_paths(files, yaml_file, split)
            entries += [_entry(json_file), _entry(folder, is_folder=True)]
            contents.append(decode_annotations(json_file, spec.crowds_are_objects))
            splits.append(_inspect_split(split, contents[-1], folder, {}, images, progress))
        others += _missing(entries, "Correct the path in the yaml, or put it there.")
        if not report().errors:
            register_custom(yaml_file)
            splits = [
                _with_objects(split, found, f"{name}_{split.name}")
                for split, found in zip(splits, contents, strict=True)
            ]
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
    return Entry(path, is_folder, path.is_dir() if is_folder else _is_file(path))


def _missing(entries: Iterable[Entry], advice: str) -> tuple[Problem, ...]:
    kinds = {True: "a folder of pictures", False: "annotations"}
    return tuple(
        Problem("error", f"expected {kinds[e.is_folder]} at {e.path}, found none. {advice}")
        for e in entries
        if not e.there
    )


def _inspect_split(
    name: str,
    found: Annotations,
    image_root: Path,
    expected: Mapping[str, int],
    images: str,
    progress: bool,
) -> SplitReport:
    json_file = Path(found.path)
    if not _is_file(json_file):
        return SplitReport(name, json_file, None, 0, ())  # reported as an entry
    problems = list(found.problems)
    if not found.images and not found.categories:
        return SplitReport(name, json_file, None, 0, tuple(problems))
    if not found.images:
        text = f"{found.path}: expected images, got none. There is nothing to train on or evaluate."
        problems.append(Problem("error", text))
    groups = Counter(category.frequency for category in found.categories)
    counts = Counts(len(found.images), found.listed, len(found.categories), groups, {})
    problems += _count_problems(counts, expected, found.path)
    there, not_found = _find_images(found, image_root)
    chosen = {"none": [], "sample": evenly_spaced(there, SAMPLE_SIZE), "all": there}[images]
    problems += not_found + _open_images(chosen, found.path, progress and images == "all")
    return SplitReport(name, json_file, counts, len(chosen), tuple(problems))


def _with_objects(split: SplitReport, found: Annotations, dataset_name: str) -> SplitReport:
    """The report with the objects of base and novel classes, and what follows from their number."""
    assert split.counts is not None
    metadata = MetadataCatalog.get(dataset_name)
    usable = Counter(
        item.category_id
        for item in found.objects
        if not item.iscrowd and item.bbox and min(item.bbox[2:]) > 0
    )
    objects = {"base": 0, "novel": 0}
    unused = []
    for category_id, row in metadata.thing_dataset_id_to_contiguous_id.items():
        objects["novel" if metadata.novel[row] else "base"] += usable[category_id]
        # training has no annotations of novel classes anyway
        if not usable[category_id] and not (split.name == "train" and metadata.novel[row]):
            unused.append(metadata.thing_classes[row])
    problems = list(split.problems)
    if split.name == "train" and not objects["base"]:
        text = "Nothing is left to train on."
        problems += _listed("error", found.path, "objects of base classes", "none", [""], text)
    else:
        what = "classes without any:"
        problems += _listed("warning", found.path, "objects of every class", what, unused, "")
    counts = replace(split.counts, objects=objects)
    return replace(split, counts=counts, problems=tuple(problems))


def _count_problems(counts: Counts, expected: Mapping[str, int], where: str) -> list[Problem]:
    got = {"images": counts.images, "classes": counts.categories}
    got |= {name: counts.frequencies.get(group, 0) for group, name in _GROUPS.items()}
    advice = "This is not the official file; for other data, see --custom in datasets/README.md."
    return [
        Problem("error", f"{where}: expected {want:,} {what}, got {got[what]:,}. {advice}")
        for what, want in expected.items()
        if want != got[what]
    ]


def _find_images(
    found: Annotations, image_root: Path
) -> tuple[list[tuple[Path, ImageEntry]], list[Problem]]:
    """Images on disk with their entries in the json, and what is wrong with the others."""
    there, missing = [], []
    finder = ImageFinder(image_root)
    for image in found.images:
        if not image.path:
            continue  # reported by the intake
        path = Path(finder.path(image.path))
        if _is_file(path):
            there.append((path, image))
        else:
            missing.append(image.path)
    want = f"{len(found.images):,} images in {image_root}"
    advice = (
        f"Correct the folder or the names, or get the images. The folder has {_some(image_root)}."
    )
    problems = _listed("error", found.path, want, "names without a file:", missing, advice)
    twice = repeated(str(path) for path, _ in there)
    what = "listed more than once:"
    advice = "Objects of one entry are background in the other. Were files merged?"
    return there, [*problems, *_listed("warning", found.path, "images", what, twice, advice)]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _some(folder: Path) -> str:
    """The first names in a folder, for a message."""
    names = sorted(path.name for path in folder.iterdir())[:3] if folder.is_dir() else []
    return ", ".join(names) or "no files"


def _open_images(
    images: Sequence[tuple[Path, ImageEntry]], where: str, progress: bool
) -> list[Problem]:
    """Decode images in full, as training does, and compare their sizes with the json's."""
    wrong = []
    for path, entry in tqdm(images, "opening images", disable=None if progress else True):
        try:
            height, width = read_image(path).shape[:2]
        except UnreadableImageError as error:
            wrong.append(str(error).rstrip("."))
            continue
        if (width, height) != (entry.width, entry.height):
            listed = f"{entry.width} x {entry.height}"
            wrong.append(f"{path} ({width} x {height} instead of {listed})")
    want, advice = "images that open and have the size in the json", "Replace or correct them."
    return _listed("error", where, want, "others:", wrong, advice)


def evenly_spaced(items: Sequence[_T], number: int) -> list[_T]:
    """``number`` of ``items``, the first and the last among them; all if there are no more."""
    if len(items) <= number:
        return list(items)
    return [items[round(i * (len(items) - 1) / (number - 1))] for i in range(number)]


def _listed(
    severity: str, where: str, want: str, what: str, items: Sequence[str], advice: str
) -> list[Problem]:
    """One problem that names the first of the items; none if there are none."""
    if not items:
        return []
    shown = ", ".join(items[:_SHOWN]) + (", ..." if len(items) > _SHOWN else "")
    number = f"{len(items):,} " if items != [""] else ""
    got = f"{number}{what} {shown}".rstrip()
    return [Problem(severity, f"{where}: expected {want}, got {got}. {advice}".rstrip())]


def _check_choice(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"expected {what} among {', '.join(known)}, got {value!r}")
