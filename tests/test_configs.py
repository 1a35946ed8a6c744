"""Every shipped yaml loads, names only known keys and builds a model."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, build_backbone, build_model
from detectron2.solver import build_optimizer
from detectron2.structures import ImageList
from detectron2.utils.events import EventStorage
from torch import nn

from vild.config import (
    add_vild_config,
    override_config,
    read_config,
    register_datasets,
    scale_schedule,
    set_zero_shot,
)
from vild.data import COCO_BASE, COCO_NOVEL
from vild.data.dataset_mapper import ViLDDatasetMapper
from vild.data.jitter import LargeScaleJitter
from vild.modeling import ViLDBoxHead, ViLDROIHeads, find_variant

from .making import mapped_image, text_embeddings, with_proposals
from .malicious import TAGS, write_config

FOLDER = Path(__file__).parents[1] / "configs"
# parts that others are put together from
PARTS = {FOLDER / "LVIS" / "data.yaml", FOLDER / "COCO" / "data.yaml"}
PARTS |= {FOLDER / "LVIS" / "official" / "architecture.yaml"}
PARTS |= set((FOLDER / "schedules").iterdir())
CONFIGS = sorted(set(FOLDER.rglob("*.yaml")) - PARTS)


def test_there_are_configs() -> None:
    assert len(CONFIGS) > 30
    assert all(part.is_file() for part in PARTS)


def own_keys(node: CfgNode, prefix: str = "") -> list[str]:
    keys = []
    for key, value in sorted(node.items()):
        own = prefix + key
        keys += own_keys(value, f"{own}.") if isinstance(value, CfgNode) else [own]
    return keys


def test_own_keys_are_these() -> None:
    plain, cfg = get_cfg(), get_cfg()
    add_vild_config(cfg)
    before, keys = set(own_keys(plain)), own_keys(cfg)
    assert before < set(keys)
    assert [key for key in keys if key not in before] == [
        "DATASETS.CUSTOM",
        "INPUT.LARGE_SCALE_JITTER.ENABLED",
        "INPUT.LARGE_SCALE_JITTER.MAX_SCALE",
        "INPUT.LARGE_SCALE_JITTER.MIN_SCALE",
        "INPUT.LARGE_SCALE_JITTER.SIZE",
        "MODEL.VILD.DISTILL.DRAW",
        "MODEL.VILD.DISTILL.MIN_VISIBLE",
        "MODEL.VILD.DISTILL.PROPOSALS",
        "MODEL.VILD.DISTILL.REGIONS",
        "MODEL.VILD.DISTILL.SOURCE",
        "MODEL.VILD.DISTILL.STORE",
        "MODEL.VILD.DISTILL.WEIGHT",
        "MODEL.VILD.FUSION_WEIGHTS",
        "MODEL.VILD.OBJECTNESS",
        "MODEL.VILD.TEACHER.CROP_MODE",
        "MODEL.VILD.TEACHER.CROP_SCALES",
        "MODEL.VILD.TEACHER.MODEL",
        "MODEL.VILD.TEACHER.PRETRAINED",
        "MODEL.VILD.TEACHER.SOURCE_TEST",
        "MODEL.VILD.TEMPERATURE",
        "MODEL.VILD.TEXT_EMBEDDINGS",
        "MODEL.VILD.VARIANT",
        "MODEL.VILD.ZERO_SHOT",
        "SOLVER.AMP.PRECISION",
    ]


OLD = {
    "MODEL.VILD.TEACHER": (["ViT-B-32", "openai"], "MODEL.VILD.TEACHER.MODEL and"),
    "MODEL.VILD.CROP_MODE": ("pad", "MODEL.VILD.TEACHER.CROP_MODE"),
    "MODEL.VILD.DATASETS": ([], "DATASETS.CUSTOM"),
    "MODEL.VILD.LARGE_SCALE_JITTER": ([0.1, 2.0, 1024], "INPUT.LARGE_SCALE_JITTER.MIN_SCALE"),
}


@pytest.mark.parametrize("old", OLD)
def test_a_renamed_key_is_refused_with_its_new_name(old: str, tmp_path: Path) -> None:
    """In a file, in the file below it and on the command line."""
    value, new = OLD[old]
    contents: Any = value
    for part in reversed(old.split(".")):
        contents = {part: contents}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"VERSION": 2, **contents}))
    (tmp_path / "leaf.yaml").write_text("_BASE_: base.yaml\n")
    (tmp_path / "good.yaml").write_text("VERSION: 2\n")
    message = rf"^expected .*: {re.escape(old)} is now {re.escape(new)}"
    for file, options in (("base", ()), ("leaf", ()), ("good", (old, str(value)))):
        with pytest.raises(ValueError, match=message) as error:
            read_config(tmp_path / f"{file}.yaml", options)
        assert "\n" not in str(error.value)


def test_the_configuration_of_an_earlier_training_lists_all_its_old_keys(tmp_path: Path) -> None:
    cfg = read_config(FOLDER / "shapes" / "vild_ensemble.yaml")
    earlier = yaml.safe_load(cfg.dump())
    earlier["MODEL"]["VILD"].update({key.split(".")[-1]: value for key, (value, _) in OLD.items()})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(earlier))
    with pytest.raises(ValueError, match=r"config\.yaml: MODEL\.VILD\.CROP_MODE is") as error:
        read_config(tmp_path / "config.yaml")
    assert all(f"{old} is now {new}" in str(error.value) for old, (_, new) in OLD.items())


def test_custom_data_is_registered_by_the_configuration(tmp_path: Path) -> None:
    category = {"id": 1, "name": "crow"}
    contents = {"images": [], "annotations": [], "categories": [category, {"id": 2, "name": "owl"}]}
    (tmp_path / "a.json").write_text(json.dumps(contents), encoding="utf-8")
    (tmp_path / "own.yaml").write_text(
        "name: config_birds\nval: {json: a.json, images: .}\nnovel: [owl]\n", encoding="utf-8"
    )
    cfg = get_cfg()
    add_vild_config(cfg)
    cfg.merge_from_list(["DATASETS.CUSTOM", [str(tmp_path / "own.yaml")]])
    assert register_datasets(cfg) == ["config_birds_val"]
    assert MetadataCatalog.get("config_birds_val").novel == [False, True]


@pytest.fixture
def coco_mini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Annotation files without images where datasets/coco_mini.yaml looks for them."""
    categories = [{"id": n, "name": name} for n, name in enumerate((*COCO_BASE, *COCO_NOVEL), 1)]
    contents = {"images": [], "annotations": [], "categories": categories}
    (tmp_path / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (tmp_path / split).mkdir()
        file = tmp_path / "annotations" / f"instances_{split}.json"
        file.write_text(json.dumps(contents), encoding="utf-8")
    monkeypatch.setenv("COCO_MINI", str(tmp_path))
    monkeypatch.chdir(FOLDER.parent)


def parameters(paths: list[Path], slow: str) -> list[Any]:
    """Paths as parameters of a test; those whose names match are slow ones."""
    return [
        pytest.param(
            path,
            id=f"{path.parent.name}/{path.stem}",
            marks=[pytest.mark.slow] if re.search(slow, path.stem) else [],
        )
        for path in paths
    ]


@pytest.mark.usefixtures("coco_mini")
@pytest.mark.parametrize("path", parameters(CONFIGS, slow="_r152"))
def test_recipe_takes_a_step_and_detects(path: Path, tmp_path: Path) -> None:
    """As shipped but for its numbers of channels in the heads, on one small image."""
    cfg = read_config(path)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 64
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    cfg.TEST.DETECTIONS_PER_IMAGE = 5
    classes, variant = cfg.MODEL.ROI_HEADS.NUM_CLASSES, find_variant(cfg.MODEL.VILD.VARIANT)
    cfg.INPUT.MAX_SIZE_TEST = 128  # of the models that resize themselves
    own = issubclass(ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME), ViLDROIHeads)
    if own:
        assert cfg.MODEL.VILD.TEXT_EMBEDDINGS or path.stem.startswith("Base")
        cfg.MODEL.VILD.TEXT_EMBEDDINGS = str(tmp_path / "text.safetensors")
        text_embeddings(classes, 768).save(cfg.MODEL.VILD.TEXT_EMBEDDINGS)
    register_datasets(cfg)
    for name in cfg.DATASETS.TRAIN:
        assert classes in (1, len(MetadataCatalog.get(name).thing_classes))
        zero_shot = not path.stem.startswith("supervised")
        assert name.endswith("_base") == zero_shot
    mapper = ViLDDatasetMapper(cfg, True, regions=None, proposals=None)
    jitter = cfg.INPUT.LARGE_SCALE_JITTER.ENABLED
    assert isinstance(mapper.augmentations.augs[-1], LargeScaleJitter) == jitter
    assert mapper.region_draw == ("first" if jitter else "uniform")

    torch.manual_seed(0)
    model = build_model(cfg)
    seen = {"image": mapped_image()["image"], "height": 48, "width": 48}
    if own and variant.teacher_at_test:  # for evaluation alone
        seen["proposals"] = with_proposals(mapped_image(0, 5, dimension=768))["proposals"]
        detect(model, seen)
        return
    with EventStorage():
        losses = model([mapped_image(2, 3, dimension=768), mapped_image(0, 0, dimension=768)])
    expected = {"loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
    expected |= {"loss_mask"} if cfg.MODEL.MASK_ON else set()
    # of the recipes, only the proposals of `shapes` come from a detector without masks
    baselines = ("rpn_baseline", "quick_baseline")
    assert (path.parent.name != "shapes" or path.stem not in baselines) == cfg.MODEL.MASK_ON
    expected |= {"loss_distill"} if own and variant.distilled else set()
    expected |= {"loss_cls"} if not own or variant.background else set()
    assert set(losses) == expected
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, name
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    detect(model, seen)


LSJ = [path for path in CONFIGS if path.stem.endswith("r50_fpn_lsj")]


@pytest.mark.parametrize("path", parameters(LSJ, slow="_(text|vild|image)_"))
def test_the_official_schedule_trains_without_base_objects(path: Path, tmp_path: Path) -> None:
    """A batch without an object of a base class: the mask head gets no region at all."""
    cfg = read_config(path)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 64
    cfg.MODEL.VILD.TEXT_EMBEDDINGS = str(tmp_path / "text.safetensors")
    text_embeddings(cfg.MODEL.ROI_HEADS.NUM_CLASSES, 16).save(cfg.MODEL.VILD.TEXT_EMBEDDINGS)
    torch.manual_seed(0)
    model = build_model(cfg)
    assert model.roi_heads.box_in_features == ["p2", "p3", "p4", "p5", "p6"]
    before = copy.deepcopy(model.roi_heads.mask_head.norms.state_dict())
    with EventStorage():
        losses = model([mapped_image(0, 4)])
    assert not losses["loss_mask"].detach().any()
    assert not losses["loss_box_reg"].detach().any()
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
    after = model.roi_heads.mask_head.norms.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items() if "running" in key)


