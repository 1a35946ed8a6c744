"""Reading and writing of detections in the results format of COCO and LVIS.

The format is a json array of ``{"image_id", "category_id", "bbox": [x, y, width, height], "score",
"segmentation": {"size": [height, width], "counts": "…"}}``, which both official packages read. It
is read and written incrementally: 20,000 images with 300 masks each make two gigabytes of text, and
several times as much as Python objects.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

import msgspec
import torch
from detectron2.structures import Instances

from vild.data.coco_format import Id, find_id, known_fields, located, parse_json, reason
from vild.data.masks import Rle, read_segmentation
from vild.evaluation.encoding import encode_masks
from vild.utils.files import atomic_path

if TYPE_CHECKING:
    from typing_extensions import Self

Results = str | os.PathLike[str] | Iterable[Mapping[str, Any]]


class DetectionsWriter:
    """An incremental, atomic writer of a text file with detections.

    As a context manager it closes the file at the end of the block, and discards it on an error.

    Args:
        path: file to write; its folder is created.
        begin: first characters of the file; by default those of a json array.
        end: last characters of the file.
    """

    def __init__(self, path: str | os.PathLike[str], begin: str = "[", end: str = "\n]\n") -> None:
        self.path, self._end, self._separator = Path(path), end, "\n"
        self._stack = ExitStack()
        temporary = self._stack.enter_context(atomic_path(self.path))
        opened = temporary.open("w", encoding="utf-8", newline="")
        self._file: TextIO = self._stack.enter_context(opened)
        self._file.write(begin)

    def __enter__(self) -> Self:
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

    def write_items(self, items: Sequence[str]) -> None:
        """Append items, given as json, to the array."""
        if items:
            self._file.write(self._separator + ",\n".join(items))
            self._separator = ",\n"

    def close(self) -> Path:
        """Finish the file, rename it to its final path and return that. May be called twice."""
        if not self._file.closed:
            self._file.write(self._end)
            self._stack.close()
        return self.path

    def abandon(self) -> None:
        """Discard what was written; an existing file is kept. Does nothing after ``close``."""
        if not self._file.closed:
            # raising an error inside the block keeps atomic_path from renaming
            with suppress(_AbandonedError), self._stack:
                raise _AbandonedError


class ResultsWriter(DetectionsWriter):
    """A writer of a results file.

    Example:
        >>> with ResultsWriter("results.json") as writer:  # doctest: +SKIP
        ...     writer.add(image_id, outputs["instances"], dataset_ids)

    Args:
        path: file to write; its folder is created.
        masks: whether to write masks, which take most of the time and of the file size.
    """

    def __init__(self, path: str | os.PathLike[str], *, masks: bool = True) -> None:
        super().__init__(path)
        self._masks = masks

    def add(self, image_id: Id, instances: Instances, dataset_ids: Sequence[Id]) -> None:
        """Write the detections of one image; there may be none.

        Args:
            image_id: id of the image in the annotations.
            instances: R detections in pixels of the original image: ``pred_boxes`` XYXY,
                ``scores`` (R,), ``pred_classes`` (R,) rows of the classifier and, to write masks,
                ``pred_masks`` (R, H, W) bool. On any device.
            dataset_ids: the category id of each row of the classifier.

        Raises:
            ValueError: a class has no id, a number is non-finite, the masks have another shape or
                dtype, or the writer is closed. Nothing of this image is written then.
        """
        if self._file.closed:
            raise ValueError(f"{self.path} is already closed: create a new writer")
        items = coco_results(image_id, instances, dataset_ids, self._masks)
        self.write_items(
            [json.dumps(item, separators=(",", ":"), allow_nan=False) for item in items]
        )


class _AbandonedError(Exception):
    """Raised only by the writer, so that no other error is suppressed."""


def coco_results(
    image_id: Id, instances: Instances, dataset_ids: Sequence[Id], masks: bool = True
) -> list[dict[str, Any]]:
    """Convert an image's detections to the results format, in the same order.

    Args:
        image_id: id of the image.
        instances: see :meth:`ResultsWriter.add`.
        dataset_ids: the category id of each row of the classifier.
        masks: whether to include masks, if present.

    Raises:
        ValueError: see :meth:`ResultsWriter.add`.
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
            f"{image_id}. The detector must have the vocabulary of the dataset."
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
    """Concatenate json arrays of any size by copying their text.

    Args:
        parts: finished files of :class:`ResultsWriter`, in the order of the output.
        path: file to write, atomically. The parts are kept.

    Raises:
        ValueError: a part is missing or is not a json array.
    """
    target = Path(path)
    with atomic_path(target) as temporary, temporary.open("wb") as out:
        out.write(b"[")
        separator = b"\n"
        for part in map(Path, parts):
            try:
                text = _mapped(part)
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"expected a part of the results at {part}: {reason(error)}. All processes "
                    "must write to the same folder."
                ) from None
            with text:
                # from the first detection to the last; only brackets surround them
                begin, end = text.find(b"{"), text.rfind(b"}") + 1
                around = text[:begin] + text[end:] if end else text[:]
                if around.split() not in ([b"[", b"]"], [b"[]"]):
                    raise ValueError(
                        f"{part} is not a complete json array: was writing interrupted? Run the "
                        "evaluation again."
                    )
                if end:
                    out.write(separator)
                    out.write(memoryview(text)[begin:end])
                    separator = b",\n"
        out.write(b"\n]\n")
    return target


