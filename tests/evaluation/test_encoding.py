"""Encoding of masks, byte for byte as in pycocotools."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_util
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vild.evaluation import encode_masks


def official(mask: npt.NDArray[np.bool_]) -> dict[str, object]:
    (item,) = mask_util.encode(np.asfortranarray(mask[:, :, None].view(np.uint8)))
    return {"size": list(item["size"]), "counts": item["counts"].decode("ascii")}


def equal(mask: npt.NDArray[np.bool_]) -> None:
    assert encode_masks(torch.from_numpy(mask)[None]) == [official(mask)]


@settings(max_examples=300, deadline=None)
@given(arrays.arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 7))))
def test_any_small_mask(mask: npt.NDArray[np.bool_]) -> None:
    equal(mask)


@pytest.mark.parametrize("fill", [0.02, 0.5, 0.98])
@pytest.mark.parametrize("box", [(0, 0, 60, 90), (0, 20, 60, 50), (13, 0, 20, 90), (59, 89, 1, 1)])
def test_objects_anywhere(box: tuple[int, int, int, int], fill: float) -> None:
    """Objects that touch the top and the bottom have runs over several columns."""
    top, left, height, width = box
    random = np.random.default_rng(0)
    for threshold in (fill, 2.0):  # with holes and solid
        mask = np.zeros((60, 90), bool)
        mask[top : top + height, left : left + width] = random.random((height, width)) < threshold
        equal(mask)


def test_several_at_once_in_their_order() -> None:
    masks = np.random.default_rng(0).random((5, 12, 17)) < 0.4
    masks[2] = False
    masks[3] = True
    assert encode_masks(torch.from_numpy(masks)) == [official(mask) for mask in masks]
