"""Messages about problems of annotations and their images."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

_SHOWN, _LONGEST = 5, 400  # names per message, characters per name
_INVALID = "entries in COCO's format, got {n} invalid ones: {names}. Correct the json."
_BY_NAMES = "Correct the json: the classifier distinguishes classes by their names."

# severity -> kind -> message: what was expected, what was found, what to do or what happens
_TEXTS = {
    "error": {
        "invalid images": _INVALID,
        "invalid annotations": _INVALID,
        "invalid categories": _INVALID,
        "no_images": "images, got none. There is nothing to train on or evaluate.",
        "no_classes": "at least one class under 'categories', got an empty list. Correct the json.",
        "image_ids": "unique image ids, got {n} repeated ones: {names}. Correct the json.",
        "image_paths": "'file_name' or 'coco_url' of every image, got {n} images with neither, ids "
        "{names}. Correct the json.",
        "category_ids": "unique class ids, got {n} repeated ones: {names}. Correct the json.",
        "names": "a name for every class, got {n} without one, ids {names}. " + _BY_NAMES,
        "same_names": "distinct class names, got {n} with equal prompts: {names}. " + _BY_NAMES,
        "frequencies": "'r', 'c' or 'f' as the frequency of a class, got {n} others: {names}. "
        "Correct the json.",
        "images": "annotations of images in the json, got {n} of other images: {names}. Correct "
        "the json.",
        "boxes": "boxes as 4 finite numbers (x, y, width, height), or masks to derive them from, "
        "got {n} annotations without: {names}. Correct the json.",
        "all_fractions": "boxes in pixels, but all {n} lie within the top-left pixel. They look "
        "like fractions of the image, as in YOLO's format: multiply them by the image size.",
        "official": "the official file, got {names}. For other data, see --custom in "
        "datasets/README.md.",
        "missing_files": "{total} images in {folder}, got {n} names without a file: {names}. "
        "Correct the folder or the names, or get the images. The folder contains {present}.",
        "one_file": "one file per image, got {n} files that several images share: {names}. "
        "Correct the names, or get the missing images.",
        "unreadable": "readable images of the size in the json, got {n} others: {names}. "
        "Replace or correct them.",
        "no_base_objects": "objects of base classes, got none. There is nothing to train on.",
    },
    "warning": {
        "classes": "annotations of classes in the json, got {n} of other classes: {names}. They "
        "are ignored.",
        "lists": "ids of classes in LVIS's lists per image, got {n} unknown ones: {names}. They "
        "are ignored.",
        "repeated": "distinct objects, got {n} that repeat another one's image, class and box: "
        "{names}. Was a file merged twice? Evaluation counts a repeated object as missed.",
        "negative": "boxes of positive size, got {n} negative ones: {names}. They are ignored.",
        "empty": "boxes of positive size, got {n} empty ones: {names}. Training ignores them.",
        "outside": "boxes inside their image, up to 1 pixel, got {n} that extend beyond it: "
        "{names}. Training clips them. If there are many: are they x, y, width, height in pixels?",
        "off_image": "boxes that overlap their image, got {n} outside it: {names}. They are "
        "ignored. Were the images resized without their annotations?",
        "loose_masks": "masks that fill their boxes, got {n} that do not, more than half of those "
        "compared. Are boxes x, y, width, height, and polygons x, y, x, y, ..., both in pixels?",
        "masks": "valid masks, got {n} invalid ones: {names}. Their boxes are used, without masks.",
        "crowds": "single objects, got {n} crowd regions, more than half of all annotations. "
        "Neither training nor evaluation counts them. CVAT marks every mask as a crowd: if they "
        "are single objects, set `crowds_are_objects: true` in the yaml of the dataset.",
        "fractions": "boxes in pixels, got {n} within the top-left pixel. Are they fractions of "
        "the image, as in YOLO's format? Multiply them by the image size.",
        "same_files": "every image once, got {n} listed more than once: {names}. Objects of one "
        "entry are background in the other. Were files merged?",
        "unused": "objects of every class, got {n} classes without any: {names}.",
    },
    "note": {
        "root": "classes of objects, got {n} that only groups the others: {names}. It is ignored "
        "unless another split has objects of it or the yaml lists it.",
        "annotation_ids": "unique annotation ids, got {n} missing or repeated. They are not used: "
        "annotations are numbered in order.",
        "mask_boxes": "boxes, got {n} annotations without. The boxes around their masks are used.",
        "areas": "areas, got {n} annotations without. The areas of their boxes are used.",
        "maskless": "masks, got {n} objects without. They are used for boxes only.",
    },
}

# cause -> consequences, which are reported only once the cause is fixed
_FOLLOWS = {
    "invalid images": ("images", "no_images", "official"),
    "invalid categories": ("classes", "lists", "no_classes", "official"),
    "invalid annotations": ("root",),
    "category_ids": ("classes", "lists"),
}


@dataclass(frozen=True)
class Problem:
    """A problem of a dataset.

    Attributes:
        severity: ``error`` for unusable data, ``warning`` for data that may be unintended, ``note``
            for normalised data.
        text: what was expected, what was found, what to do.
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
        self._counts: dict[str, int] = defaultdict(int)
        self._names: dict[str, list[Any]] = defaultdict(list)
        self._values: dict[str, dict[str, Any]] = {}
        self._failure = ""

    def add(self, kind: str, *names: Any, **values: Any) -> None:
        """Add problems of a kind.

        Args:
            kind: a kind in ``_TEXTS``.
            names: entries of the file that have the problem.
            values: other values in the message.
        """
        self._counts[kind] += len(names)
        self._names[kind] += names[: _SHOWN - len(self._names[kind])]
        self._values[kind] = values

    def count(self, kind: str, number: int = 1) -> None:
        """Add a number of problems without naming their entries."""
        self._counts[kind] += number

    def fail(self, text: str) -> None:
        """Add the reason why the file cannot be read at all; it is then the only problem."""
        self._failure = text

    def problems(self) -> tuple[Problem, ...]:
        """Return all problems, errors first, without mere consequences of others."""
        if self._failure:
            return (Problem("error", self._failure),)
        followers = {kind for cause in _FOLLOWS if self._counts[cause] for kind in _FOLLOWS[cause]}
        return tuple(
            Problem(severity, f"{self.where}: expected {self._filled(kind, text)}")
            for severity, texts in _TEXTS.items()
            for kind, text in texts.items()
            if self._counts[kind] and kind not in followers
        )

    def _filled(self, kind: str, text: str) -> str:
        names = ", ".join(map(_one_line, self._names[kind]))
        names += ", ..." if self._counts[kind] > _SHOWN else ""
        return text.format(n=f"{self._counts[kind]:,}", names=names, **self._values.get(kind, {}))


def _one_line(name: Any) -> str:
    text = "\\n".join(str(name).splitlines())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
