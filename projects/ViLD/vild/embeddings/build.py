"""Build the teacher that a configuration or a command names."""

from __future__ import annotations

import torch

from vild.embeddings.open_clip_teacher import OpenClipTeacher
from vild.embeddings.teacher import OPENAI_MODEL, OPENAI_TAG, Teacher


def build_teacher(
    model: str = OPENAI_MODEL,
    pretrained: str | None = OPENAI_TAG,
    device: str | torch.device | None = None,
    precision: str = "fp32",
) -> Teacher:
    """Build the teacher of these names; see :meth:`OpenClipTeacher.load`.

    Args:
        model: name of the model (``MODEL.VILD.TEACHER.MODEL``).
        pretrained: name or file of its weights (``MODEL.VILD.TEACHER.PRETRAINED``). None or an
            empty text gives random weights, unless ``model`` includes its own.
        device: a GPU if available, by default.
        precision: precision of matrix products, ``fp32``, ``bf16`` or ``fp16``.

    Raises:
        ValueError: an unknown name, or weights that cannot be loaded.
    """
    return OpenClipTeacher.load(model, pretrained or None, device, precision)
