"""What the rest of the package needs of a teacher, and the names of the provided ones.

Shapes: N texts or crops, D embedding, S side of a crop in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from vild.precision import AUTO, resolve_precision

OPENAI_MODEL, OPENAI_TAG = "ViT-B-32", "openai"  # the paper's teacher
SHAPES_MODEL = "vild-shapes"  # the teacher of the shapes benchmark, included in this package
SHAPES_FOLDER = Path(__file__).parent / "shapes_teacher"  # its configuration and weights


class Teacher(Protocol):
    """A frozen model that embeds texts and image crops in one space.

    To add one, write a class with these members and return it from
    :func:`vild.embeddings.build.build_teacher`, which every command and the engine call with the
    names of a model and its weights. What depends on a teacher:

    - text embeddings, stores and the cache of text embeddings (:mod:`vild.embeddings.cache`) record
      :attr:`fingerprint`, and results of teachers with different fingerprints are never mixed;
    - a store also records :meth:`describe` and continues only with an equal description, so it must
      include whatever changes the image embeddings slightly, such as the precision;
    - a class score is a softmax over cosine / :attr:`temperature`.

    Attributes:
        name: the teacher's name as the user gave it; recorded in every artefact.
        interpolation: how its training images were resized, ``bicubic`` or ``bilinear``.
    """

    name: str
    interpolation: str

    @property
    def device(self) -> torch.device:
        """Device of the weights."""

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """(mean, deviation) of the training images (RGB), (3,) each, on the weights' device."""

    @property
    def temperature(self) -> float:
        """Divisor of cosines; 0.01 for OpenAI's models."""

    @property
    def image_size(self) -> int:
        """S, side of the square crops in pixels."""

    @property
    def dimension(self) -> int:
        """D, length of an embedding."""

    @property
    def fingerprint(self) -> str:
        """Checksum of everything that the embeddings depend on; equal teachers have equal ones."""

    def describe(self) -> dict[str, Any]:
        """Return a json description, with ``name``, ``fingerprint``, ``dimension``, ``precision``.

        ``precision`` is that of the image encoder: ``fp32``, ``bf16`` or ``fp16``.
        """

    def encode_text(
        self, texts: Sequence[str], batch_size: int = 256, progress: bool = False
    ) -> Tensor:
        """Return embeddings (N, D) float32 of sentences, L2-normalised, on the CPU."""

    def encode_image(self, crops: Tensor, normalised: bool = False) -> Tensor:
        """Return embeddings (N, D) float32 of crops, L2-normalised, on the teacher's device.

        Args:
            crops: (N, 3, S, S) RGB in [0, 1].
            normalised: whether :attr:`statistics` have already been applied to them.
        """


def default_precision(device: str | torch.device) -> str:
    """Return the precision to embed crops in: ``bf16`` on GPUs with native support, else ``fp32``.

    On CPUs autocast gains nothing: open_clip's attention then copies its weights, which takes as
    long as the faster products save.
    """
    return "fp32" if torch.device(device).type == "cpu" else resolve_precision(AUTO, device)
