"""Read and write Detectron2's proposal files (``DATASETS.PROPOSAL_FILES_TRAIN``).

Detectron2 keeps precomputed proposals in a pickle (data/build.py, ``load_proposals_into_dataset``):
a dict of ``ids``, ``boxes`` (a list of (R, 4) arrays), ``objectness_logits`` (a list of (R,)
arrays) and ``bbox_mode``; older files use the keys ``indexes`` and ``scores``.

The reader accepts pickles only if the caller allows it, and even then runs no code from them
(see :mod:`vild.storage.safe_pickle`).

Legend: R proposals of an image.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.structures import BoxMode

from vild.storage.safe_pickle import ForbiddenError, load_plain
from vild.utils.files import atomic_path

# keys in Detectron's files -> keys in Detectron2's
_OLD_KEYS = {"indexes": "ids", "scores": "objectness_logits"}
_KEYS = ("ids", "boxes", "objectness_logits")
# read as an int, since enum members are objects shared by the whole program
_BOX_MODE = ("detectron2.structures.boxes", "BoxMode")


class ImageProposals(NamedTuple):
    """Proposals of one image.

    Attributes:
        image_id: as in the annotations.
        boxes: (R, 4) float32 XYXY in pixels.
        objectness: (R,) float32, higher is better; one per row of ``boxes``.
    """

    image_id: int | str
    boxes: np.ndarray
    objectness: np.ndarray


def write_detectron2_proposals(
    path: str | os.PathLike[str],
    records: Iterable[tuple[int | str, np.ndarray, np.ndarray]],
) -> None:
    """Write proposals in Detectron2's format. All of them are held in memory.

    Args:
        path: the file; written atomically.
        records: for each image, its id, boxes (R, 4) XYXY in pixels and objectness (R,).

    Raises:
        ValueError: a record is malformed or an id occurs twice; nothing is written.
    """
    checked = _checked(records, str(path))
    contents = {
        "ids": [record.image_id for record in checked],
        "boxes": [record.boxes for record in checked],
        "objectness_logits": [record.objectness for record in checked],
        # an int, as Detectron2's own evaluator writes it
        "bbox_mode": BoxMode.XYXY_ABS.value,
    }
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        pickle.dump(contents, file, protocol=4)


def read_detectron2_proposals(
    path: str | os.PathLike[str], allow_pickle: bool = False
) -> list[ImageProposals]:
    """Read proposals from a file in Detectron2's or Detectron's format.

    Args:
        path: the file.
        allow_pickle: whether reading a pickle is allowed. No code in it is run (see the module),
            but a malicious file can still exhaust the memory.

    Returns:
        images and their proposals, in the file's order.

    Raises:
        ValueError: pickles are not allowed; the file is missing, truncated, refers to code, or
            holds no valid proposals.
    """
    if not allow_pickle:
        raise ValueError(
            f"{path} is a pickle, a format that can run code when it is read, so pickles are not "
            "allowed by default. If you trust its source, pass allow_pickle=True "
            "(--allow-pickle); it is then read without running code from it."
        )
    contents = _contents(Path(path))
    lengths = {key: len(contents[key]) for key in _KEYS}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"{path}: expected one entry per image under each of {', '.join(_KEYS)}, got "
            f"{lengths}. Write the file again"
        )
    mode = _box_mode(contents.get("bbox_mode", BoxMode.XYXY_ABS), path)
    records = []
    for image_id, boxes, objectness in zip(*(contents[key] for key in _KEYS), strict=True):
        if mode == BoxMode.XYWH_ABS:
            # float64, so that coordinates are rounded only once
            boxes = _numbers(boxes, 2, np.float64, f"{path}: image {image_id!r}: boxes")
            if boxes.shape[1:] == (4,):
                boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        records.append((image_id, boxes, objectness))
    return _checked(records, str(path))


def _contents(path: Path) -> dict[str, Any]:
    """Return the file's dict with Detectron2's keys and plain values."""
    if not path.is_file():
        raise ValueError(f"expected proposals at {path}: no such file")
    try:
        with path.open("rb") as file:
            contents = load_plain(file, {_BOX_MODE: lambda number: number})
    except ForbiddenError as error:
        raise ValueError(
            f"{path}: {error} Detectron2's proposal files never contain this: do not trust this "
            "file, and do not load it with pickle to inspect it"
        ) from None
    # a damaged pickle may raise almost any exception (Python's documentation)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path} is truncated or not a proposal file of Detectron2 ({type(error).__name__}: "
            f"{reason}). Copy or write it again"
        ) from None
    if not isinstance(contents, dict):
        raise ValueError(
            f"{path}: expected a dict with the keys {', '.join(_KEYS)}, got a "
            f"{type(contents).__name__}. Is it a file of another kind?"
        )
    contents = {_OLD_KEYS.get(key, key): value for key, value in contents.items()}
    for key in _KEYS:
        if not _is_list(contents.get(key)):
            raise ValueError(
                f"{path}: expected a list under {key!r}, got "
                + (f"a {type(contents[key]).__name__}" if key in contents else "no such key")
                + f"; the keys are {sorted(map(str, contents))}"
            )
    return contents


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _box_mode(value: Any, path: str | os.PathLike[str]) -> BoxMode:
    """Return a supported box mode: XYXY_ABS or XYWH_ABS."""
    supported = (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    if not isinstance(value, int) or value not in supported:
        names = {mode.value: mode.name for mode in BoxMode}
        raise ValueError(
            f"{path}: expected the bbox_mode XYXY_ABS (0) or XYWH_ABS (1), got "
            f"{names.get(value, 'an unknown one') if isinstance(value, int) else 'no number'} "
            f"({value!r}). Convert the boxes to pixels, corners or width and height"
        )
    return BoxMode(value)


def _checked(records: Iterable[tuple[Any, Any, Any]], where: str) -> list[ImageProposals]:
    """Return records with int or str ids and float32 arrays; raise ValueError if malformed."""
    checked: list[ImageProposals] = []
    seen: set[str] = set()
    for image_id, boxes, objectness in records:
        if isinstance(image_id, np.integer | np.str_):
            image_id = image_id.item()
        if isinstance(image_id, bool) or not isinstance(image_id, int | str):
            raise ValueError(
                f"{where}: expected integers or strings as image ids, got {image_id!r}"
            )
        if str(image_id) in seen:  # Detectron2 compares ids as strings
            raise ValueError(
                f"{where}: expected every image once, got {image_id!r} more than once. Keep one "
                "set of proposals for each image"
            )
        seen.add(str(image_id))
        image = f"{where}: image {image_id!r}"
        boxes = _numbers(boxes, 2, np.float32, f"{image}: boxes")
        objectness = _numbers(objectness, 1, np.float32, f"{image}: objectness")
        if boxes.shape[1] != 4 or len(objectness) != len(boxes):
            raise ValueError(
                f"{image}: expected boxes of shape (R, 4) and one objectness each, (R,), got "
                f"{boxes.shape} and {objectness.shape}"
            )
        flat = np.flatnonzero((boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1]))
        if len(flat):
            raise ValueError(
                f"{image}: expected boxes as x1, y1, x2, y2 with x2 > x1 and y2 > y1, got "
                f"{boxes[flat[0]].tolist()} in row {flat[0]}. Leave empty boxes out; if these are "
                "widths and heights, the bbox_mode is wrong"
            )
        checked.append(ImageProposals(image_id, boxes, objectness))
    return checked


def _numbers(values: Any, dimensions: int, dtype: type[np.floating], what: str) -> np.ndarray:
    """Return a new array of finite numbers; raise ValueError for other values."""
    try:
        with np.errstate(over="ignore"):  # infinity is detected below
            array = np.array(values, dtype=dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: expected an array of numbers, got {error}") from None
    if array.ndim != dimensions:
        raise ValueError(
            f"{what}: expected {dimensions} dimensions, got the shape {array.shape}. Without "
            "proposals, write boxes of shape (0, 4) and objectness of shape (0,)"
        )
    if not np.isfinite(array).all():
        raise ValueError(
            f"{what}: expected finite numbers, got NaN or infinity. Did the proposal network "
            "diverge?"
        )
    return array
