"""Detections on disk, in the results format of COCO and LVIS.

A json array of ``{"image_id", "category_id", "bbox": [x, y, width, height], "score",
"segmentation": {"size": [height, width], "counts": "…"}}``, which both official packages read. It
is written and read piece by piece: 20,000 pictures with 300 masks each make two gigabytes of text
and several times as much in Python's objects.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TextIO

import msgspec
import torch
from detectron2.structures import Instances

from vild.data.entries import Id, located
from vild.data.files import atomic_path
from vild.data.masks import Rle, read_segmentation
from vild.evaluation.encoding import encode_masks

Results = str | os.PathLike[str] | Iterable[Mapping[str, Any]]

_CHUNK = 1 << 20  # characters read or bytes copied at a time
_LONGEST = 1 << 26  # characters; no detection is longer, so the json is broken
_SPACE = re.compile(r"[ \t\r\n]*")


class ResultsWriter:
    """Writes detections as they come; the file has its name only once it is whole.

    As a context manager it is closed at the end of the block, and abandoned after an error.

    Example:
        >>> with ResultsWriter("results.json") as writer:  # doctest: +SKIP
        ...     writer.add(image_id, outputs["instances"], dataset_ids)

    Args:
        path: file to write; its folder is made.
        masks: whether to write the masks, which takes most of the time and of the file.
    """

    def __init__(self, path: str | os.PathLike[str], *, masks: bool = True) -> None:
        self.path = Path(path)
        self.detections = 0
        self._masks = masks
        self._stack = ExitStack()
        temporary = self._stack.enter_context(atomic_path(self.path))
        self._file: TextIO = self._stack.enter_context(temporary.open("w", encoding="utf-8"))
        self._file.write("[")

    def __enter__(self) -> ResultsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def add(self, image_id: Id, instances: Instances, dataset_ids: Sequence[Id]) -> None:
        """Write the detections of one picture; there may be none.

        Args:
            image_id: the picture's id in the annotations.
            instances: R detections in the pixels of the original picture: ``pred_boxes`` XYXY,
                ``scores`` (R,), ``pred_classes`` (R,) rows of the classifier and, if masks are
                wanted and there are any, ``pred_masks`` (R, H, W) bool. On any device.
            dataset_ids: the category id of each row of the classifier.

        Raises:
            ValueError: a class without an id, a number that is not finite, masks of another form,
                or a closed writer. Nothing of the picture is then written.
        """
        if self._file.closed:
            raise ValueError(f"{self.path} is closed already; make a new writer")
        items = coco_results(image_id, instances, dataset_ids, self._masks)
        lines = (json.dumps(item, separators=(",", ":"), allow_nan=False) for item in items)
        text = ",\n".join(lines)
        if text:
            self._file.write((",\n" if self.detections else "\n") + text)
            self.detections += len(items)

    def close(self) -> Path:
        """Finish the file and give it its name, which is returned. Closing twice does nothing."""
        if not self._file.closed:
            self._file.write("\n]\n")
            self._stack.close()
        return self.path

    def abandon(self) -> None:
        """Remove what was written; a file of an earlier run stays. Nothing after ``close``."""
        if not self._file.closed:
            # an error in the block is what keeps atomic_path from renaming
            with suppress(_AbandonedError), self._stack:
                raise _AbandonedError


class _AbandonedError(Exception):
    """The writer's own, so that no other error is suppressed."""