@pytest.mark.parametrize("sizes", [[(512, 512)], [(96, 64), (70, 131)]])
def test_the_official_pyramid_takes_any_size(sizes: list[tuple[int, int]]) -> None:
    """Images are padded to multiples of 64, and every level has half the cells of the last."""
    cfg = read_config(FOLDER / "LVIS" / "vild_text_r50_fpn_lsj.yaml")
    backbone = build_backbone(cfg).eval()
    images = ImageList.from_tensors([torch.rand(3, *size) for size in sizes], 64)
    assert backbone.size_divisibility == 64
    with torch.no_grad():
        features = backbone(images.tensor)
    height, width = images.tensor.shape[2:]
    for level, name in enumerate(("p2", "p3", "p4", "p5", "p6"), 2):
        assert features[name].shape[2:] == (height // 2**level, width // 2**level)


def detect(model: nn.Module, seen: dict[str, Any]) -> None:
    with torch.no_grad():
        found = model.eval()([seen])
    assert len(found[0]["instances"]) <= 5
    if model.roi_heads.mask_on:
        assert found[0]["instances"].pred_masks.shape[1:] == (48, 48)


@pytest.mark.parametrize(
    ("contents", "options", "message"),
    [
        (None, (), "expected a configuration in .*none.yaml: .*No such file"),
        ("MODEL: [", (), "expected a configuration in"),
        ("VERSION: 2\nMODEL:\n  VILLD: {}\n", (), "Non-existent config key: MODEL.VILLD"),
        ("VERSION: 2\n", ("MODEL.VILLD", "1"), r"expected KEY VALUE pairs .*MODEL\.VILLD"),
        (
            "VERSION: 2\nMODEL:\n  VILD:\n    DISTILL:\n      W: 1\n",
            (),
            r"Non-existent config key: MODEL\.VILD\.DISTILL\.W",
        ),
        ("VERSION: 2\n", ("MODEL.VILD.DISTILL.W", "1"), r"Non-existent key.*DISTILL\.W"),
        ("VERSION: 2\n", ("MODEL.WEIGHTS",), "expected KEY VALUE pairs"),
        ("VERSION: 2\n", ("SOLVER.MAX_ITER", "many"), "expected KEY VALUE pairs"),
        ("", (), "expected keys and values in .*some.yaml"),
        ("- MODEL\n", (), "expected keys and values in .*some.yaml"),
        ("_BASE_: 3\n", (), "expected keys and values in .*some.yaml"),
        ("_BASE_: some.yaml\n", (), "that do not refer back to it"),
        ("? [1]\n: 2\n", (), "expected plain values in .*some.yaml: .*unhashable key"),
    ],
)
def test_what_is_wrong_with_a_configuration_is_said(
    contents: str | None, options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    file = tmp_path / ("none.yaml" if contents is None else "some.yaml")
    if contents is not None:
        file.write_text(contents)
    with pytest.raises(ValueError, match=message) as error:
        read_config(file, options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["some.yaml", "base.yaml", "second.yaml"])
@pytest.mark.parametrize("tag", TAGS)
def test_code_in_a_configuration_is_refused_and_not_run(
    tag: str, place: str, tmp_path: Path
) -> None:
    """In the file, in the file below it, and in one of several below that."""
    marker = tmp_path / "marker"
    (tmp_path / "some.yaml").write_text("_BASE_: base.yaml\nVERSION: 2\n")
    (tmp_path / "base.yaml").write_text("_BASE_: [first.yaml, second.yaml]\nVERSION: 2\n")
    for name in ("first.yaml", "second.yaml"):
        (tmp_path / name).write_text("VERSION: 2\n")
    read_config(tmp_path / "some.yaml")
    write_config(TAGS[tag](marker), tmp_path / place)
    with pytest.raises(ValueError, match=rf"{place}, got the tag {tag} in line 2.*can run code"):
        read_config(tmp_path / "some.yaml")
    assert not marker.exists()


def test_the_harmful_configurations_are_harmful(tmp_path: Path) -> None:
    for number, make in enumerate(TAGS.values()):
        marker = tmp_path / f"marker{number}"
        process = yaml.unsafe_load(make(marker))
        if isinstance(process, subprocess.Popen):
            process.wait()
        assert marker.exists()


def test_what_a_training_writes_is_read(tmp_path: Path) -> None:
    """Detectron2's dump has no tags: tuples become lists."""
    cfg = read_config(FOLDER / "LVIS" / "vild_ensemble_r50_fpn_lsj.yaml")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert "!!" not in cfg.dump()
    read = read_config(tmp_path / "config.yaml").dump()
    assert yaml.safe_load(read) == yaml.safe_load(cfg.dump())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.PIXEL_STD", "[0, 1, 1]", "MODEL.PIXEL_STD to be numbers above 0"),
        ("MODEL.PIXEL_STD", "[1, 1]", "MODEL.PIXEL_STD to be 3 numbers"),
        ("MODEL.PIXEL_MEAN", "['a', 1, 1]", "MODEL.PIXEL_MEAN to be finite numbers"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[-3]]", "SIZES to be numbers above 0"),
        ("INPUT.MIN_SIZE_TRAIN", "()", "MIN_SIZE_TRAIN to be numbers above 0"),
        ("INPUT.MIN_SIZE_TEST", "-800", "MIN_SIZE_TEST to be a number of at least 0"),
        ("INPUT.MAX_SIZE_TEST", "0", "MAX_SIZE_TEST to be a number of at least 1"),
        ("SOLVER.STEPS", "('a',)", "SOLVER.STEPS to be finite numbers"),
        ("SOLVER.STEPS", "(True,)", "SOLVER.STEPS to be finite numbers"),
        ("SOLVER.BASE_LR", "None", "SOLVER.BASE_LR to be a float, got None"),
        ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", float("nan"), "CLIP_VALUE to be a finite number"),
        ("DATASETS.TEST", "(3,)", "DATASETS.TEST to be a list of strings"),
        ("MODEL.VILD.FUSION_WEIGHTS", "['a']", "FUSION_WEIGHTS to be finite numbers"),
        ("MODEL.VILD.TEACHER.CROP_SCALES", "['a']", "CROP_SCALES to be finite numbers"),
        ("MODEL.VILD.TEACHER.CROP_SCALES", "[]", "CROP_SCALES to be numbers above 0"),
        ("DATASETS.CUSTOM", "(3,)", "DATASETS.CUSTOM to be a list of strings"),
        ("MODEL.META_ARCHITECTURE", "GeneralisedRCNN", r"Did you mean 'GeneralizedRCNN'"),
        (
            "MODEL.ROI_HEADS.NAME",
            "ViLDRoIHeads",
            r"Did you mean 'ViLDROIHeads'.*\? For a part of your own, import the module that",
        ),
        ("MODEL.BACKBONE.NAME", "build_resnet_fpn", "MODEL.BACKBONE.NAME to be a registered part"),
        ("MODEL.ROI_MASK_HEAD.NAME", "x", r"got 'x'\. For a part of your own, import the module"),
        ("MODEL.RESNETS.DEPTH", "42", r"DEPTH to be one of \(18, 34, 50, 101, 152\), got 42"),
        ("SOLVER.AMP.PRECISION", "bfloat16", r"PRECISION to be one of \('fp16', 'bf16'\), got 'bf"),
        ("MODEL.DEVICE", "gpu", r"MODEL.DEVICE to be a device of torch \(cpu, cuda"),
        ("MODEL.DEVICE", "cuda:99", "a GPU of this machine, which has"),
    ],
)
def test_odd_values_are_refused_where_a_configuration_is_read(
    key: str, value: Any, message: str, tmp_path: Path
) -> None:
    (tmp_path / "some.yaml").write_text("VERSION: 2\n")
    with pytest.raises(ValueError, match=f"expected .*{message}") as error:
        read_config(tmp_path / "some.yaml", (key, value))
    assert "\n" not in str(error.value)
    cfg = read_config(tmp_path / "some.yaml")
    with pytest.raises(ValueError, match=f"expected .*{message}"):
        override_config(cfg, (key, value))


