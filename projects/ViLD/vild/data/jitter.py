"""Large-scale jitter as in the official code (its utils/input_utils.py: resize_and_crop_image).

Shapes: images are (H, W, C), masks (H, W).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from detectron2.data import transforms as T

from vild.data.augmentations import Crop


class LargeScaleJitter(T.Augmentation):
    """Resize an image to a random scale of a square, then crop and pad it to the square.

    The scale is drawn uniformly; at scale 1 the longer side of the image equals the side of the
    square. A larger image is cropped at a random position, drawn separately along both axes; a
    smaller one is padded on the right and at the bottom.

    Args:
        smallest: minimum scale.
        largest: maximum scale.
        side: side of the square in pixels.
        colour: C padding values in [0, 255], in the image's channel order.

    Raises:
        ValueError: invalid scales or side.
    """

    def __init__(self, smallest: float, largest: float, side: int, colour: Sequence[float]) -> None:
        super().__init__()
        if not 0 < smallest <= largest or side < 1:
            raise ValueError(
                "expected 0 < MIN_SCALE <= MAX_SCALE and a SIZE of at least 1 in "
                f"INPUT.LARGE_SCALE_JITTER, got {smallest}, {largest} and {side}"
            )
        self.smallest, self.largest = smallest, largest
        self.side, self.colour = side, tuple(colour)

    def get_transform(self, image: np.ndarray) -> T.TransformList:
        """Draw the scale and the crop position for an image (H, W, C)."""
        size = np.array(image.shape[:2])
        scaled_side = np.round(self._rand_range(self.smallest, self.largest) * self.side)
        scaled = np.round(size * (scaled_side / size.max())).astype(int).clip(min=1)
        place = self._rand_range(size=(2,))  # always drawn: every image uses equally many numbers
        found: list[T.Transform] = [T.ResizeTransform(*size.tolist(), *scaled.tolist())]
        room = (scaled - self.side).clip(min=0)
        if room.any():
            top, left = (room * place).astype(int).tolist()
            height, width = (scaled - room).tolist()
            found.append(Crop(left, top, width, height, *scaled[::-1].tolist()))
        bottom, right = (self.side - scaled).clip(min=0).tolist()
        if bottom or right:
            found.append(_ColourPad(bottom, right, self.colour))
        return T.TransformList(found)


class _ColourPad(T.NoOpTransform):
    """Pad on the right and at the bottom: images with a colour, masks with 0."""

    def __init__(self, bottom: int, right: int, colour: Sequence[float]) -> None:
        super().__init__()
        self.bottom, self.right, self.colour = bottom, right, colour

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Pad (H, W, C); the colour is rounded if the image has an integer type."""
        height, width, channels = img.shape
        colour = np.asarray(self.colour)
        if np.issubdtype(img.dtype, np.integer):
            colour = colour.round()
        padded = np.empty((height + self.bottom, width + self.right, channels), img.dtype)
        padded[...] = colour
        padded[:height, :width] = img
        return padded

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Pad (H, W)."""
        return np.pad(segmentation, ((0, self.bottom), (0, self.right)))
