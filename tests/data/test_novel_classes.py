"""The published splits, compared with Detectron2's tables."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.lvis import get_lvis_instances_meta
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

from vild.data import COCO_BASE, COCO_NOVEL, novel_flags
from vild.data.annotations import Category
from vild.data.novel_classes import coco_ovd_categories, lvis_v1_categories, select_rows

COCO_THINGS = {item["name"]: item["id"] for item in COCO_CATEGORIES if item["isthing"]}
CLASSES = [
    Category(id=id, name=name, synonyms=(name,), frequency=frequency, image_count=None)
    for id, name, frequency in (
        *((2, "red kite", "r"), (5, "sparrow", "f"), (6, "crow", "c"), (9, "osprey", "r")),
    )
]


def test_lvis_has_1203_classes_in_order() -> None:
    categories = lvis_v1_categories()
    assert [category.id for category in categories] == list(range(1, 1204))
    assert Counter(category.frequency for category in categories) == {"f": 405, "c": 461, "r": 337}
    meta = get_lvis_instances_meta("lvis_v1")
    assert [category.name for category in categories] == meta["thing_classes"]
    assert all(category.synonyms[0] == category.name for category in categories)
    assert all(len(set(c.synonyms)) == len(c.synonyms) for c in categories)


def test_lvis_novel_classes_are_the_rare_ones() -> None:
    flags = novel_flags(lvis_v1_categories(), "r", "LVIS v1")
    assert (flags.count(False), flags.count(True)) == (866, 337)
    rare = {item["id"] for item in LVIS_CATEGORIES if item["frequency"] == "r"}
    assert {row + 1 for row, is_novel in enumerate(flags) if is_novel} == rare


def test_coco_split_is_48_and_17() -> None:
    assert (len(set(COCO_BASE)), len(set(COCO_NOVEL))) == (len(COCO_BASE), len(COCO_NOVEL))
    assert (len(COCO_BASE), len(COCO_NOVEL)) == (48, 17)
    assert not set(COCO_BASE) & set(COCO_NOVEL)
    assert set(COCO_NOVEL) == {
        *("airplane", "bus", "cat", "dog", "cow", "elephant", "umbrella", "tie", "snowboard"),
        *("skateboard", "cup", "knife", "cake", "couch", "keyboard", "sink", "scissors"),
    }
    assert set(COCO_BASE) | set(COCO_NOVEL) <= COCO_THINGS.keys()


def test_coco_rows_are_ordered_by_id_and_15_classes_are_absent() -> None:
    categories = coco_ovd_categories()
    ids = [category.id for category in categories]
    assert ids == sorted(set(ids))
    assert {category.name: category.id for category in categories} == {
        name: COCO_THINGS[name] for name in (*COCO_BASE, *COCO_NOVEL)
    }
    assert COCO_THINGS.keys() - {category.name for category in categories} == {
        *("traffic light", "fire hydrant", "stop sign", "parking meter", "sports ball"),
        *("baseball bat", "baseball glove", "tennis racket", "wine glass", "hot dog"),
        *("potted plant", "dining table", "cell phone", "hair drier", "teddy bear"),
    }


def test_coco_flags_follow_the_names() -> None:
    categories = coco_ovd_categories()
    flags = novel_flags(categories, "r", "COCO")
    assert {c.name for c, is_novel in zip(categories, flags, strict=True) if is_novel} == {
        *COCO_NOVEL
    }
    assert flags == novel_flags(categories, COCO_NOVEL, "COCO")


@pytest.mark.parametrize(
    ("novel", "expected"),
    [
        (["red kite", "osprey"], (True, False, False, True)),
        ([9, 2], (True, False, False, True)),
        ([9, "crow"], (False, False, True, True)),
        ([], (False, False, False, False)),
        ("r", (True, False, False, True)),
        ("c", (False, False, True, False)),
        ("f", (False, True, False, False)),
    ],
)
def test_flags_from_names_ids_and_groups(
    novel: list[str | int] | str, expected: tuple[bool, ...]
) -> None:
    assert novel_flags(CLASSES, novel, "x") == expected


@pytest.mark.parametrize(
    ("novel", "message"),
    [
        (["ospray"], r"x: the novel class 'ospray' is not in .*Did you mean 'osprey'\?"),
        (["Sparrow"], r"'Sparrow' is not in the dataset\. Did you mean 'sparrow'\?"),
        ([3], r"the novel class 3 is not in .*It has 4 classes, among them 'red kite'"),
        (["tractor"], r"It has 4 classes, among them 'red kite', 'sparrow', 'crow', 'osprey'"),
        (["crow", "crow"], "the novel class 'crow' is listed more than once"),
        (["crow", 6], "the novel class 6 is listed more than once"),
        ("rare", "frequency group 'r', 'c' or 'f'; got 'rare'"),
        ("osprey", "expected novel classes as a list of names or ids"),
        ("", "expected novel classes as a list of names or ids"),
    ],
)
def test_bad_novel_classes_are_named(novel: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        novel_flags(CLASSES, novel, "x")


def test_rows_of_names_and_ids() -> None:
    assert select_rows(CLASSES, ["osprey", 5], "x", "base") == {1, 3}
    with pytest.raises(ValueError, match="x: the base class 'crows' is not in"):
        select_rows(CLASSES, ["crows"], "x", "base")


def test_a_number_that_is_an_id_and_another_name_has_to_be_quoted() -> None:
    digits = [Category(n + 1, str(n), (str(n),), "f", None) for n in range(3)]
    with pytest.raises(ValueError, match="2 is the id of '1' and the name of another class"):
        novel_flags(digits, [2], "here")
    assert novel_flags(digits, ["2"], "here") == (False, False, True)
    assert novel_flags(digits, [3], "here") == (False, False, True)