def test_zero_shot_switches_softmax_and_training_sets() -> None:
    cfg = get_cfg()
    add_vild_config(cfg)
    cfg.DATASETS.TRAIN = ("lvis_v1_train_base",)
    for zero_shot, name in ((False, "lvis_v1_train"), (True, "lvis_v1_train_base")):
        for _ in range(2):
            set_zero_shot(cfg, zero_shot)
            assert list(cfg.DATASETS.TRAIN) == [name]
            assert bool(cfg.MODEL.VILD.ZERO_SHOT) is zero_shot


def test_another_batch_size_scales_the_schedule() -> None:
    cfg = read_config(FOLDER / "LVIS" / "vild_ensemble_r50_fpn_lsj.yaml")
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER) == (256, 0.32, 180_000)
    assert abs(solver.BASE_LR * solver.WARMUP_FACTOR - 0.0032) < 1e-9
    assert scale_schedule(cfg, 256) == []

    solver.IMS_PER_BATCH = 16
    solver.CHECKPOINT_PERIOD = 1234
    lines = scale_schedule(cfg, 256, keep=["SOLVER.CHECKPOINT_PERIOD"])
    assert abs(solver.BASE_LR - 0.02) < 1e-9
    assert solver.MAX_ITER == 2_880_000
    assert solver.STEPS == (2_592_000, 2_736_000)
    assert solver.WARMUP_ITERS == 16_000
    assert solver.CHECKPOINT_PERIOD == 1234
    assert cfg.TEST.EVAL_PERIOD == 0
    assert lines[0] == (
        "batch of 16 instead of the recipe's 256: 16 times the iterations at 1/16 of the learning "
        "rate"
    )
    assert "SOLVER.BASE_LR: 0.32 -> 0.02" in lines
    assert len(lines) == 5

    # what the user has set is left out; other factors
    solver.IMS_PER_BATCH = 24
    (line, *_) = scale_schedule(cfg, 16, keep=["SOLVER.MAX_ITER"])
    assert line == "batch of 24 instead of the recipe's 16: 1.5 times the learning rate"


