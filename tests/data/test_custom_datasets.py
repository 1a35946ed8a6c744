"""Custom datasets described by a yaml; on made-up jsons and on real photographs."""

from __future__ import annotations

import logging
import re
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets import load_coco_json

from vild.data import COCO_BASE, COCO_NOVEL, register_custom

from .conftest import BIRDS, Spec, bird_contents, write_yaml
from .test_annotations import rows_of, write

COCO_MINI = Path(__file__).parents[3] / "shared" / "data" / "coco_mini"
needs_photographs = pytest.mark.skipif(
    not COCO_MINI.is_dir(), reason=f"the small sample of COCO is not at {COCO_MINI}"
)


def classes_of(name: str) -> list[tuple[str, str, bool]]:
    """Return name, frequency and novel flag of every row."""
    metadata = MetadataCatalog.get(name)
    return list(zip(metadata.thing_classes, metadata.frequency, metadata.novel, strict=True))


def counts(name: str) -> Counter[str]:
    """Return the number of annotations per class name."""
    names = MetadataCatalog.get(name).thing_classes
    return Counter(names[row] for rows in rows_of(DatasetCatalog.get(name)) for row in rows)


@pytest.mark.parametrize("novel", [["red kite", "osprey"], [6, 8], ["osprey", 8]])
def test_novel_names_and_ids_make_a_split(
    tmp_path: Path, spec: Spec, novel: list[str | int]
) -> None:
    names = register_custom(write_yaml(tmp_path, spec | {"novel": novel}))
    assert sorted(names) == ["birds_train", "birds_train_base", "birds_val"]
    for name in names:
        # APr covers the novel classes and no base class
        assert classes_of(name) == [
            *(("crow", "c", False), ("sparrow", "c", False)),
            *(("osprey", "r", True), ("red kite", "r", True)),
        ]
        assert len(DatasetCatalog.get(name)) == 12
    everything = {"crow": 12, "osprey": 12, "sparrow": 1, "red kite": 1}
    assert counts("birds_train") == counts("birds_val") == everything
    assert counts("birds_train_base") == {"crow": 12, "sparrow": 1}


def test_a_frequency_group_makes_a_split(tmp_path: Path, spec: Spec) -> None:
    register_custom(write_yaml(tmp_path, spec | {"novel": "r"}))
    assert classes_of("birds_val") == [
        *(("crow", "c", False), ("sparrow", "r", True)),
        *(("osprey", "c", False), ("red kite", "r", True)),
    ]
    assert counts("birds_train_base") == {"crow": 12, "osprey": 12}


def test_the_frequencies_are_those_of_train(tmp_path: Path, spec: Spec) -> None:
    few = bird_contents()
    few["annotations"] = few["annotations"][:4]
    write(tmp_path / "birds", few, "val.json")
    register_custom(write_yaml(tmp_path, spec | {"novel": "r"}))
    assert classes_of("birds_val")[0] == ("crow", "c", False)
    image_count = MetadataCatalog.get("birds_val").class_image_count
    assert image_count[0] == {"id": 2, "image_count": 12}


def test_a_base_list_leaves_other_classes_out(tmp_path: Path, spec: Spec) -> None:
    spec |= {"novel": ["osprey"], "base": ["crow", 8]}
    for name in register_custom(write_yaml(tmp_path, spec)):
        assert [c[0] for c in classes_of(name)] == ["crow", "osprey", "red kite"]
        rows = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
        assert rows == {2: 0, 6: 1, 8: 2}
        assert len(DatasetCatalog.get(name)) == 12
    assert counts("birds_train") == {"crow": 12, "osprey": 12, "red kite": 1}
    assert counts("birds_train_base") == {"crow": 12, "red kite": 1}


def test_an_empty_base_is_no_base(tmp_path: Path, spec: Spec) -> None:
    for name in register_custom(write_yaml(tmp_path, spec | {"base": None})):
        assert [c[0] for c in classes_of(name)] == ["crow", "sparrow", "osprey", "red kite"]


