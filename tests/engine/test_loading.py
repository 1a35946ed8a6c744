"""Loaders from a configuration: model inputs have store entries and no novel labels."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from vild.config import add_vild_config
from vild.data import read_image, register_custom
from vild.embeddings import CropRule, EmbeddingStore, build_teacher, crop_and_resize, enlarge_boxes
from vild.embeddings.store import KIND, embedding_source, fields
from vild.engine import build_test_loader, build_train_loader
from vild.proposals import ProposalStore
from vild.proposals.store import FIELDS as PROPOSAL_FIELDS
from vild.storage import (
    MissingImageError,
    SplitImages,
    StoreMismatchError,
    StoreWriter,
    UnfinishedStoreError,
    store_spec,
)

from ..making import text_embeddings

IMAGES = [1, 2, 3, 4]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Make four images, each with a crow (base) and an owl (novel), and stores of regions."""
    annotations = []
    for image in IMAGES:
        Image.new("RGB", (80, 60), (image * 20, 0, 0)).save(tmp_path / f"{image}.png")
        for category in (1, 2):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": [5 * category, 5, 20, 20],
                    "area": 400,
                    "iscrowd": 0,
                }
            )
    contents = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 60, "width": 80} for i in IMAGES],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "crow"}, {"id": 2, "name": "owl"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(contents), encoding="utf-8")
    (tmp_path / "a.yaml").write_text(
        "name: loaded\ntrain: {json: a.json, images: .}\nval: {json: a.json, images: .}\n"
        "novel: [owl]\n",
        encoding="utf-8",
    )
    names = register_custom(tmp_path / "a.yaml")
    boxes = np.array([[0, 0, 40, 40], [20, 20, 60, 60], [5, 5, 25, 25]], np.float32)
    teacher = {"name": "stub", "fingerprint": "f", "dimension": 4}
    source = embedding_source(teacher, CropRule(), {"digest": ""}, 300, 32)
    for kind, own_fields, own_source in (
        ("proposals", PROPOSAL_FIELDS, {}),
        (KIND, fields(4, "float16"), source),
    ):
        split = SplitImages.from_records("loaded_train", DatasetCatalog.get("loaded_train"))
        spec = store_spec(kind, split, own_fields, own_source, 2)
        writer = StoreWriter(tmp_path / kind, spec, IMAGES)
        for number in writer.pending():
            with writer.shard(number) as builder:
                for image in builder.images:
                    arrays = {"boxes": boxes, "objectness": np.array([3.0, 2.0, 1.0])}
                    if kind == KIND:
                        arrays["embeddings"] = np.eye(4)[[image % 4, (image + 1) % 4, 0]]
                    builder.add(image, 60, 80, arrays)
        writer.finish({})
    yield tmp_path
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def cfg(folder: Path) -> CfgNode:
    cfg = get_cfg()
    add_vild_config(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("loaded_train_base",), ("loaded_val",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.INPUT.MIN_SIZE_TRAIN = (60,)
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_HEADS.NUM_CLASSES = "ViLDROIHeads", 2
    cfg.MODEL.VILD.DISTILL.STORE = str(folder / KIND)
    save_text(cfg, folder, ["crow", "owl"], 4, fingerprint="f")
    cfg.SEED = 1
    return cfg


def save_text(cfg: CfgNode, folder: Path, *args: Any, **kwargs: Any) -> None:
    cfg.MODEL.VILD.TEXT_EMBEDDINGS = str(folder / "text.safetensors")
    text_embeddings(*args, **kwargs).save(cfg.MODEL.VILD.TEXT_EMBEDDINGS)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_rows_of_the_store_arrive(cfg: CfgNode, folder: Path, workers: int) -> None:
    cfg.DATALOADER.NUM_WORKERS = workers
    store = EmbeddingStore(folder / KIND)
    batches = iter(build_train_loader(cfg))
    for _ in range(4):
        for mapped in next(batches):
            regions, record = mapped["distill_regions"], store[mapped["image_id"]]
            assert torch.equal(regions.teacher_embeddings, record.embeddings.float())
            assert torch.equal(regions.original_boxes.tensor, record.boxes)
            # no novel label reaches training on a base split
            assert mapped["instances"].gt_classes.tolist() == [0]


def test_no_distillation_no_regions(cfg: CfgNode) -> None:
    cfg.MODEL.VILD.VARIANT = "text"
    assert "distill_regions" not in next(iter(build_train_loader(cfg)))[0]
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.VILD.VARIANT = "StandardROIHeads", "vild"
    assert "distill_regions" not in next(iter(build_train_loader(cfg)))[0]


@pytest.fixture
def online(cfg: CfgNode, folder: Path) -> CfgNode:
    cfg.MODEL.VILD.TEACHER.MODEL, cfg.MODEL.VILD.TEACHER.PRETRAINED = "vild-shapes", ""
    cfg.MODEL.VILD.DISTILL.SOURCE = "online"
    cfg.MODEL.VILD.DISTILL.PROPOSALS = str(folder / "proposals")
    cfg.MODEL.DEVICE = "cpu"
    save_text(cfg, folder, ["crow", "owl"], 64)
    return cfg


def test_the_online_teacher_gives_what_a_store_would_have(online: CfgNode, folder: Path) -> None:
    teacher, store = build_teacher("vild-shapes", device="cpu"), ProposalStore(folder / "proposals")
    for mapped in next(iter(build_train_loader(online))):
        assert "original_image" not in mapped
        image = read_image(mapped["file_name"])
        boxes = store[mapped["image_id"]].boxes
        for row, embedding in enumerate(mapped["distill_regions"].teacher_embeddings):
            expected = torch.zeros(64)
            for scale in (1.0, 1.5):
                box = enlarge_boxes(boxes[row : row + 1], scale, (60, 80))
                crop = crop_and_resize(image, box, teacher.image_size, "stretch")
                expected += teacher.encode_image(crop)[0]
            torch.testing.assert_close(embedding, expected / expected.norm(), atol=1e-5, rtol=0)
        student = torch.rand(3, 64, requires_grad=True)
        (student * mapped["distill_regions"].teacher_embeddings).sum().backward()


def test_the_online_teacher_has_to_be_that_of_the_text(online: CfgNode, folder: Path) -> None:
    save_text(online, folder, ["crow", "owl"], 64, fingerprint="other")
    with pytest.raises(ValueError, match=r"vild-shapes \(fingerprint"):
        build_train_loader(online)
    save_text(online, folder, ["crow", "owl"], 32)
    with pytest.raises(ValueError, match=r"stub \(dimension 32\).*vild-shapes \(dimension 64\)"):
        build_train_loader(online)


def test_one_class_for_the_baseline(cfg: CfgNode) -> None:
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_HEADS.NUM_CLASSES = "StandardROIHeads", 1
    cfg.DATASETS.TRAIN = ("loaded_train",)
    cfg.MODEL.VILD.DISTILL.STORE = ""
    mapped = next(iter(build_train_loader(cfg)))[0]
    assert mapped["instances"].gt_classes.tolist() == [0, 0]


def test_precomputed_proposals(cfg: CfgNode, folder: Path) -> None:
    cfg.MODEL.LOAD_PROPOSALS = True
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = (str(folder / "proposals"),)
    cfg.DATASETS.PROPOSAL_FILES_TEST = (str(folder / "proposals"),)
    expected = ProposalStore(folder / "proposals")[1]
    for loader in (build_train_loader(cfg), build_test_loader(cfg, "loaded_val")):
        proposals = next(iter(loader))[0]["proposals"]
        assert torch.equal(proposals.objectness_logits, expected.objectness)
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = ("theirs.pkl",)
    with pytest.raises(ValueError, match=r"theirs\.pkl.*convert_proposals"):
        build_train_loader(cfg)


def test_what_cannot_work_is_refused_before_training(cfg: CfgNode, folder: Path) -> None:
    cfg.DATASETS.TRAIN = ("loaded_train_base", "loaded_train")
    with pytest.raises(ValueError, match="expected one training set"):
        build_train_loader(cfg)
    cfg.DATASETS.TRAIN = ("loaded_train_base",)
    cfg.MODEL.VILD.DISTILL.SOURCE = "guess"
    with pytest.raises(ValueError, match="SOURCE to be one of"):
        build_train_loader(cfg)
    cfg.MODEL.VILD.DISTILL.SOURCE = "store"
    cfg.MODEL.VILD.DISTILL.STORE = str(folder / "elsewhere")
    with pytest.raises(UnfinishedStoreError, match="not found"):
        build_train_loader(cfg)
    cfg.MODEL.VILD.DISTILL.STORE = ""
    with pytest.raises(ValueError, match=r"STORE .*extract_image_embeddings.*'ensemble' is dist"):
        build_train_loader(cfg)
    cfg.MODEL.VILD.DISTILL.STORE = str(folder / "proposals")
    cfg.MODEL.VILD.DISTILL.SOURCE = "online"
    with pytest.raises(ValueError, match=r"DISTILL\.PROPOSALS .*extract_proposals.*SOURCE: online"):
        build_train_loader(cfg)


@pytest.mark.parametrize(
    ("classes", "dimension", "fingerprint", "complaint"),
    [
        (["owl", "crow"], 4, "f", "row 0 is 'crow' in the former and 'owl'"),
        (["crow"], 4, "f", "NUM_CLASSES: 2 classes, got 1 in"),
        (["crow", "owl"], 5, "f", "dimension"),
        (["crow", "owl"], 4, "g", "fingerprint"),
    ],
)
def test_text_embeddings_that_do_not_fit_are_refused_before_training(
    cfg: CfgNode, folder: Path, classes: list[str], dimension: int, fingerprint: str, complaint: str
) -> None:
    save_text(cfg, folder, classes, dimension, fingerprint=fingerprint)
    kind = StoreMismatchError if len(classes) == 2 and classes[0] == "crow" else ValueError
    with pytest.raises(kind, match=complaint):
        build_train_loader(cfg)


def test_an_image_without_a_record_is_found_before_training(cfg: CfgNode, folder: Path) -> None:
    teacher = {"name": "stub", "fingerprint": "f", "dimension": 4}
    source = embedding_source(teacher, CropRule(), {"digest": ""}, 300, 32)
    split = SplitImages.from_records("loaded_train", DatasetCatalog.get("loaded_train"))
    spec = store_spec(KIND, split, fields(4, "float16"), source, 4)
    writer = StoreWriter(folder / "other", spec, IMAGES)
    with writer.shard(0) as builder:
        nothing = {"boxes": np.empty((0, 4)), "objectness": np.empty(0)}
        for image in IMAGES[:3]:
            builder.add(image, 60, 80, {**nothing, "embeddings": np.empty((0, 4))})
        builder.fail(4, "4.png is truncated")
    writer.finish({})
    cfg.MODEL.VILD.DISTILL.STORE = str(folder / "other")
    with pytest.raises(MissingImageError, match=r"of 1 images .*4 \(4\.png is truncated\).*retry"):
        build_train_loader(cfg)


def test_stores_have_to_be_of_the_images_and_of_the_crop_rule(cfg: CfgNode, folder: Path) -> None:
    cfg.MODEL.VILD.TEACHER.CROP_MODE = "pad"
    with pytest.raises(StoreMismatchError, match=r"crop\.mode: 'stretch' / 'pad'"):
        build_train_loader(cfg)
    cfg.MODEL.VILD.TEACHER.CROP_MODE = "stretch"
    cfg.MODEL.VILD.TEACHER.CROP_SCALES = [1.0]
    with pytest.raises(StoreMismatchError, match=r"crop\.scales: \[1\.0, 1\.5\] / \[1\.0\]"):
        build_train_loader(cfg)
    cfg.MODEL.VILD.TEACHER.CROP_SCALES = [1.0, 1.5]
    contents = json.loads((folder / "a.json").read_text(encoding="utf-8"))
    for image in contents["images"]:
        (folder / image["file_name"]).rename(folder / f"other{image['file_name']}")
        image["file_name"] = f"other{image['file_name']}"
    (folder / "a.json").write_text(json.dumps(contents), encoding="utf-8")
    for variant, source in (("ensemble", "store"), ("ensemble", "online"), ("text", "store")):
        cfg.MODEL.VILD.VARIANT, cfg.MODEL.VILD.DISTILL.SOURCE = variant, source
        if source == "online":
            cfg.MODEL.VILD.DISTILL.PROPOSALS = str(folder / "proposals")
        cfg.MODEL.LOAD_PROPOSALS = variant == "text"
        cfg.DATASETS.PROPOSAL_FILES_TRAIN = (str(folder / "proposals"),)
        cfg.DATASETS.PROPOSAL_FILES_TEST = (str(folder / "proposals"),)
        with pytest.raises(StoreMismatchError, match=r"of 'loaded_train_base' .*'loaded_train' "):
            build_train_loader(cfg)
    with pytest.raises(StoreMismatchError, match=r"of 'loaded_val' .*'loaded_train' "):
        build_test_loader(cfg, "loaded_val")


def test_precomputed_proposals_are_of_one_training_set(cfg: CfgNode, folder: Path) -> None:
    cfg.MODEL.VILD.VARIANT, cfg.MODEL.LOAD_PROPOSALS = "text", True
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = (str(folder / "proposals"),)
    cfg.DATASETS.TRAIN = ("loaded_train_base", "loaded_train")
    with pytest.raises(ValueError, match=r"one training set with MODEL\.LOAD_PROPOSALS"):
        build_train_loader(cfg)


def test_an_unregistered_training_set_is_named(cfg: CfgNode) -> None:
    cfg.DATASETS.TRAIN = ("loaded_trian",)
    with pytest.raises(ValueError, match=r"in DATASETS\.TRAIN, got 'loaded_trian'.*'loaded_train'"):
        build_train_loader(cfg)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    contents = json.loads((folder / "a.json").read_text(encoding="utf-8"))
    for item in contents["annotations"]:
        change(item)
    (folder / "a.json").write_text(json.dumps(contents), encoding="utf-8")
    register_custom(folder / "a.yaml")


@pytest.mark.parametrize("change", [{"iscrowd": 1}, {"category_id": 2}])
def test_a_training_set_without_objects_is_refused(
    cfg: CfgNode, folder: Path, change: dict[str, int]
) -> None:
    rewrite(folder, lambda item: item.update(change))
    with pytest.raises(
        ValueError, match=r"expected objects to learn from in \('loaded_train_base'"
    ):
        build_train_loader(cfg)


def test_heads_that_would_learn_masks_from_boxes_are_refused(cfg: CfgNode) -> None:
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_HEADS.NUM_CLASSES = "StandardROIHeads", 1
    cfg.MODEL.MASK_ON = True
    with pytest.raises(ValueError, match="NAME to OptionalMaskROIHeads, or MODEL"):
        build_train_loader(cfg)
    cfg.MODEL.ROI_HEADS.NAME = "OptionalMaskROIHeads"
    batch = next(iter(build_train_loader(cfg)))
    assert not any(mapped["instances"].gt_has_mask.any() for mapped in batch)


def test_the_samplers_of_detectron2(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn() -> list[int]:
        """Return the image ids of ten batches."""
        loader = build_train_loader(cfg)
        return [mapped["image_id"] for batch in islice(loader, 10) for mapped in batch]

    everything = drawn()
    assert sorted(everything) == sorted(IMAGES * 5)
    cfg.DATALOADER.SAMPLER_TRAIN = "RandomSubsetTrainingSampler"
    for ratio in (None, 0.0, 1.5, 0.1):
        if ratio is not None:
            cfg.DATALOADER.RANDOM_SUBSET_RATIO = ratio
        with pytest.raises(ValueError, match="RANDOM_SUBSET_RATIO to be the fraction of the 4"):
            build_train_loader(cfg)
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.5
    half = drawn()
    assert len(set(half)) == 2
    assert half == drawn()  # a resumed training draws the same

    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    assert sorted(drawn()) == sorted(IMAGES * 5)
    asked = []
    kind = "vild.engine.loading.RepeatFactorTrainingSampler"
    monkeypatch.setattr(
        f"{kind}.repeat_factors_from_category_frequency",
        lambda records, threshold, **options: asked.append(options) or torch.ones(len(records)),
    )
    cfg.DATALOADER.REPEAT_SQRT = False
    drawn()
    assert asked == [{"sqrt": False}]

    cfg.DATALOADER.SAMPLER_TRAIN = "WeightedTrainingSampler"
    with pytest.raises(ValueError, match=r"TRAIN to be TrainingSampler, .*'WeightedTrainingSam"):
        build_train_loader(cfg)
