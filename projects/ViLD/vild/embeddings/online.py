"""Compute the teacher's embeddings of a batch's regions during training.

This suits datasets that are too small or too short-lived to be worth a store: the teacher embeds
the same regions again in every epoch.

Shapes: R regions of an image, D embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vild.embeddings.crops import CropRule, crop_and_resize, enlarge_boxes, to_device
from vild.embeddings.store import combine_scales
from vild.embeddings.teacher import Teacher


class OnlineEmbedder:
    """Adds teacher embeddings to the regions of mapped images, as if read from a store.

    Args:
        teacher: computes the embeddings on its device.
        rule: how regions are cropped.
        field: field of a mapped image that holds the regions: ``distill_regions`` or ``proposals``.
        batch_size: crops per batch.
    """

    def __init__(
        self,
        teacher: Teacher,
        rule: CropRule,
        field: str = "distill_regions",
        batch_size: int = 256,
    ) -> None:
        self.teacher, self.rule, self.field, self.batch_size = teacher, rule, field, batch_size

    def __call__(self, mapped: dict[str, Any]) -> dict[str, Any]:
        """Add embeddings to one image mapped by :class:`vild.data.ViLDDatasetMapper`.

        Args:
            mapped: has ``original_image``, which is removed, and regions with ``original_boxes``,
                which receive ``teacher_embeddings`` (R, D) float32 on the CPU.

        Returns:
            ``mapped`` itself.
        """
        image = mapped.pop("original_image").permute(1, 2, 0)  # H, W, C
        regions = mapped[self.field]
        regions.teacher_embeddings = self.embed(image, regions.original_boxes.tensor)
        return mapped

    def embed(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Return embeddings (R, D) float32 of boxes (R, 4) in an image (H, W, 3) uint8 RGB."""
        size = (image.shape[0], image.shape[1])
        image = to_device(image, self.teacher.device)
        scaled = torch.cat([enlarge_boxes(boxes, scale, size) for scale in self.rule.scales])
        rows = [torch.empty(0, self.teacher.dimension, device=self.teacher.device)]
        for some in scaled.split(self.batch_size):
            crops = crop_and_resize(
                image,
                some,
                self.teacher.image_size,
                self.rule.mode,
                normalise=self.teacher.statistics,
                interpolation=self.teacher.interpolation,
            )
            rows.append(self.teacher.encode_image(crops, normalised=True))
        return combine_scales(torch.cat(rows).cpu(), len(self.rule.scales))
