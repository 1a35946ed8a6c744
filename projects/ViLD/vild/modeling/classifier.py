"""The classifier, which scores regions by cosine similarity to text embeddings (sec. 3.3).

Shapes: R regions, K classes, D embedding. Text embeddings are (K, D), row = class. Logits follow
Detectron2's order: K classes, then background (the official code has background first).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vild.modeling.float32 import at_least_float32, without_autocast

UNIT_TOLERANCE = 1e-3  # of a row's norm
BACKGROUND_STD = 0.01  # official vild_head.py: background-class-predict


class TextClassifier(nn.Module):
    """A classifier with frozen text embeddings, a learned background and a fixed temperature.

    Checkpoints contain no text embeddings, so any vocabulary works.

    Args:
        dimension: D.
        temperature: divisor of the cosines (tau; 0.01 for CLIP). It belongs to the teacher that
            made the embeddings, so :meth:`set_text` can replace it.
        background: whether to learn a background embedding (not in ViLD-image).

    Raises:
        ValueError: the temperature or the dimension is not positive.
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
        """Number of classes K; 0 before :meth:`set_text`."""
        return len(self.text)

    def set_text(self, embeddings: Tensor, temperature: float | None = None) -> None:
        """Set the text embeddings of the classes; a later call replaces them.

        Args:
            embeddings: (K, D) float32, L2-normalised; copied to the module's device.
            temperature: of the teacher that made them. None keeps the current temperature.

        Raises:
            ValueError: the shape or dtype is wrong, K is 0, a value is NaN, a row is not
                L2-normalised, or the temperature is not positive.
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
        bad = ~(off <= UNIT_TOLERANCE)  # also true for NaN
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
        text: Tensor | None = None,
    ) -> Tensor:
        """Return logits, cosine / temperature, in at least float32 even under autocast.

        Args:
            features: (R, D) L2-normalised.
            background: append the background logit. p_img of ViLD-ensemble is without it.
            text: (K, D) L2-normalised, used in place of the embeddings of :meth:`set_text`.

        Returns:
            (R, K + 1), or (R, K) without background.

        Raises:
            RuntimeError: :meth:`set_text` was not called, or the classifier has no background.
        """
        text = self.text if text is None else text
        if not len(text):
            raise RuntimeError("no text embeddings yet: call set_text() first")
        if background and self.background is None:
            raise RuntimeError("this classifier was made without a background")
        with without_autocast(features):
            features = at_least_float32(features)
            logits = functional.linear(features, text.to(features.dtype))
            if background and self.background is not None:
                # normalised on each use: its norm starts near 0.2, and a cosine needs norm 1
                learned = functional.normalize(self.background.to(features.dtype), dim=0)
                logits = torch.cat([logits, (features @ learned)[:, None]], dim=1)
            return logits / self.temperature

    def extra_repr(self) -> str:
        """Describe the module for ``print``."""
        return (
            f"classes={self.num_classes}, dimension={self.dimension}, "
            f"temperature={self.temperature:g}"
        )


def _positive(temperature: float) -> float:
    if not temperature > 0:
        raise ValueError(f"expected a positive temperature, got {temperature}")
    return float(temperature)
