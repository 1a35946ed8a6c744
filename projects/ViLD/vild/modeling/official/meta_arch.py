"""The meta-architecture with the preprocessing of the official evaluation.

Sources: utils/input_utils.py and vild_parser.py of the official code.

Shapes: N images of C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList
from torch import Tensor
from torch.nn import functional

from vild.modeling.meta_arch import ViLDRCNN
from vild.modeling.official.backbone import COARSEST


@META_ARCH_REGISTRY.register()
class OfficialViLDRCNN(ViLDRCNN):
    """ViLDRCNN that resizes and pads the images itself at inference.

    The test loader must not resize them (``INPUT.MIN_SIZE_TEST: 0``). The training loader resizes
    them as usual.

    Args:
        side: side of the padded square image in pixels; ``INPUT.MAX_SIZE_TEST``.
        **kwargs: arguments of GeneralizedRCNN.

    Raises:
        ValueError: ``side`` is not a multiple of P6's stride, or the test loader resizes images.
    """

    @configurable
    def __init__(self, *, side: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if side < 1 or side % COARSEST:
            raise ValueError(
                f"expected INPUT.MAX_SIZE_TEST to be a multiple of {COARSEST}, got {side}"
            )
        self.side = side

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read the arguments from Detectron2's keys."""
        if cfg.INPUT.MIN_SIZE_TEST:
            raise ValueError(
                "OfficialViLDRCNN resizes images itself: expected INPUT.MIN_SIZE_TEST: 0, got "
                f"{cfg.INPUT.MIN_SIZE_TEST}; their longer side becomes INPUT.MAX_SIZE_TEST"
            )
        return {**super().from_config(cfg), "side": cfg.INPUT.MAX_SIZE_TEST}

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise, resize and pad the images to squares: (N, C, side, side)."""
        if self.training:
            return super().preprocess_image(batched_inputs)
        resized = []
        for given in batched_inputs:
            image = given["image"].to(self.device).float()
            resized.append({**given, "image": resize(image, *self._scaled(*image.shape[1:]))})
        images = super().preprocess_image(resized)
        height, width = images.tensor.shape[2:]
        padded = functional.pad(images.tensor, (0, self.side - width, 0, self.side - height))
        return ImageList(padded, images.image_sizes)

    def _scaled(self, height: int, width: int) -> list[int]:
        """Return height and width in pixels after scaling the longer side to ``side``."""
        size = torch.tensor([height, width], dtype=torch.float32)
        return [max(1, int(length)) for length in (size * (self.side / size).min()).round()]


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Resize bilinearly as TensorFlow 1 does: pixel i samples i * old / new, without antialiasing.

    Args:
        image: (C, H, W) float.
        height: target height in pixels.
        width: target width in pixels.

    Returns:
        (C, height, width).
    """
    for axis, size in ((1, height), (2, width)):
        old = image.shape[axis]
        place = torch.arange(size, device=image.device) * torch.tensor(old / size)
        before = place.floor().clamp(max=old - 1).long()
        after = (before + 1).clamp(max=old - 1)
        share = (place - before).view([-1 if n == axis else 1 for n in range(3)])
        first, second = image.index_select(axis, before), image.index_select(axis, after)
        image = first + (second - first) * share
    return image
