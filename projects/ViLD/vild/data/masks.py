"""Normalise masks from annotations and results to two forms.

The two forms are polygons (a list of flat ``[x1, y1, x2, y2, ...]`` lists) and COCO's compressed
run lengths (:class:`Rle`). Masks that cannot be drawn raise ``ValueError``.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_util

# Polygons this many image sides away are garbage, and the rasteriser would run out of memory.
_FARTHEST = 10
_LONGEST_CODE = 12  # characters of one run length, i.e. 60 bits


class Rle(msgspec.Struct):
    """Run lengths of a mask in column-major order, background first.

    Attributes:
        size: height and width in pixels.
        counts: COCO's compressed text, or a list of run lengths.
    """

    size: tuple[int, int]
    counts: str | list[int]

    def to_dict(self) -> dict[str, Any]:
        """Return the json form: ``{"size": [height, width], "counts": ...}``."""
        return {"size": list(self.size), "counts": self.counts}


Segmentation = list[list[float]] | Rle


def read_segmentation(value: Any) -> Segmentation | None:
    """Convert the mask formats of annotation tools to one of the two forms.

    Args:
        value: run lengths as a mapping, or polygons as a list of flat lists, one flat list, a list
            of points, or a list of lists of points; numbers may be text. A point is ``[x, y]`` or
            ``{"x": ..., "y": ...}``.

    Returns:
        the mask, not yet checked (see :func:`check_segmentation`); None if ``value`` is empty.

    Raises:
        ValueError: any other format.
    """
    if value is None or value == [] or value == {}:
        return None
    if isinstance(value, Mapping):
        counts = value.get("counts")
        if isinstance(counts, bytes):  # pycocotools returns bytes
            value = {**value, "counts": counts.decode("ascii", "replace")}
        try:
            return msgspec.convert(value, Rle, strict=False)
        except msgspec.ValidationError as error:
            raise ValueError(f"expected run lengths {{size, counts}}: {error}") from None
    if not isinstance(value, list):
        raise ValueError(f"expected polygons or run lengths, got {value!r:.40}")
    is_flat = not any(isinstance(item, list | Mapping) for item in value)
    is_points = len(value) > 2 and all(map(_is_point, value))
    return [_flat(polygon) for polygon in ([value] if is_flat or is_points else value)]


def _is_point(item: Any) -> bool:
    if isinstance(item, Mapping):
        return {"x", "y"} <= item.keys()
    pair = isinstance(item, list) and len(item) == 2
    return pair and not any(isinstance(v, list | Mapping) for v in item)


def _flat(polygon: Any) -> list[float]:
    if not isinstance(polygon, list):
        raise ValueError(f"expected a polygon, got {polygon!r:.40}")
    if all(map(_is_point, polygon)):
        points = [(p["x"], p["y"]) if isinstance(p, Mapping) else p for p in polygon]
        polygon = [side for point in points for side in point]
    try:
        return msgspec.convert(polygon, list[float], strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"expected numbers as coordinates: {error}") from None


def check_segmentation(
    mask: Segmentation, height: int, width: int, may_be_empty: bool = False
) -> Segmentation:
    """Drop polygons that cannot be drawn, and compress run lengths.

    Args:
        mask: result of :func:`read_segmentation`.
        height: height of the image in pixels.
        width: width of the image in pixels.
        may_be_empty: whether run lengths may be all background, as those of a detection may.

    Returns:
        polygons of at least three points each, or compressed run lengths.

    Raises:
        ValueError: nothing is left, or the run lengths are for another image size.
    """
    if isinstance(mask, Rle):
        checked = _checked_rle(mask, height, width)
        if not may_be_empty and not mask_util.area(checked.to_dict()):
            raise ValueError("the mask is empty")
        return checked
    if len(mask) > 2 and all(len(point) == 2 for point in mask):
        # a list of points; well-typed files do not pass through read_segmentation
        mask = [[side for point in mask for side in point]]
    polygons = [points for points in mask if _is_drawable(points, height, width)]
    if not polygons:
        raise ValueError("no polygon of 3 or more points near the image")
    return polygons


def _is_drawable(points: list[float], height: int, width: int) -> bool:
    if len(points) < 6 or len(points) % 2:
        return False
    xs, ys = points[0::2], points[1::2]
    left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
    reach = _FARTHEST * max(height, width)
    near = -reach <= left <= right <= reach and -reach <= top <= bottom <= reach
    return near and isfinite(sum(points))


def _checked_rle(mask: Rle, height: int, width: int) -> Rle:
    if tuple(mask.size) != (height, width):
        raise ValueError(
            f"run lengths of {list(mask.size)!s:.60} pixels, but the image has {[height, width]}"
        )
    if height * width >= 2**32:
        raise ValueError("the image is too large for run lengths")
    if isinstance(mask.counts, str):
        check_counts(mask.counts, height * width)
        return mask
    if min(mask.counts, default=-1) < 0 or sum(mask.counts) != height * width:
        raise ValueError("the run lengths do not cover the image")
    made = mask_util.frPyObjects(mask.to_dict(), height, width)
    return Rle((height, width), made["counts"].decode("ascii"))


def to_rle(mask: Segmentation, height: int, width: int) -> Rle:
    """Return a checked mask as compressed run lengths."""
    if isinstance(mask, Rle):
        return mask
    merged = mask_util.merge(mask_util.frPyObjects(mask, height, width))
    return Rle((height, width), merged["counts"].decode("ascii"))


def decode_segmentation(segmentation: Any, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Decode a mask to pixels.

    Args:
        segmentation: any form that :func:`read_segmentation` accepts or returns.
        height: height of the image in pixels.
        width: width of the image in pixels.

    Returns:
        (height, width) bool; all False if there is no mask.

    Raises:
        ValueError: unknown format, wrong size, or nothing that can be drawn.
    """
    mask = segmentation if isinstance(segmentation, Rle) else read_segmentation(segmentation)
    if mask is None:
        return np.zeros((height, width), bool)
    checked = check_segmentation(mask, height, width, may_be_empty=True)
    return mask_util.decode(to_rle(checked, height, width).to_dict()).astype(bool)


