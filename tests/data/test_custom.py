"""Data sets of one's own, described by a yaml; on made-up jsons and on real photographs."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pycocotools.mask as mask_util
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets import load_coco_json

from vild.data import COCO_BASE, COCO_NOVEL, register_custom

from .test_annotations import annotation, rows_of, write

COCO_MINI = Path(__file__).parents[3] / "shared" / "data" / "coco_mini"
needs_photographs = pytest.mark.skipif(
    not COCO_MINI.is_dir(), reason=f"the small sample of COCO is not at {COCO_MINI}"
)

CLASSES = {4: "sparrow", 8: "red kite", 2: "crow", 6: "osprey"}

Spec = dict[str, Any]


def contents(**picture: object) -> dict[str, Any]:
    """Twelve pictures: crows and ospreys in all of them, sparrows and one kite in the first."""
    shown = [(1, 4), (1, 8), *((image, id) for image in range(1, 13) for id in (2, 6))]
    return {
        "images": [
            {"id": id, "file_name": f"{id}.jpg", "height": 20, "width": 30, **picture}
            for id in range(1, 13)
        ],
        "annotations": [annotation(n, image, id) for n, (image, id) in enumerate(shown)],
        "categories": [{"id": id, "name": name} for id, name in CLASSES.items()],
    }


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    """A description of two splits whose files lie in ``tmp_path / "birds"``."""
    for split in ("train", "val"):
        write(tmp_path / "birds", contents(), f"{split}.json")
        (tmp_path / "birds" / split).mkdir()
    return {
        "name": "birds",
        "train": {"json": "birds/train.json", "images": "birds/train"},
        "val": {"json": "birds/val.json", "images": "birds/val"},
        "novel": ["red kite", "osprey"],
    }


def write_yaml(folder: Path, spec: object) -> Path:
    path = folder / "birds.yaml"
    path.write_text(yaml.safe_dump(spec), encoding="utf-8")
    return path


def classes_of(name: str) -> list[tuple[str, str, bool]]:
    """Name, frequency and novel flag of every row."""
    metadata = MetadataCatalog.get(name)
    return list(zip(metadata.thing_classes, metadata.frequency, metadata.novel, strict=True))


def counts(name: str) -> Counter[str]:
    """Annotations by class name."""
    names = MetadataCatalog.get(name).thing_classes
    return Counter(names[row] for rows in rows_of(DatasetCatalog.get(name)) for row in rows)


@pytest.mark.parametrize("novel", [["red kite", "osprey"], [6, 8], ["osprey", 8]])
def test_novel_names_and_ids_make_a_split(
    tmp_path: Path, spec: Spec, novel: list[str | int]
) -> None:
    names = register_custom(write_yaml(tmp_path, spec | {"novel": novel}))
    assert sorted(names) == ["birds_train", "birds_train_base", "birds_val"]
    for name in names:
        # novel classes are reported as APr, and no base class is
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
    few = contents()
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
    message = r"val\.images is '\$BIRDS/val', but that environment variable is not set"
    with pytest.raises(ValueError, match=message):
        register_custom(write_yaml(tmp_path, spec))


@pytest.mark.parametrize(
    ("picture", "given", "evaluator"),
    [
        ({}, None, "coco"),
        ({"neg_category_ids": []}, None, "lvis"),
        ({}, "lvis", "lvis"),
        ({"neg_category_ids": []}, "coco", "coco"),
    ],
)
def test_the_evaluator_is_detected_or_given(
    tmp_path: Path, spec: Spec, picture: dict[str, Any], given: str | None, evaluator: str
) -> None:
    for split in ("train", "val"):
        write(tmp_path / "birds", contents(**picture), f"{split}.json")
    if given:
        spec["evaluator"] = given
    for name in register_custom(write_yaml(tmp_path, spec)):
        assert MetadataCatalog.get(name).evaluator_type == evaluator


def test_lvis_needs_every_picture_to_say_what_was_looked_for(tmp_path: Path, spec: Spec) -> None:
    partly = contents(neg_category_ids=[])
    del partly["images"][5]["neg_category_ids"]
    write(tmp_path / "birds", partly, "train.json")
    register_custom(write_yaml(tmp_path, spec))
    assert MetadataCatalog.get("birds_train").evaluator_type == "coco"


def test_a_yaml_may_be_registered_again(tmp_path: Path, spec: Spec) -> None:
    path = write_yaml(tmp_path, spec)
    assert register_custom(path) == register_custom(path)
    register_custom(write_yaml(tmp_path, spec | {"novel": ["crow"]}))
    assert [c[0] for c in classes_of("birds_train") if c[2]] == ["crow"]
    assert counts("birds_train_base") == {"sparrow": 1, "osprey": 12, "red kite": 1}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.update(novell=[]), "unknown key 'novell'; known are"),
        (lambda s: s.pop("name"), "the key 'name' is missing"),
        (lambda s: s.pop("novel"), "the key 'novel' is missing"),
        (lambda s: (s.pop("train"), s.pop("val")), "at least one of the keys 'train' and 'val'"),
        (lambda s: s.update(name="my birds"), "expected a name of letters.*got 'my birds'"),
        (lambda s: s.update(name="../birds"), r"expected a name of letters.*got '\.\./birds'"),
        (lambda s: s.update(name=None), "the key 'name' is missing or empty"),
        (lambda s: s.update(novel={"crow": 1}), "expected a list under 'novel', got {'crow': 1}"),
        (lambda s: s.update(novel=3), "expected a list under 'novel', got 3"),
        (lambda s: s.update(novel=[["crow"]]), r"novel classes as names or ids, got \['crow'\]"),
        (lambda s: s.update(novel=[True]), "novel classes as names or ids, got True"),
        (lambda s: s.update(base=None), "expected a list under 'base', got None"),
        (lambda s: s.update(base="f"), "expected a list under 'base', got 'f'"),
        (lambda s: s.update(evaluator="voc"), "evaluator must be 'lvis' or 'coco', got 'voc'"),
        (
            lambda s: s.update(train="a.json"),
            r"expected 'train: {json: FILE, images: FOLDER}', got",
        ),
        (lambda s: s["val"].pop("images"), r"expected 'val: {json: FILE, images: FOLDER}', got"),
        (lambda s: s["val"].update(zip="a"), r"expected 'val: {json: FILE, images: FOLDER}', got"),
        (lambda s: s["val"].update(images="x"), r"val\.images: there is no folder .*/x"),
        (lambda s: s["val"].update(json="x.json"), r"x\.json, but there is no such file"),
        (lambda s: s.update(novel=["ospray"]), "novel class 'ospray'.*Did you mean 'osprey'"),
        (lambda s: s.update(base=["crows"]), "base class 'crows'.*Did you mean 'crow'"),
        (lambda s: s.update(novel=["crow", 2]), "novel class 2 is listed more than once"),
        (lambda s: s.update(base=["crow", "crow"]), "base class 'crow' is listed more than once"),
        (lambda s: s.update(base=["crow", "osprey"]), "'osprey' is listed as base and as novel"),
        (lambda s: s.update(novel="rare"), "frequency group 'r', 'c' or 'f'; got 'rare'"),
        (lambda s: s.update(novel=[2, 4, 6, 8]), "all 4 classes are novel; nothing is left to"),
        (lambda s: s.update(base=[]), "all 2 classes are novel; nothing is left to"),
    ],
)
def test_bad_descriptions_are_refused(
    tmp_path: Path, spec: Spec, edit: Callable[[Spec], object], message: str
) -> None:
    edit(spec)
    before = DatasetCatalog.list()
    with pytest.raises(ValueError, match=message):
        register_custom(write_yaml(tmp_path, spec))
    assert DatasetCatalog.list() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("novel: [crow", r"birds\.yaml is not valid yaml: "),
        ("- crow\n", r"birds\.yaml: expected the keys \['base', .*\], got list"),
        ("", r"expected the keys \['base', .*\], got NoneType"),
    ],
)
def test_what_is_no_description_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "birds.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        register_custom(path)


def test_a_missing_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a yaml that describes .*gone\.yaml: no such file"):
        register_custom(tmp_path / "gone.yaml")


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        (
            [{"id": id, "name": name} for id, name in CLASSES.items() if id != 8],
            "4 and 3 classes; the first difference is id 8, 'red kite'",
        ),
        (
            [{"id": id, "name": name.replace("osprey", "gull")} for id, name in CLASSES.items()],
            "4 and 4 classes; the first difference is id 6, 'gull'",
        ),
    ],
)
def test_train_and_val_need_the_same_classes(
    tmp_path: Path, spec: Spec, categories: list[dict[str, Any]], message: str
) -> None:
    write(tmp_path / "birds", contents() | {"categories": categories}, "val.json")
    message = rf"the classes of train and val differ \({re.escape(message)}\)\. Both files need"
    with pytest.raises(ValueError, match=message):
        register_custom(write_yaml(tmp_path, spec))


@pytest.fixture
def photographs(tmp_path: Path) -> None:
    """Registers the 65 classes of open-vocabulary COCO on the sample as ``photographs_…``."""
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
        # numpy 2 deprecates how pycocotools hands its arrays over
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
            assert len(instances) >= 0.9 * len(classes)  # the smallest vanish at this size
            if classes:
                assert instances.gt_masks.tensor.shape == (len(instances), *image.shape[1:])
                assert instances.gt_masks.tensor.dtype == torch.bool
