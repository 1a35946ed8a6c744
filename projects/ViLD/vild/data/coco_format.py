"""Typed entries of annotation files in COCO or LVIS format.

msgspec decodes a well-typed file at once. Other files are read entry by entry, which is slower and
accepts what annotation tools write: null for missing values, numbers as text, other mask forms.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec

from vild.data.masks import Rle, read_segmentation
from vild.data.problems import Findings
from vild.utils.files import decode_text

Id = int | str


class ImageEntry(msgspec.Struct):
    """An image in the json. ``height`` and ``width`` are in pixels."""

    id: Id
    height: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
    width: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
    file_name: str = ""
    coco_url: str = ""
    neg_category_ids: list[Id] | None = None
    not_exhaustive_category_ids: list[Id] | None = None

    @property
    def path(self) -> str:
        """Path below the image folder; the end of ``coco_url`` if there is no name, as in LVIS."""
        return self.file_name or "/".join(self.coco_url.split("/")[-2:])


class Annotation(msgspec.Struct, gc=False):
    """An annotated object. After validation all attributes except ``id`` are normalised.

    Attributes:
        image_id: id of its image, with the same type as in the image entry.
        category_id: id of its category, with the same type as in the category entry.
        id: as in the json; unused.
        bbox: x, y, width, height in pixels; computed from the mask if the json has none.
        area: in square pixels; the area of the box if the json has none.
        iscrowd: 1 for a region of many objects.
        segmentation: polygons, compressed run lengths, or None for an object without a mask.
    """

    image_id: Id
    category_id: Id
    id: Id | None = None
    bbox: list[float] | None = None
    area: float | None = None
    iscrowd: Annotated[int, msgspec.Meta(ge=0, le=1)] = 0
    segmentation: list[list[float]] | Rle | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the object's fields for Detectron2 and the official evaluations."""
        made: dict[str, Any] = {"bbox": self.bbox, "area": self.area, "iscrowd": self.iscrowd}
        mask = self.segmentation
        if mask is not None:
            made["segmentation"] = mask.to_dict() if isinstance(mask, Rle) else mask
        return made


class CategoryEntry(msgspec.Struct):
    """A class as written in the json."""

    id: Id
    name: str
    synonyms: list[str] | None = None
    frequency: str | None = None
    image_count: int | None = None
    supercategory: str | None = None


class AnnotationFile(msgspec.Struct):
    """Contents of an annotation json."""

    images: list[ImageEntry]
    annotations: list[Annotation]
    categories: list[CategoryEntry]


@contextmanager
def paused_collection() -> Iterator[None]:
    """Disable garbage collection, which would dominate the time to read large files."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def id_order(key: Id) -> tuple[bool, Id]:
    """Return a sort key for ids: numbers before text."""
    return isinstance(key, str), key


def find_id(known: Container[Id], key: Id) -> Id | None:
    """Return the id in ``known`` equal to ``key``, or to ``key`` as a number or text; else None."""
    if key in known:
        return key
    other = plain_number(key) if isinstance(key, str) else str(key)
    return other if other in known else None


def plain_number(key: Id) -> Id:
    """Return text that is a plain whole number as an int, anything else unchanged."""
    if isinstance(key, str) and key.isascii() and key.removeprefix("-").isdecimal():
        return int(key) if len(key) < 20 else key
    return key


def decode_file(path: Path, findings: Findings) -> AnnotationFile:
    """Read a json in COCO or LVIS format.

    Args:
        path: the file.
        findings: collects problems of single entries.

    Returns:
        the well-typed entries.

    Raises:
        ValueError: the file is missing or is not an annotation file.
    """
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise ValueError(
            f"expected annotations at {path}: {reason(error)}. Run datasets/check_datasets.py "
            "to see which files are expected where"
        ) from None
    with suppress(msgspec.DecodeError, RecursionError):
        return msgspec.json.decode(content, type=AnnotationFile)
    # wrong types, another encoding, NaN, or not json
    loaded = parse_json(content, path)
    if not isinstance(loaded, dict):
        raise ValueError(
            f"{path}: expected a json object with the keys images, annotations, categories, got a "
            f"{type(loaded).__name__}. Is it a results file?"
        )
    for section in AnnotationFile.__struct_fields__:
        if not isinstance(loaded.get(section), list):
            raise ValueError(
                f"{path}: expected a list under {section!r}, as COCO's and LVIS's formats have; "
                f"got the keys {sorted(loaded)!s:.200}"
            )
    return AnnotationFile(
        _entries(loaded["images"], "images", ImageEntry, findings),
        _entries(loaded["annotations"], "annotations", Annotation, findings),
        _entries(loaded["categories"], "categories", CategoryEntry, findings),
    )


def reason(error: OSError | ValueError) -> str:
    """Return why a file cannot be opened, without its name."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def parse_json(content: bytes, path: Path) -> Any:
    """Parse json in any Unicode encoding, with NaN and infinities.

    Args:
        content: contents of the file.
        path: the file, for the error message.

    Raises:
        ValueError: the content is not json.
    """
    try:
        return json.loads(decode_text(content, f"{path}: expected json"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a json file ({error})") from None


def known_fields(item: Mapping[str, Any], kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the json values that ``kind`` has fields for; drop null and NaN (from pandas)."""
    fields = {key: item.get(key) for key in kind.__struct_fields__}
    return {key: value for key, value in fields.items() if value is not None and value == value}


def _entries(
    items: list[Any], section: str, kind: type[msgspec.Struct], findings: Findings
) -> list[Any]:
    """Decode the entries of a section one by one; numbers may be text."""
    made = []
    for index, item in enumerate(items):
        where = f"{section}[{index}]"
        if not isinstance(item, dict):
            findings.add(f"invalid {section}", f"{where}: expected an object, got {item!r:.40}")
            continue
        known = known_fields(item, kind)
        if kind is Annotation:
            _normalise(known, where, findings)
        elif kind is CategoryEntry:
            if type(known.get("name")) in (int, float):
                known["name"] = str(known["name"])
            if not isinstance(known.get("supercategory"), str):
                known.pop("supercategory", None)
        try:
            made.append(msgspec.convert(known, kind, strict=False))
        except msgspec.ValidationError as error:
            findings.add(f"invalid {section}", located(error, where))
    return made


def located(error: Exception, where: str) -> str:
    """Return a msgspec error prefixed with its path: ``annotations[3].area: expected float, ...``.

    Args:
        error: the error.
        where: the entry.
    """
    text, _, place = str(error).partition(" - at `$")
    return f"{where}{place.rstrip('`')}: {text[:1].lower()}{text[1:].replace('`', '')}"


_CROWD = {"0": 0, "1": 1, "false": 0, "true": 1}


def _normalise(item: dict[str, Any], where: str, findings: Findings) -> None:
    """Normalise other spellings of an annotation's values in place."""
    if "iscrowd" in item:
        item["iscrowd"] = _CROWD.get(str(item["iscrowd"]).lower(), item["iscrowd"])
    if item.get("area") == []:
        del item["area"]
    if "segmentation" in item:
        try:
            mask = read_segmentation(item.pop("segmentation"))
        except ValueError as error:
            findings.add("masks", f"{where}: {error}")
        else:
            item["segmentation"] = msgspec.to_builtins(mask)
