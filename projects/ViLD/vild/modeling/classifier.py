"""Regions are classified by the cosine to a text embedding (ViLD, sec. 3.2).

Shapes: R regions, K classes, D embedding. Text embeddings are (K, D), row = class. Logits follow
Detectron2's order: K classes, then background (the official code has background first).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vild.modeling.precision import at_least_float32, without_autocast

UNIT_TOLERANCE = 1e-3  # how far a row's norm may be from 1
BACKGROUND_STD = 0.01  # official vild_head.py: background-class-predict


class TextClassifier(nn.Module):
    """Frozen text embeddings, one learned background vector, a fixed temperature.

    The text embeddings are no part of the state: a checkpoint serves any vocabulary.

    Args:
        dimension: D.
        temperature: cosines are divided by it (tau; 0.01 for CLIP). :meth:`set_text` may bring
            another: it belongs to the teacher that made the embeddings.
        background: whether there is a background to learn (not in ViLD-image).

    Raises:
        ValueError: a temperature or dimension that is not positive.
    """

    text: Tensor
    background: nn.Parameter | None

    def __init__(self, *, dimension: int, temperature: float, background: bool = True) -> None:
        super().__init__()
        if dimension < 1:
            raise ValueError(f"expected a positive embedding dimension, got {dimension}")
        self.dimension = dimension
        self.temperature = _positive(temperature)
        vector = nn.Parameter(torch.randn(dimension) * BACKGROUND_STD) if background else None
        self.register_parameter("background", vector)
        self.register_buffer("text", torch.empty(0, dimension), persistent=False)

    @property
    def num_classes(self) -> int:
        """K; 0 before :meth:`set_text`."""
        return len(self.text)

    def set_text(self, embeddings: Tensor, temperature: float | None = None) -> None:
        """Take a vocabulary; a later call replaces it.

        Args:
            embeddings: (K, D) float32, L2-normalised; copied to the module's device.
            temperature: of the teacher that made them. None keeps the present one.

        Raises:
            ValueError: another shape or type, no class, NaN, rows that are not of unit norm, or a
                temperature that is not positive.
        """
        shape = tuple(embeddings.shape)
        if len(shape) != 2 or shape[1] != self.dimension or not shape[0]:
            raise ValueError(
                f"expected text embeddings of shape (K, {self.dimension}) with K > 0, row = class, "
                f"got {shape}; they must come from the teacher that the model was distilled from"
            )
        if embeddings.dtype != torch.float32:
            raise ValueError(f"expected float32 text embeddings, got {embeddings.dtype}")
        off = (embeddings.norm(dim=1) - 1).abs()
        bad = ~(off <= UNIT_TOLERANCE)  # true for NaN as well
        if bad.any():
            row = int(bad.nonzero()[0])
            raise ValueError(
                f"expected text embeddings of norm 1, but row {row} has norm "
                f"{float(embeddings[row].norm()):.4f}; normalise them first"
            )
        if temperature is not None:
            self.temperature = _positive(temperature)
        self.text = embeddings.detach().to(self.text.device, copy=True)

    def forward(
        self,
        features: Tensor,
        *,
        background: bool = True,
        rows: slice | Tensor | None = None,
        text: Tensor | None = None,
    ) -> Tensor:
        """Cosine / temperature, in at least float32 also under autocast.

        Args:
            features: (R, D) L2-normalised.
            background: append the background's logit. Without it: p_img of ViLD-ensemble.
            rows: the classes to score, all by default.
            text: (K, D) L2-normalised, to compare with instead of those of :meth:`set_text`.

        Returns:
            (R, K + 1), or (R, K) without background.

        Raises:
            RuntimeError: :meth:`set_text` was not called, or there is no background.
        """
        text = self.text if text is None else text
        if not len(text):
            raise RuntimeError("no text embeddings yet: call set_text() first")
        if background and self.background is None:
            raise RuntimeError("this classifier was made without a background")
        text = text if rows is None else text[rows]
        with without_autocast(features):
            features = at_least_float32(features)
            logits = functional.linear(features, text.to(features.dtype))
            if background and self.background is not None:
                # a vector of norm 0.2 among unit rows would be no cosine: normalised at each use
                learned = functional.normalize(self.background.to(features.dtype), dim=0)
                logits = torch.cat([logits, (features @ learned)[:, None]], dim=1)
            return logits / self.temperature

    def extra_repr(self) -> str:
        """For ``print(module)``."""
        return (
            f"classes={self.num_classes}, dimension={self.dimension}, "
            f"temperature={self.temperature:g}"
        )


def _positive(temperature: float) -> float:
    if not temperature > 0:
        raise ValueError(f"expected a positive temperature, got {temperature}")
    return float(temperature)