@pytest.mark.parametrize(
    ("split", "names"),
    [("train", {"birds_train", "birds_train_base"}), ("val", {"birds_val"})],
)
def test_one_split_is_enough(tmp_path: Path, spec: Spec, split: str, names: set[str]) -> None:
    del spec["val" if split == "train" else "train"]
    assert set(register_custom(write_yaml(tmp_path, spec))) == names


def test_paths_are_relative_to_the_yaml(
    tmp_path: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path.parent)
    register_custom(str(write_yaml(tmp_path, spec).relative_to(tmp_path.parent)))
    metadata = MetadataCatalog.get("birds_train")
    assert Path(metadata.json_file).resolve() == tmp_path / "birds" / "train.json"
    file_name = DatasetCatalog.get("birds_train")[0]["file_name"]
    assert Path(file_name).resolve() == tmp_path / "birds" / "train" / "1.jpg"


@pytest.mark.parametrize("folder", ["$BIRDS", "${BIRDS}", "~/birds"])
def test_home_and_variables_are_expanded(
    tmp_path: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setenv("BIRDS", str(tmp_path / "birds"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for split in ("train", "val"):
        spec[split] = {"json": f"{folder}/{split}.json", "images": f"{folder}/{split}"}
    (tmp_path / "elsewhere").mkdir()
    register_custom(write_yaml(tmp_path / "elsewhere", spec))
    metadata = MetadataCatalog.get("birds_val")
    assert metadata.json_file == str(tmp_path / "birds" / "val.json")
    assert metadata.image_root == str(tmp_path / "birds" / "val")


def test_an_unset_variable_is_named(
    tmp_path: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BIRDS", raising=False)
    spec["val"]["images"] = "$BIRDS/val"
    message = r"val\.images: '\$BIRDS/val' has an environment variable that is not set"
    with pytest.raises(ValueError, match=message):
        register_custom(write_yaml(tmp_path, spec))


LISTS: dict[str, Any] = {"neg_category_ids": [], "not_exhaustive_category_ids": []}


@pytest.mark.parametrize(
    ("image_keys", "given", "evaluator"),
    [
        ({}, None, "coco"),
        (LISTS, None, "lvis"),
        (LISTS, "lvis", "lvis"),
        (LISTS, "coco", "coco"),
        ({}, "coco", "coco"),
    ],
)
def test_the_evaluator_is_detected_or_given(
    tmp_path: Path,
    spec: Spec,
    caplog: pytest.LogCaptureFixture,
    image_keys: dict[str, Any],
    given: str | None,
    evaluator: str,
) -> None:
    for split in ("train", "val"):
        write(tmp_path / "birds", bird_contents(**image_keys), f"{split}.json")
    if given:
        spec["evaluator"] = given
    for name in register_custom(write_yaml(tmp_path, spec)):
        assert MetadataCatalog.get(name).evaluator_type == evaluator
    assert caplog.records == []


def _lists_but(split: str, key: str) -> dict[str, dict[str, Any]]:
    """Return both splits with LVIS's lists, except for one image of ``split`` without ``key``."""
    both = {"train": bird_contents(**LISTS), "val": bird_contents(**LISTS)}
    del both[split]["images"][5][key]
    return both


WITHOUT_A_LIST = [
    ({"train": bird_contents(), "val": bird_contents()}, "train", "neg_category_ids", False),
    ({"train": bird_contents(), "val": bird_contents(**LISTS)}, "train", "neg_category_ids", True),
    ({"train": bird_contents(**LISTS), "val": bird_contents()}, "val", "neg_category_ids", True),
    *(
        (
            {split: bird_contents(**{kept: []}) for split in ("train", "val")},
            *("train", lacking, True),
        )
        for kept, lacking in (tuple(LISTS), tuple(reversed(LISTS)))
    ),
    *((_lists_but(split, key), split, key, True) for split in ("train", "val") for key in LISTS),
]


@pytest.mark.parametrize(("both", "split", "key", "warns"), WITHOUT_A_LIST)
def test_lvis_needs_both_lists_of_every_image(
    tmp_path: Path,
    spec: Spec,
    caplog: pytest.LogCaptureFixture,
    both: dict[str, dict[str, Any]],
    split: str,
    key: str,
    warns: bool,
) -> None:
    for name, data in both.items():
        write(tmp_path / "birds", data, f"{name}.json")
    path = write_yaml(tmp_path, spec | {"evaluator": "lvis"})
    before = DatasetCatalog.list()
    message = (
        f"{path}: evaluator: lvis needs 'neg_category_ids' and 'not_exhaustive_category_ids' for "
        f"every image, but images of {split} have no '{key}'. Use evaluator: coco"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        register_custom(path)
    assert DatasetCatalog.list() == before

    for name in register_custom(write_yaml(tmp_path, spec)):
        assert MetadataCatalog.get(name).evaluator_type == "coco"
    warning = (
        f"{path}: using COCO's evaluation: images of {split} have no '{key}', which LVIS's "
        "evaluation needs"
    )
    assert [(r.levelno, r.message) for r in caplog.records] == (
        [(logging.WARNING, warning)] if warns else []
    )


def test_crowds_that_are_single_objects(tmp_path: Path, spec: Spec) -> None:
    for split in ("train", "val"):
        crowds = bird_contents()
        for item in crowds["annotations"]:
            item["iscrowd"] = 1
        write(tmp_path / "birds", crowds, f"{split}.json")
    for given, expected in ((None, 1), (False, 1), (True, 0)):
        more = {} if given is None else {"crowds_are_objects": given}
        for name in register_custom(write_yaml(tmp_path, spec | more)):
            # evaluation reads the json again in the same way
            assert MetadataCatalog.get(name).crowds_are_objects == bool(given)
            instances = instances_of(DatasetCatalog.get(name))
            assert {instance["iscrowd"] for instance in instances} == {expected}


def test_a_yaml_may_be_registered_again(tmp_path: Path, spec: Spec) -> None:
    path = write_yaml(tmp_path, spec)
    assert register_custom(path) == register_custom(path)
    register_custom(write_yaml(tmp_path, spec | {"novel": ["crow"]}))
    assert [c[0] for c in classes_of("birds_train") if c[2]] == ["crow"]
    assert counts("birds_train_base") == {"sparrow": 1, "osprey": 12, "red kite": 1}


@pytest.mark.parametrize(
    "name", ["lvis_v1", "coco_2017_ovd", "coco_2017", "shapes", "coco_2014", "voc_2007"]
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_the_name_of_a_built_in_data_set_is_refused(
    tmp_path: Path, spec: Spec, name: str, split: str
) -> None:
    del spec["val" if split == "train" else "train"]
    path = write_yaml(tmp_path, spec | {"name": name})
    before = {other: DatasetCatalog[other] for other in DatasetCatalog.list()}
    taken = next(n for n in before if n in {f"{name}_{s}" for s in ("train_base", "train", "val")})
    message = f"{path}: the name '{name}' is taken ({taken}); choose another one"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        register_custom(path)
    assert {other: DatasetCatalog[other] for other in DatasetCatalog.list()} == before


def test_a_name_that_begins_like_another_is_free(tmp_path: Path, spec: Spec) -> None:
    for name in ("coco", "lvis_v1_train", "birds_train", 7):
        names = register_custom(write_yaml(tmp_path, spec | {"name": name}))
        assert names == [f"{name}_{split}" for split in ("train_base", "train", "val")]


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        (
            [{"id": id, "name": name} for id, name in BIRDS.items() if id != 8],
            "4 and 3 classes; the first difference is id 8, 'red kite'",
        ),
        (
            [{"id": id, "name": name.replace("osprey", "gull")} for id, name in BIRDS.items()],
            "4 and 4 classes; the first difference is id 6, 'gull'",
        ),
    ],
)
def test_train_and_val_need_the_same_classes(
    tmp_path: Path, spec: Spec, categories: list[dict[str, Any]], message: str
) -> None:
    write(tmp_path / "birds", bird_contents() | {"categories": categories}, "val.json")
    message = rf"the classes of train and val differ \({re.escape(message)}\)\. Use the same list"
    with pytest.raises(ValueError, match=message):
        register_custom(write_yaml(tmp_path, spec))


@pytest.fixture
def photographs(tmp_path: Path) -> None:
    """Register the 65 classes of open-vocabulary COCO on the sample as ``photographs_…``."""
    spec: Spec = {"name": "photographs", "novel": [*COCO_NOVEL], "base": [*COCO_BASE]}
    for split in ("train", "val"):
        spec[split] = {
            "json": str(COCO_MINI / "annotations" / f"instances_{split}2017.json"),
            "images": str(COCO_MINI / f"{split}2017"),
        }
    names = register_custom(write_yaml(tmp_path, spec))
    assert sorted(names) == [f"photographs_{split}" for split in ("train", "train_base", "val")]


def instances_of(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [instance for record in records for instance in record["annotations"]]


@needs_photographs
@pytest.mark.usefixtures("photographs")
def test_photographs_split_into_48_and_17() -> None:
    base, train, val = (
        DatasetCatalog.get(f"photographs_{split}") for split in ("train_base", "train", "val")
    )
    assert (len(base), len(train), len(val)) == (208, 208, 78)
    assert [r["file_name"] for r in base] == [r["file_name"] for r in train]
    metadata = MetadataCatalog.get("photographs_train_base")
    assert sorted(metadata.thing_classes) == sorted(COCO_BASE + COCO_NOVEL)
    assert (len(metadata.thing_classes), sum(metadata.novel)) == (65, 17)
    assert metadata.evaluator_type == "coco"
    assert not any(metadata.novel[a["category_id"]] for a in instances_of(base))
    with_novel = [a for a in instances_of(train) if metadata.novel[a["category_id"]]]
    assert with_novel
    assert len(instances_of(train)) == len(instances_of(base)) + len(with_novel)


@needs_photographs
@pytest.mark.usefixtures("photographs")
def test_photographs_equal_detectron2s_records() -> None:
    rows = MetadataCatalog.get("photographs_val").thing_dataset_id_to_contiguous_id
    expected = load_coco_json(
        str(COCO_MINI / "annotations" / "instances_val2017.json"),
        str(COCO_MINI / "val2017"),
        extra_annotation_keys=["area"],
    )
    for record in expected:
        for instance in record["annotations"]:
            mask = instance["segmentation"]
            if isinstance(mask, dict):
                mask["counts"] = mask["counts"].decode()  # str, as in json
        kept = [a for a in record["annotations"] if a["category_id"] in rows]
        record["annotations"] = [a | {"category_id": rows[a["category_id"]]} for a in kept]
    assert DatasetCatalog.get("photographs_val") == expected


@needs_photographs
@pytest.mark.usefixtures("photographs")
@pytest.mark.parametrize("split", ["train_base", "val"])
def test_photographs_go_through_the_mapper_without_a_warning(split: str) -> None:
    name = f"photographs_{split}"
    mapper = DatasetMapper(
        True,
        augmentations=[T.ResizeShortestEdge(160, 240), T.RandomFlip(prob=1.0)],
        image_format="BGR",
        use_instance_mask=True,
        instance_mask_format="bitmask",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # numpy 2 deprecates the way in which pycocotools converts its arrays
        warnings.filterwarnings(
            "ignore", "__array__", DeprecationWarning, r"pycocotools|detectron2"
        )
        records = DatasetCatalog.get(name)
        crowded = [r for r in records if any(a["iscrowd"] for a in r["annotations"])]
        others = [r for r in records if r not in crowded and r["annotations"]][:20]
        assert crowded
        assert len(others) == 20
        for record in crowded:
            for instance in record["annotations"]:
                assert isinstance(instance["segmentation"], dict if instance["iscrowd"] else list)
                if instance["iscrowd"]:
                    mask = mask_util.decode(instance["segmentation"])
                    assert mask.shape == (record["height"], record["width"])
                    assert mask.any()
        for record in crowded + others:
            mapped = mapper(record)
            instances, image = mapped["instances"], mapped["image"]
            classes = [a["category_id"] for a in record["annotations"] if not a["iscrowd"]]
            assert image.shape[0] == 3
            assert Counter(instances.gt_classes.tolist()) <= Counter(classes)
            assert len(instances) >= 0.9 * len(classes)  # the smallest objects vanish at this size
            if classes:
                assert instances.gt_masks.tensor.shape == (len(instances), *image.shape[1:])
                assert instances.gt_masks.tensor.dtype == torch.bool
