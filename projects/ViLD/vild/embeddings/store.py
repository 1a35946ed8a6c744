"""The store of region embeddings: boxes, objectness and the teacher's embedding, row by row.

Shapes: R regions of an image, D embedding.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vild.embeddings.crops import CROP_MODES
from vild.proposals.store import FIELDS as PROPOSAL_FIELDS
from vild.proposals.store import proposal_faults
from vild.storage import Field, ImageId, RecordStore

KIND = "embeddings"
IMAGES_PER_SHARD = 256
DTYPES = ("float16", "int8")
UNIT_TOLERANCE = 2e-3  # float16 keeps a row's norm to about 5e-4


@dataclass(frozen=True)
class CropRule:
    """How a region becomes the teacher's input; recorded in every store.

    Attributes:
        mode: ``stretch``, ``pad`` or ``clip``; see :func:`vild.embeddings.crop_and_resize`.
        scales: sizes of the crops relative to the box. The embeddings of one region's crops, each
            of unit norm, are added, and the sum is normalised (ViLD, section 3.2: 1 and 1.5).

    Raises:
        ValueError: unknown mode, no scale, or one that is not a positive number.
    """

    mode: str = "stretch"
    scales: tuple[float, ...] = (1.0, 1.5)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(float(scale) for scale in self.scales))
        if self.mode not in CROP_MODES:
            raise ValueError(f"expected a crop mode of {CROP_MODES}, got {self.mode!r}")
        if not self.scales or not all(0 < scale < float("inf") for scale in self.scales):
            raise ValueError(f"expected positive crop scales, got {self.scales}")

    def to_json(self) -> dict[str, Any]:
        """Plain json."""
        return {**asdict(self), "scales": list(self.scales)}


class Regions(NamedTuple):
    """The regions of one image, best first; row i of each attribute is one region.

    Attributes:
        boxes: (R, 4) float32, xyxy, original pixels.
        objectness: (R,) float32 logits.
        embeddings: (R, D) float16, of unit norm to the precision of the store.
    """

    boxes: Tensor
    objectness: Tensor
    embeddings: Tensor


class EmbeddingStore(RecordStore):
    """Region embeddings by image id; see :class:`vild.storage.RecordStore` for the errors.

    Args:
        folder: what tools/extract_image_embeddings.py wrote.
        teacher: fingerprint (:attr:`vild.embeddings.Teacher.fingerprint`) that it must be of.
        dimension: D that it must have.
        crop: the rule that it must have been made by.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        teacher: str | None = None,
        dimension: int | None = None,
        crop: CropRule | None = None,
    ) -> None:
        source: dict[str, Any] = {}
        if teacher is not None:
            source.setdefault("teacher", {})["fingerprint"] = teacher
        if dimension is not None:
            source.setdefault("teacher", {})["dimension"] = dimension
        if crop is not None:
            source["crop"] = crop.to_json()
        super().__init__(folder, KIND, {"source": source})

    @property
    def dimension(self) -> int:
        """D."""
        return int(self.spec.source["teacher"]["dimension"])

    def __getitem__(self, image_id: ImageId) -> Regions:
        arrays = self.arrays(image_id)
        return Regions(arrays["boxes"], arrays["objectness"], unpack(arrays))


def fields(dimension: int, dtype: str) -> dict[str, Field]:
    """Arrays of a record.

    Args:
        dimension: D.
        dtype: ``float16``, or ``int8`` with a scale a row.

    Raises:
        ValueError: another dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"expected the dtype of a store to be one of {DTYPES}, got {dtype!r}")
    own = {"embeddings": Field(dtype, dimension)}
    if dtype == "int8":
        own["scale"] = Field("float32")
    return {**PROPOSAL_FIELDS, **own}


def pack(embeddings: Tensor, dtype: str) -> dict[str, Tensor]:
    """What is stored of embeddings (R, D) float32.

    ``int8``: the largest value of a row becomes 127; the cosine's error is below 1e-3 (test).
    """
    if dtype == "float16":
        return {"embeddings": embeddings.half()}
    scale = embeddings.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return {"embeddings": (embeddings / scale[:, None]).round().to(torch.int8), "scale": scale}


def unpack(arrays: Mapping[str, Tensor]) -> Tensor:
    """The inverse of :func:`pack`, (R, D) float16."""
    embeddings = arrays["embeddings"]
    if "scale" not in arrays:
        return embeddings
    return (embeddings.float() * arrays["scale"][:, None]).half()


def embedding_faults(record: Mapping[str, Tensor], size: tuple[int, int]) -> list[str]:
    """What is wrong with one record; used by tools/verify_store.py."""
    faults = proposal_faults(record, size)
    norms = unpack(record).float().norm(dim=1)
    # int8 is renormalised by nobody, so its rows are a little off
    tolerance = UNIT_TOLERANCE if "scale" not in record else 10 * UNIT_TOLERANCE
    if ((norms - 1).abs() > tolerance).any():
        faults.append("an embedding is not of unit norm")
    return faults


def combine_scales(embeddings: Tensor, scales: int) -> Tensor:
    """One embedding a region from those of its crops.

    Args:
        embeddings: (scales * R, D), all regions at the first scale, then at the second, ...
        scales: number of crops a region.

    Returns:
        (R, D), L2-normalised sum.
    """
    count, dimension = embeddings.shape
    by_scale = embeddings.reshape(scales, count // scales, dimension)
    return functional.normalize(by_scale.sum(dim=0), dim=1)


def embedding_source(
    teacher: Mapping[str, Any],
    crop: CropRule,
    proposals: Mapping[str, Any],
    limit: int,
    batch_size: int,
) -> dict[str, Any]:
    """What a store of embeddings records of its making.

    Args:
        teacher: what :meth:`vild.embeddings.Teacher.describe` returns.
        crop: the rule.
        proposals: ``digest`` of their store.
        limit: most regions an image, the best by objectness.
        batch_size: crops at a time: matrix products round by their shapes.
    """
    return {
        "teacher": dict(teacher),
        "crop": crop.to_json(),
        "proposals": dict(proposals),
        "regions": limit,
        "batch_size": batch_size,
    }
