"""Mask R-CNN whose RoI heads also see the teacher's regions of each image.

Shapes: N images, R regions of an image, D embedding.
"""

from __future__ import annotations

from typing import Any

from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import ImageList, Instances
from torch import Tensor


class ImagesWithRegions(ImageList):
    """A batch of images and the regions to distil from.

    The regions travel with the batch: nothing about them is kept in the model.

    Args:
        tensor: (N, C, H, W), padded.
        image_sizes: (height, width) of each.
        regions: N Instances of R rows (0 is fine) with ``proposal_boxes`` in the image and
            ``teacher_embeddings`` (R, D).
    """

    def __init__(
        self, tensor: Tensor, image_sizes: list[tuple[int, int]], regions: list[Instances]
    ) -> None:
        super().__init__(tensor, image_sizes)
        self.regions = regions


@META_ARCH_REGISTRY.register()
class ViLDRCNN(GeneralizedRCNN):
    """Detectron2's GeneralizedRCNN; in training an image may have ``distill_regions``.

    They are Instances of :class:`vild.data.ViLDDatasetMapper`, with ``teacher_embeddings``.
    """

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise, pad and batch the images; take their regions along in training."""
        images = super().preprocess_image(batched_inputs)
        if not self.training or "distill_regions" not in batched_inputs[0]:
            return images
        regions = [self._to_distil(x["distill_regions"]) for x in batched_inputs]
        return ImagesWithRegions(images.tensor, images.image_sizes, regions)

    def _to_distil(self, regions: Instances) -> Instances:
        """Move the fields that the loss needs: a GPU's host waits for each copy."""
        return Instances(
            regions.image_size,
            proposal_boxes=regions.proposal_boxes.to(self.device),
            teacher_embeddings=regions.teacher_embeddings.to(self.device),
        )
