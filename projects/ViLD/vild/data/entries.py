"""The entries of annotation files in COCO or LVIS format, typed.

A well-typed file is decoded at once by msgspec. Others are read entry by entry, which takes longer
and accepts what annotation tools write: null for missing, numbers as text, masks in other forms.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec

from vild.data.files import decode_text
from vild.data.masks import Rle, read_segmentation
from vild.data.problems import Findings

Id = int | str


class ImageEntry(msgspec.Struct):
    """An image of a json. ``height`` and ``width`` are in pixels."""

    id: Id
    height: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
    width: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
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
    iscrowd: Annotated[int, msgspec.Meta(ge=0, le=1)] = 0
    segmentation: list[list[float]] | Rle | None = None

    def to_dict(self) -> dict[str, Any]:
        """What Detectron2 and the official evaluations want to know of the object itself."""
        made: dict[str, Any] = {"bbox": self.bbox, "area": self.area, "iscrowd": self.iscrowd}
        mask = self.segmentation
        if mask is not None:
            made["segmentation"] = mask.to_dict() if isinstance(mask, Rle) else mask
        return made


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


def find_id(known: Container[Id], key: Id) -> Id | None:
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
        findings: receives what is wrong with single entries.

    Returns:
        the entries that are well typed.

    Raises:
        ValueError: the file is missing, or holds something else.
    """
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise ValueError(
            f"expected annotations at {path}: {reason(error)}. Run datasets/check_datasets.py "
            "to see which files are expected where"
        ) from None
    with suppress(msgspec.DecodeError, RecursionError):
        return msgspec.json.decode(content, type=AnnotationFile)
    # another type somewhere, another encoding, NaN, or no json at all
    loaded = parse_json(content, path)
    if not isinstance(loaded, dict):
        raise ValueError(
            f"{path}: expected a json object with the keys images, annotations, categories, got a "
            f"{type(loaded).__name__}. Is it a results file instead of annotations?"
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
    """Why a file cannot be opened, without its name."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def parse_json(content: bytes, path: Path) -> Any:
    """Parse json in any Unicode encoding, with NaN and infinities.

    Args:
        content: of the file.
        path: the file, for the error.

    Raises:
        ValueError: it is not json.
    """
    try:
        return json.loads(decode_text(content, f"{path}: expected json"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a json file ({error})") from None


def known_fields(item: Mapping[str, Any], kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The values of a json object that ``kind`` has; null and NaN (from pandas) are missing."""
    fields = {key: item.get(key) for key in kind.__struct_fields__}
    return {key: value for key, value in fields.items() if value is not None and value == value}


def _entries(
    items: list[Any], section: str, kind: type[msgspec.Struct], findings: Findings
) -> list[Any]:
    """Entries of a section one by one; plain numbers may be text."""
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
    if item.get("area") == []:
        del item["area"]
    if "segmentation" in item:
        try:
            mask = read_segmentation(item.pop("segmentation"))
        except ValueError as error:
            findings.add("masks", f"{where}: {error}")
        else:
            item["segmentation"] = msgspec.to_builtins(mask)
