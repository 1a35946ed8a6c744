"""The RoI heads: inputs of each loss, empty batches, precision, misuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads.fast_rcnn import _log_classification_stats
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from vild.modeling import ViLDROIHeads, find_variant
from vild.modeling.output_layers import _log_accuracy

from ..making import DISTILLED, LEARNED, mapped_image, text_embeddings, tiny_config, tiny_model
from .waits import Waits

TEXT = text_embeddings(["crow", "owl", "kite"], novel=["owl"], temperature=0.05)
LEVELS = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}  # strides


def losses_of(model: nn.Module, batch: list[dict[str, Any]], seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)  # for the sampling of regions
    with EventStorage():
        return model.train()(batch)


@pytest.mark.parametrize("variant", DISTILLED)
def test_distilled_regions_join_no_other_loss(variant: str, tmp_path: Path) -> None:
    model = tiny_model(tmp_path, variant, TEXT)  # GN, so that regions do not affect each other
    few = losses_of(model, [mapped_image(2, 1)])
    many = losses_of(model, [mapped_image(2, 9)])
    assert set(few) == set(many)
    for key in few:
        assert torch.allclose(few[key], many[key], atol=1e-6) == (key != "loss_distill")


@pytest.mark.parametrize("variant", DISTILLED)
def test_distillation_is_the_weighted_mean_over_regions_of_all_images(
    variant: str, tmp_path: Path
) -> None:
    model = tiny_model(tmp_path, variant, TEXT, "MODEL.VILD.DISTILL.WEIGHT", 0.3).train()
    batch = [mapped_image(2, 4, seed=1), mapped_image(0, 0), mapped_image(1, 3, seed=2)]
    found = float(losses_of(model, batch)["loss_distill"].detach())

    # each region separately, pooled from its image; the formula in float64 numpy
    heads = model.roi_heads
    images = model.preprocess_image(batch)
    levels = [model.backbone(images.tensor)[f] for f in heads.box_in_features]
    norms = []
    for n, mapped in enumerate(batch):
        regions = mapped["distill_regions"]
        for row in range(len(regions)):
            own = [x[n : n + 1] for x in levels]
            pooled = heads.box_pooler(own, [regions.proposal_boxes[row]])
            if variant == "ensemble":
                student = heads.image_head(pooled)
            else:
                student = heads.box_predictor.projection(heads.box_head(pooled))
            s = student[0].detach().double().numpy()
            t = regions.teacher_embeddings[row].double().numpy()
            norms.append(np.abs(s / np.linalg.norm(s) - t / np.linalg.norm(t)).sum())
    assert abs(found - 0.3 * np.mean(norms)) < 1e-5
    assert len(norms) == 7


@pytest.mark.parametrize(
    ("variant", "loss", "reached", "spared"),
    [
        ("text", "loss_cls", {"box_head", "projection", "background"}, {"bbox_pred"}),
        ("text", "loss_box_reg", {"box_head", "bbox_pred"}, {"projection", "background"}),
        ("image", "loss_distill", {"box_head", "projection"}, {"bbox_pred"}),
        ("image", "loss_box_reg", {"box_head", "bbox_pred"}, {"projection"}),
        ("vild", "loss_distill", {"box_head", "projection"}, {"bbox_pred", "background"}),
        ("vild", "loss_cls", {"box_head", "projection", "background"}, {"bbox_pred"}),
        ("ensemble", "loss_distill", {"image_head"}, {"box_head", "projection", "background"}),
        ("ensemble", "loss_cls", {"box_head", "projection", "background"}, {"image_head"}),
        ("ensemble", "loss_box_reg", {"box_head", "bbox_pred"}, {"image_head"}),
    ],
)
def test_which_loss_reaches_what(
    variant: str, loss: str, reached: set[str], spared: set[str], tmp_path: Path
) -> None:
    model = tiny_model(tmp_path, variant, TEXT)
    losses_of(model, [mapped_image(3, 5)])[loss].backward()
    heads = model.roi_heads
    parts = {
        "box_head": heads.box_head,
        "projection": heads.box_predictor.projection,
        "bbox_pred": heads.box_predictor.bbox_pred,
        "background": heads.box_predictor.classifier,
        "image_head": heads.image_head,
    }

    def is_reached(part: nn.Module) -> bool:
        return all(p.grad is not None and bool(p.grad.any()) for p in part.parameters())

    def is_spared(part: nn.Module) -> bool:
        return all(p.grad is None or not p.grad.any() for p in part.parameters())

    assert all(is_reached(parts[name]) for name in reached)
    assert all(is_spared(parts[name]) for name in spared)
    assert model.backbone.bottom_up.stem.conv1.weight.grad.any()


@pytest.mark.parametrize("norm", ["SyncBN", "BN", "GN", "none"])
@pytest.mark.parametrize("variant", LEARNED)
def test_nothing_to_learn_from_is_zero_with_gradients(
    variant: str, norm: str, tmp_path: Path
) -> None:
    model = tiny_model(tmp_path, variant, TEXT, "MODEL.ROI_BOX_HEAD.NORM", norm)
    losses = losses_of(model, [mapped_image(0, 0), mapped_image(0, 0)])  # only background
    for key in {"loss_distill", "loss_box_reg", "loss_mask"} & set(losses):
        assert losses[key] == 0
    sum(losses.values()).backward()
    for name, parameter in model.roi_heads.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("variant", ["text", "ensemble"])
def test_the_mask_loss_is_that_of_the_objects_with_a_mask(variant: str, tmp_path: Path) -> None:
    model = tiny_model(tmp_path, variant, TEXT)
    batch = [mapped_image(3, 4)]
    plain = losses_of(model, batch)
    objects = batch[0]["instances"]
    objects.gt_has_mask = torch.tensor([True, True, True])
    assert losses_of(model, batch)["loss_mask"] == plain["loss_mask"]
    objects.gt_has_mask = torch.tensor([True, False, True])
    objects.gt_masks.tensor[1] = False  # its mask may have any content
    part = losses_of(model, batch)
    objects.gt_masks.tensor[1] = True
    assert losses_of(model, batch)["loss_mask"] == part["loss_mask"] != plain["loss_mask"]
    # all objects train boxes and classes
    for key in ("loss_cls", "loss_box_reg"):
        assert part[key] == plain[key] > 0
    objects.gt_has_mask = torch.zeros(3, dtype=torch.bool)
    losses = losses_of(model, batch)
    assert losses["loss_mask"] == 0
    sum(losses.values()).backward()
    for name, parameter in model.roi_heads.mask_head.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@pytest.mark.parametrize("norm", ["BN", "GN"])
def test_not_even_a_proposal(norm: str, tmp_path: Path) -> None:
    model = tiny_model(
        tmp_path, "ensemble", TEXT, "MODEL.ROI_BOX_HEAD.NORM", norm, "MODEL.RPN.NMS_THRESH", -1.0
    )
    model.proposal_generator.min_box_size = 1e6  # every proposal is too small
    losses = losses_of(model, [mapped_image(0, 0)])
    assert losses["loss_cls"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.roi_heads.parameters())
    with torch.no_grad():
        assert len(model.eval()([mapped_image(0, 0)])[0]["instances"]) == 0


def test_novel_rows_are_out_of_the_softmax_unless_zero_shot_is_off(tmp_path: Path) -> None:
    """The text embedding of a novel class has no effect, except with zero-shot off."""
    other = text_embeddings(["crow", "owl", "kite"], novel=["owl"], temperature=0.05, seed=1)
    other.embeddings[0::2] = TEXT.embeddings[0::2]
    for zero_shot in (True, False):
        found = []
        for text in (TEXT, other):
            model = tiny_model(tmp_path, "text", text, "MODEL.VILD.ZERO_SHOT", zero_shot)
            losses = losses_of(model, [mapped_image(2, 0, classes=(0, 2))])
            found.append(losses["loss_cls"])
        assert torch.equal(*found) == zero_shot


def test_a_novel_label_stops_zero_shot_training(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, "vild", TEXT)
    with pytest.raises(ValueError, match="novel class 1 is the target of"):
        losses_of(model, [mapped_image(2, 2, classes=(1,))])
    model = tiny_model(tmp_path, "vild", TEXT, "MODEL.VILD.ZERO_SHOT", False)
    losses_of(model, [mapped_image(2, 2, classes=(1,))])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", LEARNED)
def test_half_precision(variant: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Losses and scores are float32, and close to single precision for given regions."""
    model = tiny_model(tmp_path, variant, TEXT)
    batch = [mapped_image(3, 5), mapped_image(0, 0)]
    expected = losses_of(model, batch)
    with torch.autocast("cpu", dtype=dtype):
        losses = losses_of(model, batch)
    for key in {"loss_cls", "loss_distill", "loss_box_reg"} & set(losses):
        assert losses[key].dtype == torch.float32
    if variant in DISTILLED:
        torch.testing.assert_close(
            losses["loss_distill"], expected["loss_distill"], rtol=0.05, atol=0
        )
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.roi_heads.parameters())
    with torch.autocast("cpu", dtype=dtype), torch.no_grad():
        found = model.eval().inference(batch, do_postprocess=False)[0]
    assert found.scores.dtype == torch.float32
    assert torch.isfinite(found.scores).all()
    assert found.pred_masks.dtype == torch.float32  # masks are pasted in their dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_moves_no_region(dtype: torch.dtype, tmp_path: Path) -> None:
    """RoIAlign rounds boxes to the dtype of the features: 650.9 to 652 in bfloat16."""
    model = tiny_model(tmp_path, "ensemble", TEXT)
    corners = torch.rand(50, 2) * 300 + 650
    boxes = [Boxes(torch.cat([corners, corners + torch.rand(50, 2) * 40 + 12], dim=1))]
    features = {f: torch.randn(1, 64, 1024 // s, 1024 // s) for f, s in LEVELS.items()}
    half = {name: feature.to(dtype) for name, feature in features.items()}
    with torch.no_grad():
        expected = model.roi_heads.embed_regions(features, boxes)
        with torch.autocast("cpu", dtype=dtype):
            found = model.roi_heads.embed_regions(half, boxes)
    assert (found * expected).sum(dim=1).mean() > 0.995  # 0.87 and 0.97 with rounded boxes


@pytest.mark.parametrize("variant", LEARNED)
def test_regions_are_pooled_from_float32(variant: str, tmp_path: Path) -> None:
    model = tiny_model(tmp_path, variant, TEXT)
    types = []
    for pooler in (model.roi_heads.box_pooler, model.roi_heads.mask_pooler):
        pooler.register_forward_pre_hook(lambda _, given: types.append(given[0][0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses_of(model, [mapped_image(2, 3)])
        with torch.no_grad():
            model.eval()([mapped_image(2, 3)])
    assert len(types) >= 4
    assert set(types) == {torch.float32}


def test_what_a_gpu_waits_for_in_a_step(tmp_path: Path) -> None:
    """Objects without a mask must not add host waits per image and field."""
    model = tiny_model(tmp_path, "vild", TEXT)
    batch = [mapped_image(3, 4, seed=1), mapped_image(2, 4, seed=2)]
    counts = []
    for marked in (False, True):
        for mapped in batch:
            if marked:
                objects = mapped["instances"]
                objects.gt_has_mask = torch.ones(len(objects), dtype=torch.bool)
        with Waits() as waits:
            losses_of(model, batch)
        counts.append(sum(waits.found.values()))
    assert counts[0] == counts[1]


def test_the_logged_accuracy_is_detectron2s_with_one_wait() -> None:
    torch.manual_seed(0)
    for rows, objects in ((0, 0), (5, 0), (40, 15)):
        logits, targets = torch.randn(rows, 4), torch.full((rows,), 3)
        targets[:objects] = torch.randint(0, 3, (objects,))
        logits[torch.arange(0, rows, 2), targets[::2]] += 3
        with EventStorage() as expected:
            _log_classification_stats(logits, targets)
        with EventStorage() as found, Waits() as waits:
            _log_accuracy(logits, targets)
        assert found.latest() == expected.latest()
        assert not waits.found  # `tolist` waits once, outside torch's operators


def test_only_what_is_distilled_moves_to_the_device(tmp_path: Path) -> None:
    mapped = mapped_image(2, 3)
    mapped["distill_regions"].objectness_logits = torch.zeros(3)
    model = tiny_model(tmp_path, "vild", TEXT).train()
    (regions,) = model.preprocess_image([mapped]).regions
    assert set(regions.get_fields()) == {"proposal_boxes", "teacher_embeddings"}


@pytest.mark.gpu
@pytest.mark.parametrize("variant", LEARNED)
def test_half_precision_on_a_gpu(variant: str, tmp_path: Path) -> None:
    model = tiny_model(tmp_path, variant, TEXT, "MODEL.DEVICE", "cuda")
    batch = [mapped_image(3, 5), mapped_image(0, 0)]
    expected = losses_of(model, batch)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cuda", dtype=dtype):
            losses = losses_of(model, batch)
        for key in {"loss_cls", "loss_distill"} & set(losses):
            assert losses[key].dtype == torch.float32
        if variant in DISTILLED:
            torch.testing.assert_close(
                losses["loss_distill"], expected["loss_distill"], rtol=0.05, atol=0
            )


@pytest.mark.parametrize("variant", DISTILLED)
def test_images_without_regions_are_refused(variant: str, tmp_path: Path) -> None:
    model = tiny_model(tmp_path, variant, TEXT)
    mapped = mapped_image()
    del mapped["distill_regions"]
    with pytest.raises(ValueError, match=f"'{variant}' needs regions for distillation.*ViLDRCNN"):
        losses_of(model, [mapped])
    with torch.no_grad():
        model.eval()([mapped])  # inference must not need it


def test_the_teacher_of_another_dimension_is_refused(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, "vild", TEXT)
    with pytest.raises(ValueError, match=r"one shape \(R, D\), got \(3, 16\) and \(3, 8\)"):
        losses_of(model, [mapped_image(dimension=8)])


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (("MODEL.VILD.VARIANT", "both"), r"VARIANT to be one of \('text'.*got 'both'"),
        (("MODEL.VILD.TEXT_EMBEDDINGS", ""), "TEXT_EMBEDDINGS, got an empty string.*extract_text"),
        (("MODEL.VILD.TEXT_EMBEDDINGS", "no.safetensors"), "no such file"),
        (("MODEL.ROI_HEADS.NUM_CLASSES", 80), "NUM_CLASSES: 80 classes, got 3 in"),
        (("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False), "class-agnostic boxes"),
        (("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", False), "class-agnostic masks"),
        (("MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True), "TRAIN_ON_PRED_BOXES: False, got True"),
        (("MODEL.ROI_BOX_HEAD.NORM", "LN"), "expected the norm SyncBN, BN, GN or none, got 'LN'"),
        (("MODEL.VILD.TEMPERATURE", -1.0), "positive temperature, got -1"),
        (("MODEL.VILD.FUSION_WEIGHTS", [0.5, 1.5]), r"two weights in \[0, 1\]"),
        (("MODEL.VILD.FUSION_WEIGHTS", [0.5]), r"two weights in \[0, 1\]"),
    ],
)
def test_what_cannot_work_is_refused_at_construction(
    changes: tuple[Any, ...], complaint: str, tmp_path: Path
) -> None:
    cfg = tiny_config(tmp_path, "ensemble", TEXT, *changes)
    with pytest.raises(ValueError, match=complaint):
        build_model(cfg)


def test_heads_that_do_not_fit_the_variant_are_refused(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, "ensemble", TEXT)
    heads = model.roi_heads
    with pytest.raises(ValueError, match=r"an image head in the variant 'ensemble', got none"):
        ViLDROIHeads(**_arguments(heads), variant="ensemble")
    with pytest.raises(ValueError, match="expected no image head in the variant 'vild'"):
        ViLDROIHeads(**_arguments(heads), variant="vild", image_head=heads.image_head)


def _arguments(heads: ViLDROIHeads) -> dict[str, Any]:
    names = ("batch_size_per_image", "positive_fraction", "proposal_matcher", "num_classes")
    names += ("box_in_features", "box_pooler", "box_head", "box_predictor")
    return {name: getattr(heads, name) for name in names}


@pytest.mark.parametrize("variant", DISTILLED)
def test_embeddings_of_given_regions_are_those_that_are_distilled(
    variant: str, tmp_path: Path
) -> None:
    model = tiny_model(tmp_path, variant, TEXT, "MODEL.VILD.DISTILL.WEIGHT", 1.0)
    batch = [mapped_image(2, 4, seed=1), mapped_image(1, 3, seed=2)]
    found = float(losses_of(model, batch)["loss_distill"].detach())
    images = model.preprocess_image(batch)
    boxes = [mapped["distill_regions"].proposal_boxes for mapped in batch]
    with torch.no_grad():
        student = model.roi_heads.embed_regions(model.backbone(images.tensor), boxes)
    teacher = torch.cat([mapped["distill_regions"].teacher_embeddings for mapped in batch])
    teacher = nn.functional.normalize(teacher.float(), dim=1)
    assert student.shape == teacher.shape
    assert abs(float((student - teacher).abs().sum(dim=1).mean()) - found) < 1e-5


def test_clip_has_no_embeddings_of_its_own(tmp_path: Path) -> None:
    heads = tiny_model(tmp_path, "text", TEXT).roi_heads
    heads.variant = find_variant("clip")
    with pytest.raises(ValueError, match="got the variant 'clip', whose box head is built but unt"):
        heads.embed_regions({}, [])
