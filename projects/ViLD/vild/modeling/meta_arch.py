"""The meta-architecture: Mask R-CNN that passes the regions to distil from to its RoI heads.

Shapes: N images, R regions of an image, D embedding.
"""

from __future__ import annotations

from typing import Any

from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import ImageList, Instances
from torch import Tensor


class ImagesWithRegions(ImageList):
    """A batch of images with the regions to distil from.

    The regions travel with the batch, so the model keeps no state between calls.

    Args:
        tensor: (N, C, H, W), padded.
        image_sizes: (height, width) of each image.
        regions: N Instances of R >= 0 rows with ``proposal_boxes`` in pixels of the image and
            ``teacher_embeddings`` (R, D).
    """

    def __init__(
        self, tensor: Tensor, image_sizes: list[tuple[int, int]], regions: list[Instances]
    ) -> None:
        super().__init__(tensor, image_sizes)
        self.regions = regions


@META_ARCH_REGISTRY.register()
class ViLDRCNN(GeneralizedRCNN):
    """Detectron2's GeneralizedRCNN, which accepts images with ``distill_regions`` in training.

    These are Instances from :class:`vild.data.ViLDDatasetMapper`, with ``teacher_embeddings``.
    """

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise, pad and batch the images; in training, attach their regions."""
        images = super().preprocess_image(batched_inputs)
        if not self.training or "distill_regions" not in batched_inputs[0]:
            return images
        regions = [self._to_distil(x["distill_regions"]) for x in batched_inputs]
        return ImagesWithRegions(images.tensor, images.image_sizes, regions)

    def _to_distil(self, regions: Instances) -> Instances:
        """Copy only the fields that the loss needs: the host waits for each copy to a GPU."""
        return Instances(
            regions.image_size,
            proposal_boxes=regions.proposal_boxes.to(self.device),
            teacher_embeddings=regions.teacher_embeddings.to(self.device),
        )
