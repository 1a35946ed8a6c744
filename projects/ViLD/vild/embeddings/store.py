"""The store of region embeddings: boxes, objectness and the teacher's embedding of each region.

Shapes: R regions of an image, D embedding.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vild.embeddings.crops import CropRule
from vild.proposals.store import FIELDS as PROPOSAL_FIELDS
from vild.proposals.store import proposal_faults
from vild.storage import Field, ImageId, RecordStore

KIND = "embeddings"
IMAGES_PER_SHARD = 256
DTYPES = ("float16", "int8")
UNIT_TOLERANCE = 2e-3  # float16 preserves a row's norm to about 5e-4


class Regions(NamedTuple):
    """The regions of one image, best first; row i of each attribute is one region.

    Attributes:
        boxes: (R, 4) float32, xyxy, original pixels.
        objectness: (R,) float32 logits.
        embeddings: (R, D) float16, of unit norm within the precision of the store.
    """

    boxes: Tensor
    objectness: Tensor
    embeddings: Tensor


class EmbeddingStore(RecordStore):
    """Region embeddings by image id; see :class:`vild.storage.RecordStore` for the errors.

    Args:
        folder: output of tools/extract_image_embeddings.py.
        teacher: required fingerprint (:attr:`vild.embeddings.Teacher.fingerprint`).
        dimension: required D.
        crop: required crop rule.
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
    """Return the arrays of a record.

    Args:
        dimension: D.
        dtype: ``float16``, or ``int8`` with one scale per row.

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
    """Return the arrays to store for embeddings (R, D) float32.

    ``int8``: the largest value of a row becomes 127; the error of a cosine is below 1e-3 (tested).
    """
    if dtype == "float16":
        return {"embeddings": embeddings.half()}
    scale = embeddings.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return {"embeddings": (embeddings / scale[:, None]).round().to(torch.int8), "scale": scale}


def unpack(arrays: Mapping[str, Tensor]) -> Tensor:
    """Return the embeddings (R, D) float16 from the arrays of :func:`pack`."""
    embeddings = arrays["embeddings"]
    if "scale" not in arrays:
        return embeddings
    return (embeddings.float() * arrays["scale"][:, None]).half()


def embedding_faults(record: Mapping[str, Tensor], size: tuple[int, int]) -> list[str]:
    """Return the faults of one record; used by tools/verify_store.py."""
    faults = proposal_faults(record, size)
    norms = unpack(record).float().norm(dim=1)
    # int8 rows are not renormalised, so their norms deviate a little
    tolerance = UNIT_TOLERANCE if "scale" not in record else 10 * UNIT_TOLERANCE
    if ((norms - 1).abs() > tolerance).any():
        faults.append("an embedding is not of unit norm")
    return faults


def combine_scales(embeddings: Tensor, scales: int) -> Tensor:
    """Combine the embeddings of each region's crops into one.

    Args:
        embeddings: (scales * R, D), all regions at the first scale, then at the second, ...
        scales: number of crops per region.

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
    """Return the ``source`` entry of the spec of an embedding store.

    Args:
        teacher: result of :meth:`vild.embeddings.Teacher.describe`.
        crop: the crop rule.
        proposals: ``digest`` of the proposal store.
        limit: maximum number of regions per image, the best by objectness.
        batch_size: crops per batch; recorded because the rounding of matrix products depends on it.
    """
    return {
        "teacher": dict(teacher),
        "crop": crop.to_json(),
        "proposals": dict(proposals),
        "regions": limit,
        "batch_size": batch_size,
    }
