"""Exchange with Detectron2's proposal files (``DATASETS.PROPOSAL_FILES_TRAIN``).

Detectron2 keeps precomputed proposals in a pickle (data/build.py, ``load_proposals_into_dataset``):
a dict of ``ids``, ``boxes`` (a list of (R, 4) arrays), ``objectness_logits`` (a list of (R,)
arrays) and ``bbox_mode``; older files say ``indexes`` and ``scores``.

Unpickling runs whatever code the file asks for. The reader here takes a pickle only where the
caller allows it, and even then nothing in the file is run: each name that the format needs stands
for a function of this module that rebuilds plain numbers and nothing else, and any other name is
an error. Not even numpy's own unpickling sees the data, which trusts what it is given.

Legend: R proposals of a picture.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.structures import BoxMode

from vild.data.files import atomic_path

# keys of Detectron's files -> of Detectron2's
_OLD_KEYS = {"indexes": "ids", "scores": "objectness_logits"}
_KEYS = ("ids", "boxes", "objectness_logits")


class ImageProposals(NamedTuple):
    """Proposals of one picture.

    Attributes:
        image_id: as in the annotations.
        boxes: (R, 4) float32 XYXY in pixels.
        objectness: (R,) float32, higher is better; of a row of ``boxes`` each.
    """

    image_id: int | str
    boxes: np.ndarray
    objectness: np.ndarray


def write_detectron2_proposals(
    path: str | os.PathLike[str],
    records: Iterable[tuple[int | str, np.ndarray, np.ndarray]],
) -> None:
    """Write proposals as Detectron2 reads them. All of them are held in memory, as there.

    Args:
        path: the file; replaced when the new one is whole.
        records: of each picture its id, boxes (R, 4) XYXY in pixels and objectness (R,).

    Raises:
        ValueError: a record is malformed or an id is there twice; nothing is written then.
    """
    checked = _checked(records, str(path))
    contents = {
        "ids": [record.image_id for record in checked],
        "boxes": [record.boxes for record in checked],
        "objectness_logits": [record.objectness for record in checked],
        # the number, as Detectron2's own evaluator writes it
        "bbox_mode": BoxMode.XYXY_ABS.value,
    }
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        pickle.dump(contents, file, protocol=4)


def read_detectron2_proposals(
    path: str | os.PathLike[str], allow_pickle: bool = False
) -> list[ImageProposals]:
    """Read proposals of a file in Detectron2's format, or Detectron's.

    Args:
        path: the file.
        allow_pickle: whether a pickle may be read at all. Nothing in it is run (see the module);
            a hostile file can still fill the memory.

    Returns:
        the pictures in the file's order, their proposals too.

    Raises:
        ValueError: pickles are not allowed; the file is missing, cut short, asks for code, or
            holds no valid proposals.
    """
    if not allow_pickle:
        raise ValueError(
            f"{path} is a pickle, a kind of file that can run code when it is read, and pickles "
            "are not allowed here. If you know where the file comes from, pass allow_pickle=True "
            "(--allow-pickle); then it is read without running anything in it."
        )
    contents = _contents(Path(path))
    lengths = {key: len(contents[key]) for key in _KEYS}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"{path}: expected one entry an image under each of {', '.join(_KEYS)}, got {lengths}. "
            "Write the file again"
        )
    mode = _box_mode(contents.get("bbox_mode", BoxMode.XYXY_ABS), path)
    records = []
    for image_id, boxes, objectness in zip(*(contents[key] for key in _KEYS), strict=True):
        if mode == BoxMode.XYWH_ABS:
            # in float64: an edge is rounded once
            boxes = _numbers(boxes, 2, np.float64, f"{path}: image {image_id!r}: boxes")
            if boxes.shape[1:] == (4,):
                boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        records.append((image_id, boxes, objectness))
    return _checked(records, str(path))


def _contents(path: Path) -> dict[str, Any]:
    """The file's dict with Detectron2's keys and plain values."""
    if not path.is_file():
        raise ValueError(f"expected proposals at {path}, but there is no such file")
    try:
        with path.open("rb") as file:
            contents = _PlainUnpickler(file, encoding="latin1").load()  # as Detectron2 does
    except _ForbiddenError as error:
        raise ValueError(
            f"{path}: {error} Detectron2's proposal files need no such thing: do not trust this "
            "file, and do not load it with pickle to look into it"
        ) from None
    # Python's documentation: a damaged pickle may raise nearly anything
    except Exception as error:
        raise ValueError(
            f"{path} is cut short or no pickle of Detectron2's kind ({type(error).__name__}: "
            f"{error}). Copy or write it again"
        ) from None
    if not isinstance(contents, dict):
        raise ValueError(
            f"{path}: expected a dict with the keys {', '.join(_KEYS)}, got a "
            f"{type(contents).__name__}. Is it a file of another kind?"
        )
    contents = {_OLD_KEYS.get(key, key): _plain(value) for key, value in contents.items()}
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
    """A mode that can be read: XYXY_ABS or XYWH_ABS."""
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
    """The records with int or str ids and float32 arrays; ValueError where one is malformed."""
    checked: list[ImageProposals] = []
    seen: set[str] = set()
    for image_id, boxes, objectness in records:
        if isinstance(image_id, np.integer | np.str_):
            image_id = image_id.item()
        if isinstance(image_id, bool) or not isinstance(image_id, int | str):
            raise ValueError(
                f"{where}: expected whole numbers or texts as image ids, got {image_id!r}"
            )
        if str(image_id) in seen:  # Detectron2 compares them as text
            raise ValueError(
                f"{where}: image {image_id!r} is there more than once. Keep one set of proposals "
                "for each image"
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
    """Finite numbers as an array of its own; ValueError where they are no such array."""
    try:
        with np.errstate(over="ignore"):  # infinity is found below
            array = np.array(_plain(values), dtype=dtype)
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


class _ForbiddenError(Exception):
    """A pickle asks for something that the format does not need."""


class _PlainUnpickler(pickle.Unpickler):
    """Rebuilds numbers, texts, lists, dicts and, as :class:`_Array`, numpy's arrays of numbers."""

    def find_class(self, module: str, name: str) -> Any:
        stand_in = _stand_ins().get((module, name))
        if stand_in is None:
            raise _ForbiddenError(
                f"expected a pickle of plain arrays, got one with {module}.{name}."
            )
        return stand_in