def check_counts(counts: str, pixels: int) -> None:
    """Raise if compressed run lengths do not decode to an image's pixels.

    pycocotools accepts any text: invalid run lengths give wrong masks or write beyond its memory.

    Args:
        counts: COCO's compressed text.
        pixels: height x width.

    Raises:
        ValueError: invalid characters, truncated text, or a wrong number of pixels.
    """
    if int(_run_lengths(counts).sum()) != pixels:
        raise ValueError("the compressed run lengths do not cover the image")


def _run_lengths(counts: str) -> npt.NDArray[np.int64]:
    """Return the run lengths that COCO's text encodes (its rleFrString)."""
    codes = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63:
        raise ValueError(f"expected compressed run lengths, got the text {counts!r:.20}")
    ends = np.flatnonzero((codes & 32) == 0)  # bit 5: the number continues in the next character
    if not len(ends) or ends[-1] != len(codes) - 1:
        raise ValueError("the compressed run lengths are truncated")
    starts = np.concatenate([[0], ends[:-1] + 1])
    sizes = ends + 1 - starts
    if sizes.max() > _LONGEST_CODE:
        raise ValueError("a run length is too large")
    places = np.arange(len(codes)) - np.repeat(starts, sizes)
    values = np.add.reduceat((codes & 31) << (5 * places), starts)
    values -= ((codes[ends] & 16) > 0) * (1 << (5 * sizes))  # bit 4 of the last character: sign
    # from the fourth on, numbers are differences to the number two places before
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    if (values < 0).any():
        raise ValueError("a run length is negative")
    return values


def box_of(mask: Segmentation) -> list[float]:
    """Return the box (x, y, width, height) around a mask."""
    if isinstance(mask, Rle):
        return [float(side) for side in mask_util.toBbox(mask.to_dict())]
    xs = [x for points in mask for x in points[0::2]]
    ys = [y for points in mask for y in points[1::2]]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