def coco_results(
    image_id: Id, instances: Instances, dataset_ids: Sequence[Id], masks: bool = True
) -> list[dict[str, Any]]:
    """A picture's detections in the format, in their order.

    Args:
        image_id: the picture's id.
        instances: see :meth:`ResultsWriter.add`.
        dataset_ids: the category id of each row of the classifier.
        masks: whether masks are wanted, where there are any.

    Raises:
        ValueError: see there.
    """
    if not len(instances):
        return []
    boxes = instances.pred_boxes.tensor.detach().float().cpu()
    scores = instances.scores.detach().float().cpu()
    rows = instances.pred_classes.tolist()
    if not (torch.isfinite(boxes).all() and torch.isfinite(scores).all()):
        raise ValueError(
            f"expected finite boxes and scores, got NaN or infinity for image {image_id}. Did the "
            "training diverge?"
        )
    if not 0 <= min(rows) <= max(rows) < len(dataset_ids):
        raise ValueError(
            f"expected classes below {len(dataset_ids)}, got {max(rows, key=abs)} for image "
            f"{image_id}. The detector must have the vocabulary of the data set."
        )
    xywh = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)
    items = [
        {"image_id": image_id, "category_id": dataset_ids[row], "bbox": box, "score": score}
        for row, box, score in zip(rows, xywh.tolist(), scores.tolist(), strict=True)
    ]
    if masks and instances.has("pred_masks"):
        encoded = encode_masks(instances.pred_masks)
        for item, segmentation in zip(items, encoded, strict=True):
            item["segmentation"] = segmentation
    return items


def merge_parts(parts: Sequence[str | os.PathLike[str]], path: str | os.PathLike[str]) -> Path:
    """Join json arrays to one by copying their text, whatever their size.

    Args:
        parts: files that :class:`ResultsWriter` closed, in the order wanted.
        path: file to write, whole or not at all. The parts stay.

    Raises:
        ValueError: a part is missing or is no json array.
    """
    target = Path(path)
    with atomic_path(target) as temporary, temporary.open("wb") as out:
        out.write(b"[")
        empty = True
        for part in map(Path, parts):
            try:
                source = part.open("rb")
            except OSError as error:
                raise ValueError(
                    f"expected a part of the results at {part}: {error.strerror}. All processes "
                    "must write to the same folder."
                ) from None
            with source:
                begin, end = _inside(source, part)
                if begin < end:
                    out.write(b"\n" if empty else b",\n")
                    _copy(source, out, begin, end)
                    empty = False
        out.write(b"\n]\n")
    return target


def _inside(source: BinaryIO, part: Path) -> tuple[int, int]:
    """Where in an array its items begin and end, without the blanks around."""
    head = source.read(_CHUNK)
    size = source.seek(0, os.SEEK_END)
    start = max(0, size - _CHUNK)
    source.seek(start)
    tail = source.read().rstrip()
    if not head.lstrip().startswith(b"[") or not tail.endswith(b"]"):
        raise ValueError(f"{part} is no whole json array: was its writing cut off? Run it again.")
    begin = head.index(b"[") + 1
    begin += len(head[begin:]) - len(head[begin:].lstrip())
    return begin, start + len(tail[:-1].rstrip())


def _copy(source: BinaryIO, out: BinaryIO, begin: int, end: int) -> None:
    source.seek(begin)
    while begin < end:
        text = source.read(min(_CHUNK, end - begin))
        out.write(text)
        begin += len(text)


class Detection(msgspec.Struct):
    """One entry of a results file.

    Attributes:
        image_id: as in the annotations.
        category_id: as in the annotations.
        score: finite.
        bbox: x, y, width, height in pixels, finite; None if there is a mask only.
        segmentation: polygons or run lengths, not yet compared with the image; None without a mask.
    """

    image_id: Id
    category_id: Id
    score: float
    bbox: list[float] | None = None
    segmentation: list[list[float]] | Rle | None = None