def _mapped(file: Path) -> mmap.mmap:
    """Memory-map a file; raises ``ValueError`` if it is empty."""
    with file.open("rb") as stream:
        if not os.fstat(stream.fileno()).st_size:
            raise ValueError("the file is empty")
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


class Detection(msgspec.Struct, gc=False):
    """One entry of a results file.

    Attributes:
        image_id: as in the annotations.
        category_id: as in the annotations.
        score: finite.
        bbox: x, y, width, height in pixels, finite; None if there is only a mask.
        segmentation: polygons or run lengths, not yet checked against the image; None without a
            mask.
    """

    image_id: Id
    category_id: Id
    score: float
    bbox: list[float] | None = None
    segmentation: list[list[float]] | Rle | None = None


_DECODER = msgspec.json.Decoder(Detection)


def name_of(results: Results) -> str:
    """Return a name of the results for messages."""
    return str(Path(results)) if isinstance(results, (str, os.PathLike)) else "the results"


def iterate_detections(
    results: Results, image_ids: Container[Id], category_ids: Container[Id] | None, dataset: str
) -> Iterator[Detection]:
    """Yield validated detections from a file, or from its contents in memory.

    Args:
        results: the file or its contents, which are not modified.
        image_ids: image ids of the dataset; the detections get ids of the same type.
        category_ids: category ids of the dataset; None allows any.
        dataset: name or file of the dataset, for messages.

    Raises:
        ValueError: the file is missing, truncated, not json or not a list; a detection lacks a key,
            has a value of the wrong type, a box that is non-finite or of negative size, neither a
            box nor a mask, or a mask of unknown format; or an image or a class is unknown.
    """
    where = name_of(results)
    if isinstance(results, (str, os.PathLike)):
        results = _read_list(Path(results))
    for index, item in enumerate(results):
        try:
            made = _checked(item)
            made.image_id = _known("an image", made.image_id, image_ids, dataset)
            if category_ids is not None:
                made.category_id = _known("a class", made.category_id, category_ids, dataset)
        except msgspec.ValidationError as error:
            raise ValueError(f"{where}: {located(error, f'detection {index}')}") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: detection {index}: {error}") from None
        yield made


def _read_list(file: Path) -> list[Any]:
    """Read the items of a json list.

    They are ``msgspec.Raw`` views of the mapped file, so that only one item at a time is a Python
    object. A file in another encoding or with NaN is read as a whole instead.
    """
    try:
        content = _mapped(file)
    except (OSError, ValueError) as error:  # ValueError: empty file or invalid file name
        raise ValueError(f"expected results at {file}: {reason(error)}") from None
    try:
        return msgspec.json.decode(content, type=list[msgspec.Raw])
    except (msgspec.DecodeError, RecursionError) as error:
        if "truncated" in str(error):
            raise ValueError(
                f"{file} is truncated. Run the evaluation again, or copy the file again"
            ) from None
    loaded = parse_json(bytes(content), file)
    if not isinstance(loaded, list):
        raise ValueError(
            f"{file}: expected a list of detections, got a {type(loaded).__name__}. Is it a "
            "results file in COCO's format?"
        )
    return loaded


def _known(what: str, given: Id, ids: Container[Id], dataset: str) -> Id:
    """Convert an id to the type that the dataset uses."""
    found = find_id(ids, given)
    if found is None:
        raise ValueError(
            f"expected the id of {what} of {dataset}, got {given!r:.60}. Are these its results?"
        )
    return found


def _checked(item: Any) -> Detection:
    """Convert an item of the json list to a detection; numbers may be given as text."""
    made = _typed(item)
    made.bbox, made.segmentation = made.bbox or None, made.segmentation or None
    if made.bbox is None and made.segmentation is None:
        raise ValueError("expected a 'bbox' or a 'segmentation'")
    if made.bbox is not None:
        if len(made.bbox) != 4 or not isfinite(sum(made.bbox)):
            raise ValueError(f"expected a box of 4 finite numbers, got {made.bbox}")
        if min(made.bbox[2:]) < 0:
            raise ValueError(f"expected x, y, width, height in pixels as the box, got {made.bbox}")
    if not isfinite(made.score):
        raise ValueError(f"expected a finite score, got {made.score}")
    return made


def _typed(item: Any) -> Detection:
    if isinstance(item, msgspec.Raw):
        with suppress(msgspec.ValidationError):  # a value of another type
            return _DECODER.decode(item)
        item = json.loads(bytes(item))
    if not isinstance(item, Mapping):
        raise ValueError(f"expected an object, got {item!r:.60}")
    known = known_fields(item, Detection)
    mask = read_segmentation(known.pop("segmentation", None))
    made = msgspec.convert(known, Detection, strict=False)
    made.segmentation = mask
    return made
