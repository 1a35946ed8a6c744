"""Masks in the formats of annotation tools, and masks that cannot be drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest

from vild.data.masks import (
    Rle,
    box_of,
    check_counts,
    check_segmentation,
    decode_segmentation,
    read_segmentation,
)

HEIGHT, WIDTH = 20, 30
FLAT = [2.0, 3.0, 12.0, 3.0, 12.0, 13.0, 2.0, 13.0]
POINTS = [[2, 3], [12, 3], [12, 13], [2, 13]]
# columns 2 to 4 of a mask of 20 x 30 pixels
COUNTS = [40, 60, 500]
COMPRESSED = mask_util.frPyObjects({"size": [HEIGHT, WIDTH], "counts": COUNTS}, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    "form",
    [
        [FLAT],
        FLAT,
        [str(v) for v in FLAT],
        POINTS,
        [POINTS],
        [{"x": x, "y": y} for x, y in POINTS],
        [[{"x": x, "y": y} for x, y in POINTS]],
        [FLAT, [1, 1]],
    ],
)
def test_polygons_of_any_form(form: Any) -> None:
    mask = read_segmentation(form)
    assert mask is not None
    assert check_segmentation(mask, HEIGHT, WIDTH) == [FLAT]
    assert box_of([FLAT]) == [2, 3, 10, 10]
    assert decode_segmentation(form, HEIGHT, WIDTH).sum() == 100


@pytest.mark.parametrize(
    "form",
    [
        {"size": [HEIGHT, WIDTH], "counts": COUNTS},
        {"size": [20.0, "30"], "counts": [str(n) for n in COUNTS]},
        {"size": [HEIGHT, WIDTH], "counts": COMPRESSED["counts"].decode()},
        {"size": [HEIGHT, WIDTH], "counts": COMPRESSED["counts"]},
    ],
)
def test_run_lengths_of_any_form(form: Any) -> None:
    mask = read_segmentation(form)
    assert mask is not None
    checked = check_segmentation(mask, HEIGHT, WIDTH)
    assert checked == Rle((HEIGHT, WIDTH), COMPRESSED["counts"].decode())
    assert box_of(checked) == [2, 0, 3, 20]
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[:, 2:5] = True
    assert np.array_equal(decode_segmentation(form, HEIGHT, WIDTH), expected)


@pytest.mark.parametrize("form", [None, [], {}])
def test_no_mask(form: Any) -> None:
    assert read_segmentation(form) is None
    assert not decode_segmentation(form, HEIGHT, WIDTH).any()


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ([[]], "no polygon of 3 or more points"),
        ([[1, 2, 3, 4]], "no polygon of 3 or more points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "no polygon of 3 or more points"),
        ([[1, 2, 3, 4, 5, float("nan")]], "no polygon of 3 or more points"),
        ([[1, 2, 1e9, 4, 5, 6]], "no polygon of 3 or more points near the image"),
        ([["a", 2, 3, 4, 5, 6]], "expected numbers as coordinates"),
        ([[[[1]]]], "expected numbers as coordinates"),
        ("ab", "expected polygons or run lengths, got 'ab'"),
        ({"counts": COUNTS}, "expected run lengths"),
        (
            {"size": [9, 9], "counts": [81]},
            r"run lengths of \[9, 9\] pixels, but the image has \[20, 30\]",
        ),
        ({"size": [HEIGHT, WIDTH], "counts": [40, 60, 499]}, "do not cover the image"),
        ({"size": [HEIGHT, WIDTH], "counts": [640, -40]}, "do not cover the image"),
        ({"size": [HEIGHT, WIDTH], "counts": []}, "do not cover the image"),
        ({"size": [HEIGHT, WIDTH], "counts": ""}, "expected compressed run lengths, got the text"),
        ({"size": [HEIGHT, WIDTH], "counts": "b'X1'"}, "got the text \"b'X1'\""),
        ({"size": [HEIGHT, WIDTH], "counts": [600]}, "the mask is empty"),
    ],
)
def test_what_cannot_be_drawn(form: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_segmentation(read_segmentation(form) or [], HEIGHT, WIDTH)


def test_a_detection_may_have_an_empty_mask() -> None:
    empty = Rle((HEIGHT, WIDTH), [600])
    checked = check_segmentation(empty, HEIGHT, WIDTH, may_be_empty=True)
    assert isinstance(checked, Rle)
    assert mask_util.area(checked.to_dict()) == 0


def test_compressed_counts_are_those_of_pycocotools_or_refused() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = rng.integers(1, 60, 2).tolist()
        mask = (rng.random((height, width)) < rng.random()).astype(np.uint8)
        counts = mask_util.encode(np.asfortranarray(mask))["counts"].decode()
        check_counts(counts, height * width)
        with pytest.raises(ValueError, match="do not cover"):
            check_counts(counts, height * width + 1)
        # truncated, a missing byte or invalid characters: never accepted for the same image
        for broken in (counts[:-1], counts[1:], counts + "z", counts + "o"):
            with pytest.raises(ValueError, match=r"cover|truncated|negative|too large|expected"):
                check_counts(broken, height * width)
