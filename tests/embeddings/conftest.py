"""A teacher small enough to build in a test."""

from __future__ import annotations

import open_clip
import pytest
import torch

from vild.embeddings import OpenClipTeacher


def tiny_clip(quick_gelu: bool = False) -> open_clip.CLIP:
    """Return a real open_clip model with random weights: ViT, 32 px, D = 16."""
    torch.manual_seed(0)
    return open_clip.CLIP(
        embed_dim=16,
        quick_gelu=quick_gelu,
        vision_cfg={"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
        text_cfg={"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    )


@pytest.fixture(scope="session")
def teacher() -> OpenClipTeacher:
    return OpenClipTeacher(tiny_clip(), open_clip.SimpleTokenizer(context_length=24), name="tiny")
