"""Fusion of text and image probabilities into one score (ViLD-ensemble, sec. 3.4).

The weights are ``MODEL.VILD.FUSION_WEIGHTS``.

Shapes: R regions, K classes, without background.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vild.modeling.float32 import at_least_float32, without_autocast


def fuse_scores(
    text_probs: Tensor,
    image_probs: Tensor,
    novel: Tensor,
    base_weight: float = 2 / 3,
    novel_weight: float = 1 / 3,
) -> Tensor:
    """Return the weighted geometric mean text^w * image^(1 - w), with w depending on the class.

    By default text^(2/3) * image^(1/3) for base and text^(1/3) * image^(2/3) for novel classes. The
    scores of a region do not add up to 1.

    Args:
        text_probs: (R, K), softmax with background, without the background column.
        image_probs: (R, K), softmax without background, on the same device.
        novel: (K,) bool.
        base_weight: w of a base class, in [0, 1].
        novel_weight: w of a novel class, in [0, 1].

    Returns:
        (R, K), at least float32; 0 where a probability with positive weight is 0.

    Raises:
        ValueError: the shapes do not match, or a weight is outside [0, 1].
    """
    if text_probs.shape != image_probs.shape or text_probs.ndim != 2:
        raise ValueError(
            "expected text and image probabilities of one shape (R, K), both without background, "
            f"got {tuple(text_probs.shape)} and {tuple(image_probs.shape)}"
        )
    if novel.dtype != torch.bool or novel.shape != text_probs.shape[1:]:
        raise ValueError(
            f"expected one bool per class, ({text_probs.shape[1]},), for novel, got {novel.dtype} "
            f"{tuple(novel.shape)}"
        )
    for weight in (base_weight, novel_weight):
        if not 0 <= weight <= 1:
            raise ValueError(f"expected weights in [0, 1], got {weight}")
    with without_autocast(text_probs):
        text_probs, image_probs = at_least_float32(text_probs), at_least_float32(image_probs)
        weights = text_probs.new_full(novel.shape, base_weight)
        weights[novel.to(weights.device)] = novel_weight
        # powers rather than logarithms: 0^w is 0, and w = 0 or 1 causes no 0 * inf
        text_part, image_part = text_probs.pow(weights), image_probs.pow(1 - weights)
        if text_part.requires_grad or image_part.requires_grad:
            return text_part * image_part
        return text_part.mul_(image_part)  # in place: saves 80 MB at 1000 x 20,000
