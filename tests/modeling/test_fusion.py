"""Fusion of text and image probabilities: values from numpy in float64, zeros, misuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vild.modeling import fuse_scores

NOVEL = torch.tensor([False, True, False, True, True])
FUSED = 1.462979  # sum of all scores of seed 0, in float64


def made(seed: int = 0, regions: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    text, image = torch.randn(2, regions, len(NOVEL), generator=generator).mul(5).softmax(2)
    return text, image


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weights", [(2 / 3, 1 / 3), (0.65, 0.2), (1.0, 0.0)])
def test_weighted_geometric_mean(seed: int, weights: tuple[float, float]) -> None:
    text, image = made(seed)
    expected = np.empty(text.shape)
    for r, k in np.ndindex(*text.shape):
        w = weights[1] if NOVEL[k] else weights[0]
        expected[r, k] = float(text[r, k]) ** w * float(image[r, k]) ** (1 - w)
    assert np.abs(fuse_scores(text, image, NOVEL, *weights).numpy() - expected).max() < 1e-6


def test_default_trusts_text_on_base_and_image_on_novel_classes() -> None:
    text, image = torch.full((1, 5), 0.001), torch.full((1, 5), 0.125)
    base, novel = 0.01 * 0.5, 0.1 * 0.25
    expected = torch.tensor([[base, novel, base, novel, novel]])
    assert torch.allclose(fuse_scores(text, image, NOVEL), expected)


def test_it_has_this_value() -> None:
    assert abs(float(fuse_scores(*made(), NOVEL).double().sum()) - FUSED) < 1e-5


def test_inputs_are_left_alone() -> None:
    text, image = made()
    before = text.clone(), image.clone()
    fuse_scores(text, image, NOVEL)
    assert torch.equal(text, before[0])
    assert torch.equal(image, before[1])


@pytest.mark.parametrize("weights", [(2 / 3, 1 / 3), (1.0, 0.0)])
def test_zero_probabilities(weights: tuple[float, float]) -> None:
    text, image = made()
    text[0], image[1] = 0, 0
    text[2], image[2] = 0, 0
    fused = fuse_scores(text, image, NOVEL, *weights)
    assert torch.isfinite(fused).all()
    assert not fused[2].any()
    if weights[0] < 1:
        assert not fused[:2].any()
    else:  # the other factor is ignored: 0^0 is 1
        assert torch.equal(fused[1][~NOVEL], text[1][~NOVEL])


def test_no_region_and_no_class() -> None:
    assert fuse_scores(torch.zeros(0, 5), torch.zeros(0, 5), NOVEL).shape == (0, 5)
    assert fuse_scores(torch.zeros(4, 0), torch.zeros(4, 0), NOVEL[:0]).shape == (4, 0)


def test_float32_whatever_comes_in() -> None:
    text, image = made()
    expected = fuse_scores(text, image, NOVEL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fuse_scores(text, image, NOVEL), expected)
        half = fuse_scores(text.half(), image.bfloat16(), NOVEL)
    assert half.dtype == torch.float32
    assert torch.allclose(half, expected, atol=1e-2)


def test_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    both = torch.rand(2, 6, 5, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    text, image = (x.requires_grad_() for x in both.unbind())
    assert torch.autograd.gradcheck(lambda t, i: fuse_scores(t, i, NOVEL), (text, image))


def test_misuse() -> None:
    text, image = made()
    with pytest.raises(ValueError, match=r"both without background, got \(6, 6\) and \(6, 5\)"):
        fuse_scores(torch.zeros(6, 6), image, NOVEL)
    with pytest.raises(ValueError, match=r"one bool per class, \(5,\).*int64"):
        fuse_scores(text, image, NOVEL.long())
    with pytest.raises(ValueError, match=r"weights in \[0, 1\], got 1.5"):
        fuse_scores(text, image, NOVEL, 1.5)
