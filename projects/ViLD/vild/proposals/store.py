"""The store of class-agnostic proposals.

Shapes: R regions of an image. Boxes are xyxy in pixels of the original image.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vild.storage import Field, ImageId, RecordStore

KIND = "proposals"
FIELDS = {"boxes": Field("float32", 4), "objectness": Field("float32")}
IMAGES_PER_SHARD = 1024
INSIDE = 0.01  # pixels that a box may extend beyond the image, to allow for rounding


class Proposals(NamedTuple):
    """The proposals of one image, best first.

    Attributes:
        boxes: (R, 4) float32, xyxy, original pixels.
        objectness: (R,) float32 logits, as from Detectron2's RPN; sigmoid gives probabilities.
    """

    boxes: Tensor
    objectness: Tensor


class ProposalStore(RecordStore):
    """Proposals by image id; see :class:`vild.storage.RecordStore` for the errors.

    Args:
        folder: output of tools/extract_proposals.py.
        expected: values that the store's spec must have.
    """

    def __init__(
        self, folder: str | os.PathLike[str], expected: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(folder, KIND, expected)

    def __getitem__(self, image_id: ImageId) -> Proposals:
        return Proposals(**self.arrays(image_id))

    def items(self) -> Iterator[tuple[ImageId, Proposals]]:
        """Yield all records, in the order of the store."""
        return ((image_id, self[image_id]) for image_id in self)


def proposal_faults(record: Mapping[str, Tensor], size: tuple[int, int]) -> list[str]:
    """Return the faults of one record's boxes; used by tools/verify_store.py.

    Args:
        record: ``boxes`` and ``objectness``.
        size: (height, width) of the image.
    """
    boxes, objectness = record["boxes"], record["objectness"]
    faults = []
    if (boxes[:, 2:] <= boxes[:, :2]).any():
        faults.append("a box has no area")
    height, width = size
    limit = torch.tensor([width, height, width, height]) + INSIDE
    if (boxes < -INSIDE).any() or (boxes > limit).any():
        faults.append(f"a box extends beyond the image ({height} x {width})")
    if (objectness.diff() > 0).any():
        faults.append("the boxes are not sorted by objectness")
    return faults
