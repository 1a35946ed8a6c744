"""The built-in datasets: registered without reading files, in both layouts, without leaks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

from vild.data import (
    COCO_BASE,
    COCO_NOVEL,
    find_split,
    register_builtin,
    register_split,
    require_split,
)
from vild.data.novel_classes import coco_ovd_categories
from vild.data.registry import data_root

from .test_annotations import annotation, rows_of, write

LVIS_NAMES = ("lvis_v1_train", "lvis_v1_train_base", "lvis_v1_val")
COCO_NAMES = ("coco_2017_ovd_train", "coco_2017_ovd_train_base", "coco_2017_ovd_val")
LAYOUTS = ("detectron2", "flat")
# ids of LVIS v1
RARE = {13: "applesauce", 14: "apricot", 20: "armoire"}
NOT_RARE = {1: "aerosol_can", 3: "airplane", 1203: "zucchini"}


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """Yield an empty folder that is the data root of the built-in datasets during the test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(tmp_path))
        yield tmp_path
    register_builtin()


def lvis_contents() -> dict[str, Any]:
    ids = [20, 1203, 3, 13, 1, 14]
    by_id = {item["id"]: item for item in LVIS_CATEGORIES}
    return {
        "images": [
            {
                "id": id,
                "height": 20,
                "width": 30,
                "coco_url": f"http://images.cocodataset.org/{split}/{id:012d}.jpg",
                "neg_category_ids": [14],
                "not_exhaustive_category_ids": [],
            }
            for id, split in ((1, "train2017"), (2, "train2017"), (3, "val2017"))
        ],
        "annotations": [
            *(annotation(n, 1, id) for n, id in enumerate(ids)),
            *(annotation(10 + n, 2, id) for n, id in enumerate(RARE)),
        ],
        "categories": [
            {"name": by_id[id]["synonyms"][0], "image_count": 1, **by_id[id]} for id in ids
        ],
    }


def coco_contents() -> dict[str, Any]:
    """Return 80 classes with one object each; images of even ids hold only novel classes."""
    things = [item for item in COCO_CATEGORIES if item["isthing"]]
    return {
        "images": [
            {"id": id, "file_name": f"{id:012d}.jpg", "height": 20, "width": 30} for id in (1, 2)
        ],
        "annotations": [
            annotation(item["id"], 2 if item["name"] in COCO_NOVEL else 1, item["id"])
            for item in things
        ],
        "categories": [{"id": item["id"], "name": item["name"]} for item in things],
    }


def place(root: Path, layout: str) -> None:
    """Write both jsons of both datasets and register them again."""
    lvis, coco = ("lvis", "coco/annotations") if layout == "detectron2" else ("annotations",) * 2
    for split in ("train", "val"):
        write(root / lvis, lvis_contents(), f"lvis_v1_{split}.json")
        write(root / coco, coco_contents(), f"instances_{split}2017.json")
    register_builtin()


def names_in(name: str) -> list[list[str]]:
    """Return the class names of a dataset's annotations, one list per image, via the metadata."""
    names = MetadataCatalog.get(name).thing_classes
    return [[names[row] for row in rows] for rows in rows_of(DatasetCatalog.get(name))]


@pytest.mark.parametrize(
    ("names", "classes", "novel", "evaluator"),
    [(LVIS_NAMES, 1203, 337, "lvis"), (COCO_NAMES, 65, 17, "coco")],
)
def test_metadata_needs_no_data(
    root: Path, names: tuple[str, ...], classes: int, novel: int, evaluator: str
) -> None:
    register_builtin()
    for name in names:
        assert name in DatasetCatalog
        metadata = MetadataCatalog.get(name)
        per_class = (metadata.thing_classes, metadata.synonyms, metadata.frequency, metadata.novel)
        assert [len(values) for values in per_class] == [classes] * 4
        assert sum(metadata.novel) == novel
        assert [f == "r" for f in metadata.frequency] == metadata.novel
        assert [s[0] for s in metadata.synonyms] == metadata.thing_classes
        assert metadata.evaluator_type == evaluator
        assert sorted(metadata.thing_dataset_id_to_contiguous_id.values()) == list(range(classes))
        assert Path(metadata.json_file).is_relative_to(root)
        assert Path(metadata.image_root).is_relative_to(root)
        message = (
            f"expected annotations at {metadata.json_file}: No such file or directory. Run "
            "datasets/check_datasets.py to see which files are expected where"
        )
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            DatasetCatalog.get(name)


