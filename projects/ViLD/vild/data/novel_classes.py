"""Define the novel classes: the published splits, and rules for other datasets."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

from vild.data.annotations import Category
from vild.utils.formatting import did_you_mean

# Open-vocabulary COCO: 48 base and 17 novel classes, evaluated together on all 65
# (Bansal et al., Zero-Shot Object Detection, ECCV 2018; used by ViLD, section 4.4).
COCO_NOVEL = (
    *("airplane", "bus", "cat", "dog", "cow", "elephant", "umbrella", "tie", "snowboard"),
    *("skateboard", "cup", "knife", "cake", "couch", "keyboard", "sink", "scissors"),
)
COCO_BASE = (
    *("person", "bicycle", "car", "motorcycle", "train", "truck", "boat", "bench", "bird"),
    *("horse", "sheep", "bear", "zebra", "giraffe", "backpack", "handbag", "suitcase", "frisbee"),
    *("skis", "kite", "surfboard", "bottle", "fork", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "pizza", "donut", "chair", "bed", "toilet"),
    *("tv", "laptop", "mouse", "remote", "microwave", "oven", "toaster", "refrigerator", "book"),
    *("clock", "vase", "toothbrush"),
)


def lvis_v1_categories() -> list[Category]:
    """Return LVIS v1's 1203 classes in the order of their ids, with the names in Detectron2."""
    return [
        Category(
            id=item["id"],
            name=item["synonyms"][0],
            synonyms=tuple(dict.fromkeys(item["synonyms"])),
            frequency=item["frequency"],
            image_count=None,
        )
        for item in sorted(LVIS_CATEGORIES, key=lambda item: item["id"])
    ]


def coco_ovd_categories() -> list[Category]:
    """Return the 65 classes of open-vocabulary COCO in the order of their ids.

    COCO has no frequency groups; novel classes are given ``r`` and base classes ``f``.
    """
    kept = {*COCO_BASE, *COCO_NOVEL}
    return [
        Category(
            id=item["id"],
            name=item["name"],
            synonyms=(item["name"],),
            frequency="r" if item["name"] in COCO_NOVEL else "f",
            image_count=None,
        )
        for item in sorted(COCO_CATEGORIES, key=lambda item: item["id"])
        if item["isthing"] and item["name"] in kept
    ]


def novel_flags(
    categories: Sequence[Category], novel: Sequence[str | int] | str, where: str
) -> tuple[bool, ...]:
    """Return which of ``categories`` are novel.

    Args:
        categories: the classes, one row each.
        novel: their names or json ids, or a frequency group (``"r"``), as LVIS's split is defined.
        where: source of the request, for error messages.

    Raises:
        ValueError: an unknown name, id or frequency.
    """
    if isinstance(novel, str):
        if novel not in ("r", "c", "f"):
            raise ValueError(
                f"{where}: expected novel classes as a list of names or ids, or as a frequency "
                f"group 'r', 'c' or 'f'; got {novel!r:.100}"
            )
        return tuple(category.frequency == novel for category in categories)
    rows = select_rows(categories, novel, where, "novel")
    return tuple(row in rows for row in range(len(categories)))


def select_rows(
    categories: Sequence[Category], wanted: Sequence[str | int], where: str, role: str
) -> set[int]:
    """Return the rows of the ``wanted`` classes, given by name or by json id.

    Raises:
        ValueError: a class is unknown or listed twice; the message suggests similar names.
    """
    by_key: dict[str | int, int] = {category.id: row for row, category in enumerate(categories)}
    by_key |= {category.name: row for row, category in enumerate(categories)}
    rows: set[int] = set()
    for key in wanted:
        # yaml parses an unquoted "yes" as True, which would count as the id 1
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise ValueError(
                f"{where}: expected {role} classes as names or ids, got {key!r:.100}; put names "
                "that yaml reads as something else in quotes"
            )
        if key not in by_key:
            names = [category.name for category in categories]
            listed = f"It has {len(names)} classes, among them {', '.join(map(repr, names[:5]))}."
            raise ValueError(
                f"{where}: the {role} class {key!r:.100} is not in the dataset. "
                + (did_you_mean(str(key), names) or listed)
            )
        if isinstance(key, int) and by_key.get(str(key), by_key[key]) != by_key[key]:
            raise ValueError(
                f"{where}: {key} is the id of {categories[by_key[key]].name!r} and the name of "
                f"another class; write the name in quotes: '{key}'"
            )
        if by_key[key] in rows:
            raise ValueError(f"{where}: the {role} class {key!r:.100} is listed more than once")
        rows.add(by_key[key])
    return rows
