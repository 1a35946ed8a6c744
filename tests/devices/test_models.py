"""Detectors on a simulated GPU: no mixed devices, and the values of the CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, distributed, nn

from vild.config import read_config
from vild.evaluation.results import coco_results
from vild.modeling import VARIANTS

from ..making import CONFIGS, mapped_image, text_embeddings, tiny_config, with_proposals
from .comparing import compare
from .gradients import gradients
from .simulated import MixedDevicesError, simulated_cuda

TEXT = text_embeddings(["crow", "owl", "kite"], novel=["owl"])
OTHER = text_embeddings(["jay", "tern", "rook", "wren", "teal"], novel=["tern", "teal"], seed=1)
PRECOMPUTED = (
    *("MODEL.LOAD_PROPOSALS", True),
    *("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"),
)


def config(folder: Path, variant: str, *changes: Any) -> CfgNode:
    if not VARIANTS[variant].teacher_at_test:
        return tiny_config(folder, variant, TEXT, *changes)
    like = "text" if variant == "text_clip" else "image"
    return tiny_config(folder, like, TEXT, "MODEL.VILD.VARIANT", variant, *PRECOMPUTED, *changes)


def model_on(device: str, cfg: CfgNode) -> nn.Module:
    cfg = cfg.clone()
    cfg.merge_from_list(["MODEL.DEVICE", device])
    torch.manual_seed(0)
    return build_model(cfg)


def batch() -> list[dict[str, Any]]:
    """Two images of different sizes; the detections of the second are for a larger one."""
    first = with_proposals(mapped_image(3, 5))
    second = with_proposals(mapped_image(2, 3, side=64, seed=1))
    return [first, {**second, "height": 96, "width": 80}]


def losses(model: nn.Module) -> dict[str, Tensor]:
    given = batch()
    for mapped in given:
        mapped["proposals"].remove("teacher_embeddings")  # training has none
    torch.manual_seed(0)  # of the sampling of regions
    with EventStorage():
        return model.train()(given)


def step(model: nn.Module) -> Any:
    """Losses, gradients and statistics of a training step."""
    found = losses(model)
    loss = sum(found.values())
    assert isinstance(loss, Tensor)
    by_parameter = gradients(loss)
    named = {name: by_parameter[p] for name, p in model.named_parameters() if p in by_parameter}
    return found, named, dict(model.named_buffers())


@torch.no_grad()
def detections(model: nn.Module) -> list[dict[str, Any]]:
    return model.eval()(batch())


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_detections_of_two_vocabularies(variant: str, tmp_path: Path) -> None:
    cfg = config(tmp_path, variant)

    def run(device: str) -> Any:
        model = model_on(device, cfg)
        learned = step(model) if VARIANTS[variant].trained else {}
        first = detections(model)
        model.roi_heads.set_vocabulary(OTHER)
        again = losses(model) if VARIANTS[variant].trained else {}
        return learned, first, detections(model), again

    found, _ = compare(run, atol=1e-4)
    if VARIANTS[variant].trained:
        assert {".0.0.loss_mask", ".0.1.roi_heads.box_head.fcs.0.weight"} < set(found)
    assert found[".1.0.instances.pred_masks"].shape[1:] == (96, 96)
    assert found[".2.1.instances.pred_masks"].shape[1:] == (96, 80)
    before, after = (found[f".{n}.0.instances.scores"] for n in (1, 2))
    assert min(len(before), len(after)) >= 15
    assert not torch.equal(before, after)


def test_gradients_are_those_of_autograds_engine(tmp_path: Path) -> None:
    model = model_on("cpu", config(tmp_path, "ensemble"))
    _, found, _ = step(model)
    sum(losses(model).values()).backward()
    expected = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)  # another order of sums


@pytest.mark.parametrize(
    ("variant", "dtype"), [("vild", torch.float16), ("ensemble", torch.bfloat16)]
)
def test_half_precision(variant: str, dtype: torch.dtype, tmp_path: Path) -> None:
    cfg = config(tmp_path, variant)
    expected = losses(model_on("cpu", cfg))
    with simulated_cuda():
        model = model_on("cuda", cfg)
        with torch.autocast("cuda", dtype=dtype):
            found = losses(model)
        slopes = gradients(sum(found.values()))
        with torch.autocast("cuda", dtype=dtype):
            detected = detections(model)[0]["instances"]
        for key in ("loss_cls", "loss_distill", "loss_box_reg"):
            assert found[key].dtype == torch.float32
        ratio = float(found["loss_distill"].detach() / expected["loss_distill"].detach())
        assert abs(ratio - 1) < 0.05
        assert len(slopes) > 100
        assert all(bool(torch.isfinite(slope).all()) for slope in slopes.values())
        assert detected.scores.dtype == torch.float32
        assert bool(torch.isfinite(detected.scores).all())


@pytest.mark.parametrize("name", ["supervised", "rpn_baseline"])
def test_detectron2s_own_detectors(name: str, tmp_path: Path) -> None:
    cfg = config(tmp_path, "text")
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.ROI_HEADS.NAME = read_config(CONFIGS / f"shapes/{name}.yaml").MODEL.ROI_HEADS.NAME
    assert cfg.MODEL.ROI_HEADS.NAME == "OptionalMaskROIHeads"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1 if name == "rpn_baseline" else 3

    def run(device: str) -> Any:
        model = model_on(device, cfg)
        given = batch()
        for mapped in given:
            objects = mapped["instances"]
            objects.gt_has_mask = torch.arange(len(objects)) > 0
        with EventStorage():
            found = model.train()(given)
        return found, list(gradients(sum(found.values())).values()), detections(model)

    compare(run, atol=1e-4)


@contextmanager
def two_processes() -> Iterator[None]:
    """This process and another one with the same images."""
    with ExitStack() as stack:
        for module in (comm, distributed):
            stack.enter_context(patch.object(module, "get_world_size", lambda: 2))
        stack.enter_context(patch.object(distributed, "is_initialized", lambda: True))
        stack.enter_context(patch.object(distributed, "all_reduce", lambda x: x.mul_(2)))
        yield


def test_the_official_model_in_two_processes(tmp_path: Path) -> None:
    """It has every part of configs/schedules/lsj.yaml."""
    TEXT.save(tmp_path / "text.safetensors")
    cfg = read_config(CONFIGS / "LVIS/official/vild_ensemble_r50.yaml")
    cfg.merge_from_list(
        [
            *("MODEL.VILD.TEXT_EMBEDDINGS", str(tmp_path / "text.safetensors")),
            *("MODEL.ROI_HEADS.NUM_CLASSES", 3, "MODEL.FPN.OUT_CHANNELS", 32),
            *("MODEL.ROI_BOX_HEAD.CONV_DIM", 32, "MODEL.ROI_BOX_HEAD.FC_DIM", 64),
            *("MODEL.ROI_MASK_HEAD.CONV_DIM", 32, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 32),
            *("MODEL.RPN.POST_NMS_TOPK_TEST", 30, "MODEL.RPN.PRE_NMS_TOPK_TEST", 100),
            *("INPUT.MAX_SIZE_TEST", 128, "TEST.DETECTIONS_PER_IMAGE", 20),
        ]
    )
    lsj = read_config(CONFIGS / "LVIS/vild_ensemble_r50_fpn_lsj.yaml").MODEL
    assert cfg.MODEL.BACKBONE.NAME == lsj.BACKBONE.NAME
    assert cfg.MODEL.ROI_MASK_HEAD.NAME == lsj.ROI_MASK_HEAD.NAME
    assert cfg.MODEL.ROI_HEADS.NAME == "OfficialROIHeads"

    def run(device: str) -> Any:
        model = model_on(device, cfg)
        with two_processes():
            found = step(model)
        return found, detections(model)

    found, _ = compare(run, atol=1e-4)
    assert {".0.0.loss_distill", ".0.0.loss_mask", ".1.1.instances.pred_masks"} < set(found)
    assert ".0.1.roi_heads.image_head.box_head.conv_norms.0.weight" in found


def test_embeddings_of_regions(tmp_path: Path) -> None:
    def run(device: str) -> Tensor:
        model = model_on(device, config(tmp_path, "ensemble")).eval()
        boxes = Boxes(torch.tensor([[4.0, 4, 50, 60], [20.0, 8, 30, 90]])).to(model.device)
        with torch.no_grad():
            features = model.backbone(model.preprocess_image(batch()[:1]).tensor)
            return model.roi_heads.embed_regions(features, [boxes])

    compare(lambda device: [run(device)])


def test_results_of_the_evaluation(tmp_path: Path) -> None:
    cfg = config(tmp_path, "vild")

    def results(device: str) -> str:
        found = detections(model_on(device, cfg))[0]["instances"]
        return json.dumps(coco_results(7, found, [3, 1, 2]))

    expected = results("cpu")
    with simulated_cuda():
        assert results("cuda") == expected


@pytest.mark.parametrize("part", ["text", "background", "pixel_mean"])
def test_a_part_on_another_device_is_found(part: str, tmp_path: Path) -> None:
    """Otherwise the tests above would pass whatever the model did."""
    with simulated_cuda():
        model = model_on("cuda", config(tmp_path, "vild"))
        classifier = model.roi_heads.box_predictor.classifier
        if part == "text":
            classifier.text = classifier.text.cpu()
        elif part == "background":
            classifier.background = nn.Parameter(classifier.background.detach().cpu())
        else:
            model.pixel_mean = model.pixel_mean.cpu()
        for run in (losses, detections):
            with pytest.raises(MixedDevicesError, match=r"on one device, got .* on cpu"):
                run(model)


def test_regions_that_are_left_on_the_cpu_are_found(tmp_path: Path) -> None:
    with simulated_cuda():
        model = model_on("cuda", config(tmp_path, "vild"))
        with (
            patch.object(Instances, "to", lambda self, device: self),
            pytest.raises(MixedDevicesError, match=r"on one device, got .* on cpu"),
        ):
            losses(model)
