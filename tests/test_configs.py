"""Every shipped yaml loads, names only known keys and builds a model."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
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
    read_config,
    register_datasets,
    scale_schedule,
    set_zero_shot,
)
from vild.data import COCO_BASE, COCO_NOVEL
from vild.data.dataset_mapper import ViLDDatasetMapper
from vild.data.jitter import LargeScaleJitter
from vild.modeling import WITH_TEACHER, ViLDBoxHead, ViLDROIHeads

from .making import mapped_image, text_embeddings, with_proposals

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
        keys += own_keys(value, f"{key}.") if isinstance(value, CfgNode) else [prefix + key]
    return keys


def test_own_keys_are_these_and_below_model_vild() -> None:
    plain, cfg = get_cfg(), get_cfg()
    add_vild_config(cfg)
    # frozen on purpose: at most 16, each documented
    assert own_keys(cfg.MODEL.VILD) == [
        "CROP_MODE",
        "DATASETS",
        "DISTILL.DRAW",
        "DISTILL.MIN_VISIBLE",
        "DISTILL.REGIONS",
        "DISTILL.SOURCE",
        "DISTILL.STORE",
        "DISTILL.WEIGHT",
        "FUSION_WEIGHTS",
        "LARGE_SCALE_JITTER",
        "OBJECTNESS",
        "TEACHER",
        "TEMPERATURE",
        "TEXT_EMBEDDINGS",
        "VARIANT",
        "ZERO_SHOT",
    ]
    del cfg.MODEL["VILD"]
    assert cfg == plain


def test_custom_data_is_registered_by_the_configuration(tmp_path: Path) -> None:
    category = {"id": 1, "name": "crow"}
    contents = {"images": [], "annotations": [], "categories": [category, {"id": 2, "name": "owl"}]}
    (tmp_path / "a.json").write_text(json.dumps(contents), encoding="utf-8")
    (tmp_path / "own.yaml").write_text(
        "name: config_birds\nval: {json: a.json, images: .}\nnovel: [owl]\n", encoding="utf-8"
    )
    cfg = get_cfg()
    add_vild_config(cfg)
    cfg.merge_from_list(["MODEL.VILD.DATASETS", [str(tmp_path / "own.yaml")]])
    assert register_datasets(cfg) == ["config_birds_val"]
    assert MetadataCatalog.get("config_birds_val").novel == [False, True]


@pytest.fixture
def coco_mini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Annotation files without pictures where datasets/coco_mini.yaml looks for them."""
    categories = [{"id": n, "name": name} for n, name in enumerate((*COCO_BASE, *COCO_NOVEL), 1)]
    contents = {"images": [], "annotations": [], "categories": categories}
    (tmp_path / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (tmp_path / split).mkdir()
        file = tmp_path / "annotations" / f"instances_{split}.json"
        file.write_text(json.dumps(contents), encoding="utf-8")
    monkeypatch.setenv("COCO_MINI", str(tmp_path))
    monkeypatch.chdir(FOLDER.parent)


@pytest.mark.usefixtures("coco_mini")
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipe_takes_a_step_and_detects(path: Path, tmp_path: Path) -> None:
    """As shipped but for its numbers of channels in the heads, on one small picture."""
    cfg = read_config(path)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 64
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    cfg.TEST.DETECTIONS_PER_IMAGE = 5
    classes, variant = cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.VILD.VARIANT
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
    jitter = cfg.MODEL.VILD.LARGE_SCALE_JITTER
    assert isinstance(mapper.augmentations.augs[-1], LargeScaleJitter) == bool(jitter)
    assert mapper.region_draw == ("first" if jitter else "uniform")

    torch.manual_seed(0)
    model = build_model(cfg)
    seen = {"image": mapped_image()["image"], "height": 48, "width": 48}
    if own and variant in WITH_TEACHER:  # for evaluation alone
        seen["proposals"] = with_proposals(mapped_image(0, 5, dimension=768))["proposals"]
        detect(model, seen)
        return
    with EventStorage():
        losses = model([mapped_image(2, 3, dimension=768), mapped_image(0, 0, dimension=768)])
    expected = {"loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}
    expected |= {"loss_distill"} if own and variant != "text" else set()
    expected |= {"loss_cls"} if not own or variant != "image" else set()
    assert set(losses) == expected
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, name
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    detect(model, seen)


LSJ = [path for path in CONFIGS if path.stem.endswith("r50_fpn_lsj")]


@pytest.mark.parametrize("path", LSJ, ids=lambda path: f"{path.parent.name}/{path.stem}")
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


@pytest.mark.parametrize("sizes", [[(1024, 1024)], [(96, 64), (70, 131)]])
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
    assert found[0]["instances"].pred_masks.shape[1:] == (48, 48)


@pytest.mark.parametrize(
    ("contents", "options", "message"),
    [
        (None, (), "expected a configuration in .*none.yaml: .*does not exist"),
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
    ],
)
def test_what_is_wrong_with_a_configuration_is_said(
    contents: str | None, options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    file = tmp_path / ("none.yaml" if contents is None else "some.yaml")
    if contents is not None:
        file.write_text(contents)
    with pytest.raises(ValueError, match=message):
        read_config(file, options)


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
    assert lines[0] == "16 pictures a batch instead of the recipe's 256; so"
    assert "SOLVER.BASE_LR: 0.32 -> 0.02" in lines
    assert len(lines) == 5


def test_the_official_weight_decay_spares_norms_and_biases() -> None:
    cfg = read_config(FOLDER / "LVIS" / "vild_ensemble_r50_fpn_lsj.yaml")
    head = ViLDBoxHead(ShapeSpec(channels=4, height=2, width=2), conv_dim=4, fc_dim=4)
    groups = build_optimizer(cfg, head).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in head.named_parameters():
        kernel = name.endswith("weight") and "norm" not in name
        assert decay[id(parameter)] == (4e-5 if kernel else 0.0), name


@pytest.mark.parametrize("jitter", [[0.1, 2.0], [0, 2.0, 1024], [2.0, 0.1, 1024]])
def test_impossible_jitter_is_refused(jitter: list[float]) -> None:
    cfg = get_cfg()
    add_vild_config(cfg)
    cfg.MODEL.VILD.LARGE_SCALE_JITTER = jitter
    with pytest.raises(ValueError, match=r"\[smallest scale, largest scale, side in pixels\]"):
        ViLDDatasetMapper(cfg, True, regions=None, proposals=None)
