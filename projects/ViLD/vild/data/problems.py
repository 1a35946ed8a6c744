"""What can be wrong with annotations, in words."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

_SHOWN = 5  # entries in a message
_MEND = "Mend the json."

# kind -> severity, what was expected, what came instead, what to do or what happens
_KINDS: dict[str, tuple[str, str, str, str]] = {
    "invalid": ("error", "entries of COCO's format", "others:", _MEND),
    "no_classes": ("error", "at least one class under 'categories'", "empty list", _MEND),
    "image_ids": ("error", "different image ids", "repeated ones:", _MEND),
    "image_sizes": ("error", "image sizes in pixels", "images without, ids", _MEND),
    "image_paths": ("error", "'file_name' or 'coco_url'", "images with neither, ids", _MEND),
    "category_ids": ("error", "different class ids", "repeated ones:", _MEND),
    "names": (
        "error",
        "a name for every class",
        "without one, ids",
        "Mend the json: the classifier distinguishes classes by their names.",
    ),
    "same_names": (
        "error",
        "different class names",
        "with equal prompts:",
        "Mend the json: the classifier distinguishes classes by their names.",
    ),
    "frequencies": ("error", "the frequency 'r', 'c' or 'f' of a class", "others:", _MEND),
    "root": (
        "note",
        "classes of objects",
        "that only groups the others:",
        "It is left out: no annotation has it.",
    ),
    "images": ("error", "annotations of images in the json", "others:", _MEND),
    "classes": (
        "warning",
        "annotations of classes in the json",
        "others:",
        "They are left out.",
    ),
    "lists": (
        "warning",
        "ids of classes in LVIS's lists of an image",
        "others:",
        "They are ignored.",
    ),
    "repeated": (
        "warning",
        "different objects",
        "that repeat another one's image, class and box:",
        "Was a file merged twice? Evaluation counts a repeated object as missed.",
    ),
    "annotation_ids": (
        "note",
        "different annotation ids",
        "missing or repeated",
        "They are not used: annotations are numbered by their order.",
    ),
    "boxes": (
        "error",
        "boxes as 4 finite numbers (x, y, width, height), or masks to take them from",
        "others:",
        _MEND,
    ),
    "mask_boxes": ("note", "boxes", "annotations without", "Boxes around their masks are used."),
    "areas": ("note", "areas", "annotations without", "Those of the boxes are used."),
    "negative": ("warning", "boxes of positive size", "negative ones:", "They are left out."),
    "empty": ("warning", "boxes of positive size", "empty ones:", "Training leaves them out."),
    "outside": (
        "warning",
        "boxes inside their image, to 1 pixel",
        "that stick out:",
        "Training clips them. If there are many: are they x, y, width, height in pixels?",
    ),
    "off_image": (
        "warning",
        "boxes that overlap their image",
        "others:",
        "They are left out. Were the images resized without their annotations?",
    ),
    "loose_masks": (
        "warning",
        "masks that fill their boxes",
        "with another extent, more than half of those compared",
        "Are boxes x, y, width, height, and polygons x, y, x, y, ..., both in pixels?",
    ),
    "masks": (
        "warning",
        "masks that can be drawn",
        "others:",
        "Their boxes are used, without masks.",
    ),
    "maskless": ("note", "masks", "objects without", "They count for boxes alone."),
    "crowds": (
        "warning",
        "objects",
        "crowd regions, more than half of all annotations",
        "Neither training nor evaluation counts them. CVAT marks every mask so: if they are "
        "single objects, set `crowds_are_objects: true` in the yaml of the data set.",
    ),
    "fractions": (
        "warning",
        "boxes in pixels",
        "of less than a pixel in the top left corner",
        "Are they fractions of the image, as YOLO writes them? Multiply them by its size.",
    ),
    "all_fractions": (
        "error",
        "boxes in pixels",
        "of less than a pixel in the top left corner, which is all of them",
        "They look like fractions of the image, as YOLO writes them: multiply them by its size.",
    ),
}


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be.

    Attributes:
        severity: ``error`` for what cannot be used, ``warning`` for what may not be meant, ``note``
            for what was normalised.
        text: what was expected, what came, what to do.
    """

    severity: str
    text: str


class Findings:
    """Collects problems of one file by kind.

    Args:
        where: the file, for the messages.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self._shown: dict[str, list[Any]] = defaultdict(list)
        self._counts: dict[str, int] = defaultdict(int)
        self._failures: list[Problem] = []

    def add(self, kind: str, label: Any) -> None:
        """Note one problem of a kind at an entry of the file."""
        self._counts[kind] += 1
        if self._counts[kind] <= _SHOWN:
            self._shown[kind].append(label)

    def count(self, kind: str, number: int = 1) -> None:
        """Note problems whose entries need no naming."""
        if number:
            self._counts[kind] += number

    def fail(self, text: str) -> None:
        """Note why the file cannot be read at all."""
        self._failures.append(Problem("error", text))

    def problems(self) -> tuple[Problem, ...]:
        """All problems, errors first; nothing else if the file cannot be read."""
        if self._failures:
            return tuple(self._failures)
        found = []
        for kind, (severity, want, what, advice) in _KINDS.items():
            if number := self._counts.get(kind):
                names = ", ".join(map(str, self._shown[kind]))
                more = ", ..." if self._shown[kind] and number > _SHOWN else ""
                got = f"{number:,} {what} {names}{more}".rstrip()
                text = f"{self.where}: expected {want}, got {got}. {advice}".rstrip()
                found.append(Problem(severity, text))
        return tuple(sorted(found, key=lambda problem: problem.severity != "error"))