def test_registering_reads_nothing(root: Path) -> None:
    (root / "lvis").mkdir()
    (root / "lvis" / "lvis_v1_train.json").write_text("no json", encoding="utf-8")
    register_builtin()
    with pytest.raises(ValueError, match="is not a json file"):
        DatasetCatalog.get("lvis_v1_train")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_layouts_are_found(root: Path, layout: str) -> None:
    place(root, layout)
    flat = layout == "flat"
    lvis = MetadataCatalog.get("lvis_v1_val")
    assert lvis.json_file == str(root / ("annotations" if flat else "lvis") / "lvis_v1_val.json")
    images = root if flat else root / "coco"
    for name in LVIS_NAMES:
        assert [record["file_name"] for record in DatasetCatalog.get(name)] == [
            str(images / "train2017" / "000000000001.jpg"),
            str(images / "train2017" / "000000000002.jpg"),
            str(images / "val2017" / "000000000003.jpg"),
        ]
    for name, split in zip(COCO_NAMES, ("train2017", "train2017", "val2017"), strict=True):
        assert DatasetCatalog.get(name)[0]["file_name"] == str(images / split / "000000000001.jpg")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lvis_base_split_has_no_novel_annotation(root: Path, layout: str) -> None:
    place(root, layout)
    assert names_in("lvis_v1_train_base") == [["zucchini", "airplane", "aerosol_can"], [], []]
    everything = ["armoire", "zucchini", "airplane", "applesauce", "aerosol_can", "apricot"]
    for name in ("lvis_v1_train", "lvis_v1_val"):
        assert names_in(name) == [everything, list(RARE.values()), []]
        assert rows_of(DatasetCatalog.get(name))[0] == [19, 1202, 2, 12, 0, 13]


def test_lvis_keeps_what_its_evaluator_wants(root: Path) -> None:
    place(root, "flat")
    for name in LVIS_NAMES:
        assert [record["neg_category_ids"] for record in DatasetCatalog.get(name)] == [[14]] * 3


def test_rare_ids_are_rare() -> None:
    metadata = MetadataCatalog.get("lvis_v1_train")
    assert all(metadata.novel[id - 1] for id in RARE)
    assert not any(metadata.novel[id - 1] for id in NOT_RARE)
    named = {id: metadata.thing_classes[id - 1] for id in (RARE | NOT_RARE)}
    assert named == RARE | NOT_RARE


@pytest.mark.parametrize("layout", LAYOUTS)
def test_coco_base_split_has_48_classes(root: Path, layout: str) -> None:
    place(root, layout)
    base, novel = names_in("coco_2017_ovd_train_base")
    assert (sorted(base), novel) == (sorted(COCO_BASE), [])
    for name in ("coco_2017_ovd_train", "coco_2017_ovd_val"):
        base, novel = names_in(name)
        assert sorted(base) == sorted(COCO_BASE)  # 15 of the json's 80 classes are dropped
        assert sorted(novel) == sorted(COCO_NOVEL)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_base_split_has_a_novel_row(root: Path, layout: str) -> None:
    place(root, layout)
    splits = [
        name
        for name in DatasetCatalog.list()
        if name.endswith("_base") and Path(MetadataCatalog.get(name).json_file).is_relative_to(root)
    ]
    assert sorted(splits) == ["coco_2017_ovd_train_base", "lvis_v1_train_base"]
    for name in splits:
        novel = MetadataCatalog.get(name).novel
        rows = [row for rows in rows_of(DatasetCatalog.get(name)) for row in rows]
        assert rows
        assert not any(novel[row] for row in rows), name


def test_detectron2s_layout_goes_first(root: Path) -> None:
    for layout in LAYOUTS:
        place(root, layout)
    assert MetadataCatalog.get("lvis_v1_train").json_file == str(
        root / "lvis" / "lvis_v1_train.json"
    )


def test_data_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of/someone")
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/data")
    assert data_root() == Path("/home/of/someone/data")
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert data_root() == Path("datasets")


def test_flags_must_match_the_classes() -> None:
    with pytest.raises(
        ValueError, match="x: expected one novel flag per class, got 2 flags for 65"
    ):
        register_split(
            "x",
            "x.json",
            ".",
            coco_ovd_categories(),
            [True, False],
            base_only=False,
            evaluator_type="coco",
        )
    assert "x" not in DatasetCatalog


@pytest.mark.parametrize("catalog", ["both", "data", "metadata"])
def test_a_registration_is_replaced(catalog: str, request: pytest.FixtureRequest) -> None:
    name = f"replaced_{catalog}"
    request.addfinalizer(lambda: MetadataCatalog.pop(name, None))
    request.addfinalizer(lambda: DatasetCatalog.pop(name, None))
    if catalog != "metadata":
        DatasetCatalog.register(name, lambda: [{"old": True}])
    if catalog != "data":
        MetadataCatalog.get(name).set(thing_classes=["old"], json_file="old.json")
    categories = coco_ovd_categories()
    register_split(
        name,
        "new.json",
        ".",
        categories,
        [False] * 65,
        base_only=False,
        evaluator_type="coco",
    )
    assert MetadataCatalog.get(name).json_file == "new.json"
    assert MetadataCatalog.get(name).thing_classes == [c.name for c in categories]
    with pytest.raises(ValueError, match=r"new\.json"):
        DatasetCatalog.get(name)


def test_an_unknown_split_is_refused_with_near_misses() -> None:
    require_split("lvis_v1_val")
    with pytest.raises(ValueError, match=r"in DATASETS\.TEST, got 'lvis_v1_vla'.*'lvis_v1_val'"):
        require_split("lvis_v1_vla", "a registered split in DATASETS.TEST")
    with pytest.raises(ValueError, match=r"got 'xyz'.*Registered: \['.*'lvis_v1_val'"):
        find_split("xyz")
