"""Fast encoding of masks as COCO run lengths.

pycocotools copies each mask in column order and reads it pixel by pixel. Most pixels are background
around a small object, so the run lengths are computed here from the object's bounding rectangle.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_util
import torch
from torch import Tensor


def encode_masks(masks: Tensor) -> list[dict[str, Any]]:
    """Encode masks as COCO's compressed run lengths, byte for byte as pycocotools does.

    Args:
        masks: (R, H, W) bool, on any device.

    Returns:
        ``{"size": [H, W], "counts": str}`` for each mask.

    Raises:
        ValueError: ``masks`` has another type, dtype or shape.
    """
    if not isinstance(masks, Tensor) or masks.dtype != torch.bool or masks.ndim != 3:
        found = f"{masks.dtype} {tuple(masks.shape)}" if isinstance(masks, Tensor) else type(masks)
        raise ValueError(
            f"expected masks (R, H, W) of bool, got {found}. Paste them into the image first, "
            "as detectron2's detector_postprocess does."
        )
    size = [masks.shape[1], masks.shape[2]]
    lengths = [{"size": size, "counts": _run_lengths(mask)} for mask in masks.cpu().numpy()]
    compressed = mask_util.frPyObjects(lengths, *size) if lengths else []
    return [{"size": size, "counts": item["counts"].decode("ascii")} for item in compressed]


def _run_lengths(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Return the run lengths of a mask (H, W) in column order, background first."""
    height = mask.shape[0]
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return [mask.size]
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[top:bottom].any(axis=0))
    left, right = int(columns[0]), int(columns[-1]) + 1
    # concatenated columns of the object, each preceded by a background pixel
    long = bottom - top + 1
    padded = np.zeros((right - left, long), bool)
    padded[:, 1:] = mask[top:bottom, left:right].T
    flat = padded.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    if len(changes) % 2:  # the last column ends in foreground
        changes = np.append(changes, flat.size - 1)
    column, row = np.divmod(changes, long)
    places = (left + column) * height + top + row
    if long > height:  # a run may continue at the top of the next column
        joined = np.flatnonzero(places[1:-1:2] == places[2::2])
        places = np.delete(places, np.concatenate([2 * joined + 1, 2 * joined + 2]))
    ends = [mask.size] if places[-1] < mask.size else []
    return np.diff(np.concatenate([[0], places, ends])).astype(int).tolist()
