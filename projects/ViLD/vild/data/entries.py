"""The entries of annotation files in COCO or LVIS format, typed.

A well-typed file is decoded at once by msgspec. Others are read entry by entry, which takes longer
and accepts what annotation tools write: null for missing, numbers as text, masks in other forms.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from vild.data.files import decode_text
from vild.data.masks import Rle, read_segmentation
from vild.data.problems import Findings

Id = int | str
_T = TypeVar("_T")


class ImageEntry(msgspec.Struct):
    """An image of a json. ``height`` and ``width`` are in pixels."""

    id: Id
    height: int
    width: int
    file_name: str = ""
    coco_url: str = ""
    neg_category_ids: list[Id] | None = None
    not_exhaustive_category_ids: list[Id] | None = None

    @property
    def path(self) -> str:
        """Path below the folder of images; as in LVIS, the end of ``coco_url`` if need be."""
        return self.file_name or "/".join(self.coco_url.split("/")[-2:])


class Annotation(msgspec.Struct, gc=False):
    """An annotated object. After the intake every attribute but ``id`` has its final form.

    Attributes:
        image_id: id of its image, exactly as the image has it.
        category_id: likewise.
        id: as in the json; nothing depends on it.
        bbox: x, y, width, height in pixels; from the mask where the json has none.
        area: in square pixels; that of the box where the json has none.
        iscrowd: 1 for a region of many objects.
        segmentation: polygons, compressed run lengths, or None for an object without a mask.
    """

    image_id: Id
    category_id: Id
    id: Id | None = None
    bbox: list[float] | None = None
    area: float | None = None
    iscrowd: int = 0
    segmentation: list[list[float]] | Rle | None = None


class CategoryEntry(msgspec.Struct):
    """A class of a json as it is written there."""

    id: Id
    name: str
    synonyms: list[str] | None = None
    frequency: str | None = None
    image_count: int | None = None
    supercategory: str | None = None


class AnnotationFile(msgspec.Struct):
    """Contents of a json."""

    images: list[ImageEntry]
    annotations: list[Annotation]
    categories: list[CategoryEntry]


@contextmanager
def paused_collection() -> Iterator[None]:
    """Without garbage collection, which takes most of the time that large files are read in."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def id_order(key: Id) -> tuple[bool, Id]:
    """Sort key for ids, numbers before text."""
    return isinstance(key, str), key


def find_id(known: Mapping[Id, Any], key: Id) -> Id | None:
    """The id in ``known`` that ``key`` means: itself, or the same number as text or as a number."""
    if key in known:
        return key
    other = plain_number(key) if isinstance(key, str) else str(key)
    return other if other in known else None


def plain_number(key: Id) -> Id:
    """Text that is plainly a whole number as that number."""
    if isinstance(key, str) and key.isascii() and key.removeprefix("-").isdecimal():
        return int(key) if len(key) < 20 else key
    return key


def decode_file(path: Path, findings: Findings) -> AnnotationFile:
    """Read a json in COCO or LVIS format.

    Args:
        path: the file.
        findings: receives what is wrong.

    Returns:
        the entries that are well typed; none where the file cannot be read.
    """
    nothing = AnnotationFile([], [], [])
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = error.strerror if isinstance(error, OSError) else error
        findings.fail(
            f"expected annotations at {path}: {reason}. Run datasets/check_datasets.py "
            "to see which files are expected where"
        )
        return nothing
    try:
        return msgspec.json.decode(content, type=AnnotationFile)
    except (msgspec.DecodeError, RecursionError):
        pass  # another type somewhere, another encoding, NaN, or no json at all
    try:
        loaded = json.loads(decode_text(content, f"{path}: expected json"))
    except (ValueError, RecursionError) as error:
        findings.fail(f"{path} is not a json file ({error})")
        return nothing
    if not isinstance(loaded, dict):
        findings.fail(
            f"{path}: expected a json object with the keys images, annotations, categories, got a "
            f"{type(loaded).__name__}. Is it a results file instead of annotations?"
        )
        return nothing
    for section in ("images", "annotations", "categories"):
        if not isinstance(loaded.get(section), list):
            findings.fail(
                f"{path}: expected a list under {section!r}, as COCO's and LVIS's formats have; "
                f"got the keys {sorted(loaded)!s:.200}"
            )
            return nothing
    return AnnotationFile(
        _entries(loaded["images"], "images", ImageEntry, findings),
        _entries(loaded["annotations"], "annotations", Annotation, findings),
        _entries(loaded["categories"], "categories", CategoryEntry, findings),
    )


def _entries(items: list[Any], section: str, kind: type[_T], findings: Findings) -> list[_T]:
    """Entries of a section one by one: null counts as missing, and plain numbers may be text."""
    made = []
    for index, item in enumerate(items):
        where = f"{section}[{index}]"
        if not isinstance(item, dict):
            findings.add("invalid", f"{where}: expected an object, got {item!r:.40}")
            continue
        fields = kind.__struct_fields__  # type: ignore[attr-defined]
        # null and NaN, which pandas writes, are missing
        known = {k: item[k] for k in fields if item.get(k) is not None and item[k] == item[k]}
        if not isinstance(known.get("supercategory"), str):
            known.pop("supercategory", None)
        if kind is Annotation:
            _normalise(known, where, findings)
        elif kind is CategoryEntry and type(known.get("name")) in (int, float):
            known["name"] = str(known["name"])
        try:
            made.append(msgspec.convert(known, kind, strict=False))
        except msgspec.ValidationError as error:
            findings.add("invalid", located(error, where))
    return made


def located(error: Exception, where: str) -> str:
    """An error of msgspec with the path in front: ``annotations[3].area: expected float, ...``.

    Args:
        error: the error.
        where: the entry.
    """
    text, _, place = str(error).partition(" - at `$")
    return f"{where}{place.rstrip('`')}: {text[:1].lower()}{text[1:].replace('`', '')}"


_CROWD = {"0": 0, "1": 1, "false": 0, "true": 1}


def _normalise(item: dict[str, Any], where: str, findings: Findings) -> None:
    """Other spellings of an annotation's values, in place."""
    if "iscrowd" in item:
        item["iscrowd"] = _CROWD.get(str(item["iscrowd"]).lower(), item["iscrowd"])
    for key in ("bbox", "area"):  # NaN is pandas's way to write nothing
        if item.get(key) == [] or item.get(key) != item.get(key):
            del item[key]
    if "segmentation" in item:
        try:
            mask = read_segmentation(item.pop("segmentation"))
        except ValueError as error:
            findings.add("masks", f"{where}: {error}")
        else:
            item["segmentation"] = msgspec.to_builtins(mask)