def read_results(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All detections of a file; see :func:`iterate_results`, which needs less memory."""
    return list(iterate_results(path))


def iterate_results(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """The detections of a file as json objects, one by one, without ever holding all of them.

    Raises:
        ValueError: the file is missing, no json, no list or cut off; or see
            :func:`checked_detection`.
    """
    return (item for item, _ in _checked_items(Path(path)))


def _checked_items(file: Path) -> Iterator[tuple[dict[str, Any], Detection]]:
    """Each json object of a results file with its typed detection."""
    try:
        with file.open(encoding="utf-8-sig") as stream:
            for index, item in enumerate(_array_items(stream, str(file))):
                yield item, checked_detection(item, index, str(file))
    except OSError as error:
        raise ValueError(f"expected results at {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no json file ({error})") from None


def iterate_detections(results: Results) -> Iterator[Detection]:
    """The detections of a file, or of such objects in memory, typed.

    Raises:
        ValueError: see :func:`iterate_results`.
    """
    if isinstance(results, (str, os.PathLike)):
        return (detection for _, detection in _checked_items(Path(results)))
    return (checked_detection(item, n, "the results") for n, item in enumerate(results))


def _array_items(stream: TextIO, where: str) -> Iterator[Any]:
    """The items of a json array."""
    scan = json.JSONDecoder().raw_decode
    text = stream.read(_CHUNK)
    at = _space(text, 0)
    if text[at : at + 1] != "[":
        raise ValueError(
            f"{where}: expected a list of detections, got "
            + (f"{text[at : at + 20]!r}…" if text else "an empty file")
            + ". Is it a results file in COCO's format?"
        )
    at, count, separated = at + 1, 0, True
    while True:
        at = _space(text, at)
        if at == len(text):
            text, at = stream.read(_CHUNK), 0
            if not text:
                raise ValueError(
                    f"{where} is cut off after {count} detections. Run the evaluation that wrote "
                    "it again, or copy the file again."
                )
        elif text[at] == "]" and (separated is False or not count):
            break
        elif not separated:
            if text[at] != ",":
                raise ValueError(f"{where}: expected ',' after detection {count - 1}")
            at, separated = at + 1, True
        else:
            try:
                item, at = scan(text, at)
            except json.JSONDecodeError as error:
                # mostly the end of the chunk; the doubling keeps the time of a long item linear
                more = stream.read(max(_CHUNK, len(text) - at))
                if not more or len(text) - at > _LONGEST:
                    raise ValueError(
                        f"{where}: detection {count} is cut off or no json ({error.msg}). Run "
                        "the evaluation that wrote it again, or copy the file again."
                    ) from None
                text, at = text[at:] + more, 0
                continue
            except (RecursionError, ValueError) as error:
                raise ValueError(f"{where}: detection {count} is no json ({error})") from None
            yield item
            count, separated = count + 1, False
    rest = text[at + 1 :].strip() or stream.read(_CHUNK).strip()
    if rest:
        raise ValueError(f"{where}: expected nothing after the list, got {rest[:20]!r}…")


def _space(text: str, at: int) -> int:
    """The next position that is no blank."""
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def checked_detection(item: Any, index: int, where: str) -> Detection:
    """A detection from its json; plain numbers may be text.

    Args:
        item: what the json or the caller has.
        index: its number, for messages.
        where: its file, for messages.

    Raises:
        ValueError: a key is missing, a value has another type or is not finite, there is neither a
            box nor a mask, or the mask has none of the known forms.
    """
    try:
        if not isinstance(item, Mapping):
            raise ValueError(f"expected an object, got {item!r:.60}")
        fields = Detection.__struct_fields__
        known = {k: item[k] for k in fields if item.get(k) is not None and item[k] == item[k]}
        mask = read_segmentation(known.pop("segmentation", None))
        if known.get("bbox") == []:
            del known["bbox"]
        made = msgspec.convert(known, Detection, strict=False)
        made.segmentation = mask
        if made.bbox is None and mask is None:
            raise ValueError("expected a 'bbox' or a 'segmentation'")
        if made.bbox is not None and (len(made.bbox) != 4 or not isfinite(sum(made.bbox))):
            raise ValueError(f"expected a box of 4 finite numbers, got {made.bbox}")
        if not isfinite(made.score):
            raise ValueError(f"expected a finite score, got {made.score}")
    except msgspec.ValidationError as error:
        raise ValueError(f"{where}: {located(error, f'detection {index}')}") from None
    except ValueError as error:
        raise ValueError(f"{where}: detection {index}: {error}") from None
    return made