class _Dtype:
    """Stands for a numpy.dtype: called like it, then told the byte order."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise ValueError(f"expected a byte order, got {order!r}")
        self.code = order + self.code.lstrip("<>|=")

    def read(self, data: bytes | bytearray | str) -> np.ndarray:
        """A flat array of the bytes."""
        dtype = np.dtype(self.code)
        if dtype.kind not in "biufU":  # numbers, and texts as ids
            raise _ForbiddenError(f"expected arrays of numbers, got one of {dtype}.")
        # Python 2's bytes come as text
        return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype)


class _Array:
    """Stands for a numpy.ndarray; ``value`` is the array once its state is set."""

    value = np.zeros(0)

    def __setstate__(self, state: tuple[int, Any, _Dtype, bool, bytes | str]) -> None:
        _, shape, dtype, fortran, data = state
        self.value = dtype.read(data).reshape(shape, order="F" if fortran else "C")


def _plain(value: Any) -> Any:
    """An array in place of its stand-in; anything else as it is."""
    return value.value if isinstance(value, _Array) else value


def _stand_ins() -> dict[tuple[str, str], Callable[..., Any]]:
    """What each name in a file stands for. Made anew each time: a pickle can alter attributes."""

    def new_array(*_: Any) -> _Array:
        return _Array()

    def array_from_buffer(
        data: bytes | bytearray, dtype: _Dtype, shape: Any, order: Any, axes: Any = None
    ) -> np.ndarray:
        if order not in ("C", "F") or axes is not None:
            raise ValueError(f"expected an array in the order C or F, got {order!r}")
        return dtype.read(data).reshape(shape, order=order)

    def scalar(dtype: _Dtype, data: bytes | str) -> Any:
        return dtype.read(data)[0].item()

    def latin1(text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise _ForbiddenError(f"expected bytes as latin1, got the codec {encoding!r}.")
        return text.encode("latin1")

    names: dict[tuple[str, str], Callable[..., Any]] = {
        ("numpy", "ndarray"): new_array,
        ("numpy", "dtype"): lambda *arguments: _Dtype(*arguments),
        # bytes in old protocols, and bytes without any
        ("_codecs", "encode"): latin1,
        ("__builtin__", "bytes"): lambda: b"",
        # its number: the members are objects of the whole program
        ("detectron2.structures.boxes", "BoxMode"): lambda number: number,
    }
    for core in ("numpy.core", "numpy._core"):  # before and since numpy 2
        names[f"{core}.multiarray", "_reconstruct"] = new_array
        names[f"{core}.multiarray", "scalar"] = scalar
        names[f"{core}.numeric", "_frombuffer"] = array_from_buffer  # protocol 5
    return names
