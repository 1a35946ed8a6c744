"""Region pooling by single-sample bilinear crops (official ops/spatial_transform_ops.py).

Shapes: N images, L levels, C channels, R regions over all images, P x P cells of a pooled region.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from detectron2.structures import Boxes
from torch import Tensor, nn

from vild.modeling.official.boxes import to_inclusive

CANONICAL_SIZE, CANONICAL_LEVEL = 224, 4  # a region of this side is cropped from P4


class RegionCrops(nn.Module):
    """A replacement of Detectron2's ROIPooler with one bilinear sample at each cell's centre.

    A sample at x interpolates the pixels floor(x) and floor(x) + 1; ROIAlignV2 shifts it by half a
    pixel. A region may be narrower than a feature cell, where ROIAlign (version 1) widens it to
    one cell. The level is chosen by the inclusive sides.

    Args:
        output_size: P.
        strides: strides of the L levels in pixels; each is twice the previous one.
    """

    def __init__(self, output_size: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.output_size, self.strides = output_size, tuple(strides)

    def forward(self, features: list[Tensor], boxes: list[Boxes]) -> Tensor:
        """Crop the features of all regions.

        Args:
            features: L feature maps (N, C, H, W).
            boxes: N Boxes with R regions in total, in pixels of the images.

        Returns:
            (R, C, P, P).
        """
        corners = to_inclusive(torch.cat([own.tensor for own in boxes]))
        counts = torch.tensor([len(own) for own in boxes], device=corners.device)
        images = torch.arange(len(boxes), device=corners.device).repeat_interleave(counts)
        levels = self._levels(corners)
        size = (len(corners), features[0].shape[1], self.output_size, self.output_size)
        pooled = features[0].new_zeros(size)
        for level, (feature, stride) in enumerate(zip(features, self.strides, strict=True)):
            rows = (levels == level).nonzero()[:, 0]
            crops = self._crop(feature, images[rows], corners[rows] / stride)
            pooled = pooled.index_copy(0, rows, crops.to(pooled.dtype))
        return pooled

    def _levels(self, corners: Tensor) -> Tensor:
        """Return the level index of each region, (R,) int64; regions of no area use the finest."""
        size = (corners[:, 2:] - corners[:, :2]).prod(dim=1).sqrt()
        level = (torch.log(size / CANONICAL_SIZE) / math.log(2)).floor() + CANONICAL_LEVEL
        finest, coarsest = (int(math.log2(self.strides[end])) for end in (0, -1))
        level = level.nan_to_num(finest, neginf=finest).clamp(finest, coarsest)
        return level.long() - finest

    def _crop(self, feature: Tensor, images: Tensor, corners: Tensor) -> Tensor:
        """Crop (r, C, P, P) from a level's feature (N, C, H, W); corners (r, 4) in its cells."""
        left, right, right_share = self._neighbours(corners[:, 0], corners[:, 2], feature.shape[3])
        top, bottom, bottom_share = self._neighbours(corners[:, 1], corners[:, 3], feature.shape[2])
        pixels = feature.permute(0, 2, 3, 1).contiguous()

        def line(rows: Tensor) -> Tensor:
            first, second = (
                pixels[images[:, None, None], rows[:, :, None], columns[:, None, :]]
                for columns in (left, right)
            )
            share = right_share[:, None, :, None]
            return first * (1 - share) + second * share

        share = bottom_share[:, :, None, None]
        return (line(top) * (1 - share) + line(bottom) * share).permute(0, 3, 1, 2)

    def _neighbours(self, start: Tensor, end: Tensor, pixels: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return each sample's two neighbour pixels and the weight of the second one, (r, P)."""
        cells = torch.arange(self.output_size, device=start.device) + 0.5
        place = start[:, None] + cells * (end - start)[:, None] / self.output_size
        before = place.floor().clamp(0, pixels - 1)
        after = (before + 1).clamp(max=pixels - 1)
        return before.long(), after.long(), place - before