def test_the_official_weight_decay_spares_norms_and_biases() -> None:
    cfg = read_config(FOLDER / "LVIS" / "vild_ensemble_r50_fpn_lsj.yaml")
    head = ViLDBoxHead(ShapeSpec(channels=4, height=2, width=2), conv_dim=4, fc_dim=4)
    groups = build_optimizer(cfg, head).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in head.named_parameters():
        kernel = name.endswith("weight") and "norm" not in name
        assert decay[id(parameter)] == (4e-5 if kernel else 0.0), name


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("INPUT.LARGE_SCALE_JITTER.MIN_SCALE", 0.0, "got 0.0, 2.0 and 1024"),
        ("INPUT.LARGE_SCALE_JITTER.MIN_SCALE", 3.0, "expected 0 < MIN_SCALE <= MAX_SCALE"),
        ("INPUT.LARGE_SCALE_JITTER.SIZE", 0, "a SIZE of at least 1"),
        ("INPUT.CROP.ENABLED", True, "expected INPUT.CROP.ENABLED: False"),
    ],
)
def test_impossible_jitter_is_refused(key: str, value: Any, message: str) -> None:
    cfg = get_cfg()
    add_vild_config(cfg)
    cfg.merge_from_list([key, value])
    ViLDDatasetMapper(cfg, True, regions=None, proposals=None)  # unused values are not checked
    cfg.INPUT.LARGE_SCALE_JITTER.ENABLED = True
    ViLDDatasetMapper(cfg, False, regions=None, proposals=None)
    with pytest.raises(ValueError, match=message):
        ViLDDatasetMapper(cfg, True, regions=None, proposals=None)
