"""The whole official model, from variables to detections (tests/official_golden)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import BasicStem
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from vild.modeling.official import OfficialRPN, OfficialViLDRCNN, RegionCrops, resize
from vild.modeling.official.backbone import official_norm
from vild.modeling.official.boxes import to_inclusive
from vild.modeling.official.roi_heads import InclusiveOutputLayers

from ..making import text_embeddings
from ..official import CONFIGS, MODELS, SIDE, config, image, official_model, recorded

LOGGER = logging.getLogger(__name__)  # the figures: pytest --log-cli-level info
LEVELS = ("p2", "p3", "p4", "p5", "p6")


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(request.param, official_model(request.param, tmp_path_factory.mktemp("official")))


class Run:
    """A model on the recorded image."""

    def __init__(self, name: str, model: nn.Module) -> None:
        self.arrays, self.model = recorded(name), model
        self.images = ImageList(image(name), [(SIDE, SIDE)])
        with torch.no_grad():
            self.features = model.backbone(self.images.tensor)
            self.proposals = model.proposal_generator(self.images, self.features)[0][0]

    def detections(self) -> Instances:
        with torch.no_grad():
            return self.model.roi_heads(self.images, self.features, [self.proposals])[0][0]

    def differences(self) -> dict[str, float]:
        """Return the maximum difference of each output; relative to the maximum for features."""
        arrays, found = self.arrays, self.detections()
        count = int(arrays["out/num_detections"][0])
        assert len(found) == count
        assert len(self.proposals) == len(arrays["rois/boxes_yxyx"][0])
        scores = self.proposals.objectness_logits.sigmoid()
        boxes, masks = yxyx(found.pred_boxes), found.pred_masks[:, 0]
        measured = {
            "features": max(self.sampled(f"fpn/{name}", self.features[name]) for name in LEVELS),
            "proposals [px]": off(yxyx(self.proposals.proposal_boxes), arrays["rois/boxes_yxyx"]),
            "proposals' scores": off(scores, arrays["rois/scores"]),
            "boxes [px]": off(boxes, arrays["out/detection_boxes"]),
            "scores": off(found.scores, arrays["out/detection_scores"]),
            "masks": off(masks, arrays["out/detection_masks"].astype(np.float32)),
        }
        LOGGER.info("%s", {key: f"{value:.1e}" for key, value in measured.items()})
        return measured

    def sampled(self, key: str, ours: Tensor) -> float:
        """Return the difference of (1, C, H, W) from sampled values of (1, H, W, C)."""
        ours = ours.permute(0, 2, 3, 1)
        assert ours.shape == tuple(self.arrays[f"{key}/shape"])
        values = ours.flatten()[torch.from_numpy(self.arrays[f"{key}/flat_index"])]
        official = torch.from_numpy(self.arrays[f"{key}/value"])
        return float((values - official).abs().max() / official.abs().max())


def yxyx(boxes: Boxes) -> Tensor:
    return to_inclusive(boxes.tensor)[:, [1, 0, 3, 2]]


def off(ours: Tensor, official: np.ndarray) -> float:
    """Return the largest difference from the values of the only image."""
    assert ours.shape == official[0].shape
    return float((ours - torch.from_numpy(official[0])).abs().max())


@torch.no_grad()
def test_backbone_pyramid_and_rpn(model: Run) -> None:
    features = model.model.backbone.bottom_up(model.images.tensor)
    for level in range(2, 6):
        assert model.sampled(f"backbone/c{level}", features[f"res{level}"]) < 1e-4
    scores, deltas = model.model.proposal_generator.rpn_head([model.features[n] for n in LEVELS])
    for name, score, delta in zip(LEVELS, scores, deltas, strict=True):
        assert model.sampled(f"fpn/{name}", model.features[name]) < 1e-4
        assert model.sampled(f"rpn/scores/{name}", score) < 1e-4
        ours = delta.unflatten(1, (3, 4))[:, :, [1, 0, 3, 2]].flatten(1, 2)
        assert model.sampled(f"rpn/boxes/{name}", ours) < 1e-4


@torch.no_grad()
def test_heads_on_the_proposals(model: Run) -> None:
    heads, arrays = model.model.roi_heads, model.arrays
    levels = [model.features[name] for name in heads.box_in_features]
    pooled = heads.box_pooler(levels, [model.proposals.proposal_boxes])
    embeddings, deltas = heads.box_predictor(heads.box_head(pooled))
    logits = heads.box_predictor.classifier(embeddings).roll(1, dims=1)  # background first
    assert off(logits, arrays["head/class_outputs"]) < 2e-3
    assert off(deltas[:, [1, 0, 3, 2]], arrays["head/box_outputs"]) < 1e-4
    assert (heads.image_head is None) == ("head/distill_class_outputs" not in arrays)
    if heads.image_head is not None:
        embeddings = heads.image_head(pooled)
        logits = heads.box_predictor.classifier(embeddings, background=False)
        assert off(logits, arrays["head/distill_class_outputs"]) < 2e-3


def test_proposals_and_detections(model: Run) -> None:
    measured = model.differences()
    assert measured["proposals [px]"] < 2e-3
    assert measured["proposals' scores"] < 1e-5
    assert measured["boxes [px]"] < 2e-3
    assert measured["scores"] < 1e-4
    assert measured["masks"] < 1e-3  # recorded in half precision
    classes = model.detections().pred_classes.numpy() + 1
    assert np.array_equal(classes, model.arrays["out/detection_classes"][0])


@pytest.fixture
def vanilla(tmp_path: Path) -> nn.Module:
    return official_model("vanilla", tmp_path)


def test_detectron2s_max_pooling_is_not_equal(vanilla: nn.Module) -> None:
    """It pads a pixel before, TensorFlow one after, which shifts by half a stride-4 pixel."""
    stem = BasicStem(norm=lambda channels: official_norm("BN", channels))
    stem.load_state_dict(vanilla.backbone.bottom_up.stem.state_dict())
    vanilla.backbone.bottom_up.stem = stem.eval()
    run = Run("vanilla", vanilla)
    measured = max(run.sampled(f"fpn/{name}", run.features[name]) for name in LEVELS)
    LOGGER.info("features off by %.2f of their largest", measured)
    assert measured > 0.1


@pytest.mark.parametrize(("kind", "samples", "least"), [("ROIAlignV2", 0, 0.5), ("ROIAlign", 1, 0)])
def test_detectron2s_roi_align_is_not_equal(
    kind: str, samples: int, least: float, vanilla: nn.Module
) -> None:
    """V2 is shifted by half a pixel; V1 with one sample differs only in narrow regions."""
    run = Run("vanilla", vanilla)
    features = [run.features[name] for name in LEVELS]
    crops = vanilla.roi_heads.box_pooler
    own = ROIPooler(7, [1 / stride for stride in crops.strides], samples, kind)
    boxes = run.proposals.proposal_boxes
    given = boxes if kind == "ROIAlignV2" else Boxes(to_inclusive(boxes.tensor))
    with torch.no_grad():
        ours, theirs = crops(features, [boxes]), own(features, [given])
    measured = float((ours - theirs).abs().max())
    largest = float(ours.abs().max())
    LOGGER.info("%s: off by up to %.2f, features being up to %.1f", kind, measured, largest)
    assert measured >= least
    narrow = Boxes(torch.tensor([[20.0, 30.0, 22.0, 90.0]]))
    with torch.no_grad():
        ours = crops(features, [narrow])
        theirs = own(features, [Boxes(to_inclusive(narrow.tensor))])
    measured = float((ours - theirs).abs().max())
    LOGGER.info("%s: a region 2 pixels wide is off by up to %.2f", kind, measured)
    assert measured > 0.1


def test_detectron2s_boxes_are_not_equal(tmp_path: Path) -> None:
    """Boxes without the + 1 differ: same weights, Detectron2's anchors and RPN."""
    own = ("MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator")
    run = Run(
        "vanilla",
        official_model("vanilla", tmp_path, *own, "MODEL.PROPOSAL_GENERATOR.NAME", "RPN"),
    )
    ours = run.proposals.proposal_boxes.tensor[:, [1, 0, 3, 2]]
    official = torch.from_numpy(run.arrays["rois/boxes_yxyx"][0])
    nearest = (ours[:, None] - official[None]).abs().amax(dim=2).amin(dim=1)
    medians = float(nearest.median()), float(nearest.max())
    LOGGER.info("proposals off by %.2f px (median), %.1f px (largest)", *medians)
    assert nearest.median() > 0.3


def test_another_vocabulary(model: Run) -> None:
    heads, before = model.model.roi_heads, model.model.roi_heads.box_predictor
    kept = before.classifier.text.clone(), before.novel.clone(), before.vocabulary
    words = text_embeddings(["owl", "crow", "kite"], 512, novel=["kite"], temperature=0.01)
    heads.set_vocabulary(words)
    try:
        found = model.detections()
        assert heads.vocabulary.names == ("owl", "crow", "kite")
        assert set(found.pred_classes.tolist()) <= {0, 1, 2}
        assert len(found) > 0
        with pytest.raises(ValueError, match=r"shape \(K, 512\)"):
            heads.set_vocabulary(text_embeddings(["owl"], 768))
    finally:
        before.classifier.text, before.novel, before.vocabulary = kept
        heads.num_classes = before.num_classes = len(kept[2])


ZERO = [-30.0, -40, 1, 0.5]  # clipped to the first pixel: all inclusive coordinates are 0
GOOD = [[10.0 * n, 0, 10 * n + 9, 9] for n in range(5)]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("wanted", "expected"), [(1, 1), (4, 4), (6, 6), (9, 6)])
def test_boxes_of_zeros_take_no_place_among_the_proposals(
    wanted: int, expected: int, training: bool
) -> None:
    """They score best on both levels but are dropped before the best ``wanted`` are kept."""
    rpn = OfficialRPN(
        in_features=["p2", "p3"],
        head=nn.Identity(),
        anchor_generator=nn.Identity(),
        anchor_matcher=Matcher([0.5], [0, 1]),
        box2box_transform=Box2BoxTransform(weights=(1.0, 1, 1, 1)),
        batch_size_per_image=8,
        positive_fraction=0.5,
        pre_nms_topk=(4, 4),
        post_nms_topk=(wanted, wanted),
        nms_thresh=0.7,
        min_box_size=0.0,
    ).train(training)
    anchors = [Boxes(torch.tensor([ZERO, *GOOD[:3], GOOD[0]])), Boxes(torch.tensor([ZERO, *GOOD]))]
    # the best 4 of each level are candidates, including boxes of zeros
    logits = [torch.tensor([[9.0, 3, 2, 1, 0]]), torch.tensor([[8.0, 5, 4.5, 4, 3.5, 3.4]])]
    deltas = [torch.zeros(1, len(boxes), 4) for boxes in anchors]
    (found,) = rpn.predict_proposals(anchors, logits, deltas, [(64, 64)])
    rows = [GOOD[0], GOOD[1], GOOD[2], GOOD[0], GOOD[1], GOOD[2]]
    assert len(found) == expected
    assert found.proposal_boxes.tensor.tolist() == rows[:expected]
    assert found.objectness_logits.tolist() == [5, 4.5, 4, 3, 2, 1][:expected]


def test_boxes_of_zeros_take_no_place_among_the_detections() -> None:
    layers = InclusiveOutputLayers(
        ShapeSpec(channels=4),
        text_embeddings=text_embeddings(2),
        box2box_transform=Box2BoxTransform(weights=(1.0, 1, 1, 1)),
        test_score_thresh=0.0,
        test_nms_thresh=0.5,
        test_topk_per_image=3,
    )
    only_x, only_y = [-3.0, -3, 3, 0], [-3.0, -3, 0, 3]  # kept, because one coordinate is above 0
    boxes = torch.tensor([ZERO, GOOD[1], ZERO, only_x, only_y, GOOD[2]])
    scores = torch.tensor([[0.9, 0.8], [0.3, 0], [0.9, 0.8], [0.2, 0], [0, 0.15], [0.1, 0]])
    found = layers.select(boxes, [scores[:4], scores[4:]], (64, 64))
    assert found[0].tolist() == [GOOD[1], [0, 0, 3, 1], [0, 0, 1, 3]]
    torch.testing.assert_close(found[1], torch.tensor([0.3, 0.2, 0.15]))
    assert found[2].tolist() == [0, 0, 1]
    assert found[3].tolist() == [1, 3, 4]
    # an image of one pixel has no other boxes
    assert len(layers.select(boxes, [scores], (1, 1))[0]) == 0


def test_parts_are_initialised_to_be_trained(tmp_path: Path) -> None:
    """Like Detectron2's FPN: variance 1 / inputs, zero biases; masks start at 0.5."""
    torch.manual_seed(0)
    model = build_model(config("vanilla", tmp_path))
    fpn, head = model.backbone, model.roi_heads.mask_head
    for conv in (*fpn.lateral_convs, *fpn.output_convs, fpn.top_block.conv):
        inputs = conv.weight[0].numel()
        assert float(conv.weight.detach().var()) * inputs == pytest.approx(1, rel=0.02)
        assert not conv.bias.any()
    with torch.no_grad():
        masks = head.eval().layers(torch.rand(2, 256, 14, 14)).sigmoid()
    torch.testing.assert_close(masks, torch.full_like(masks, 0.5), rtol=0, atol=0.02)
    for norm in (*fpn.norms.values(), *head.norms):
        assert (norm.weight == 1).all()
        assert not norm.bias.any()


@torch.no_grad()
def test_regions_without_an_area_and_none_at_all() -> None:
    crops = RegionCrops(7, (4, 8))
    features = [torch.rand(2, 3, 16, 16), torch.rand(2, 3, 8, 8)]
    boxes = Boxes(torch.tensor([[5.0, 6, 5.5, 6.2], [63, 63, 64, 64], [0, 0, 64, 64]]))
    pooled = crops(features, [boxes, Boxes(torch.empty(0, 4))])
    assert pooled.shape == (3, 3, 7, 7)
    assert torch.isfinite(pooled).all()
    assert torch.equal(pooled[1, :, 0, 0], features[0][0, :, 15, 15])
    assert crops(features, [Boxes(torch.empty(0, 4))] * 2).shape == (0, 3, 7, 7)


def test_resizing_samples_as_tensorflow_1_does() -> None:
    """The expected values are from tf.compat.v1.image.resize_images (TensorFlow 2.21)."""
    image = torch.arange(6.0).view(1, 2, 3) ** 2
    larger = [[0, 0.6, 1.6, 3.4, 4], [6, 9, 12.4, 16.6, 18], [9, 13.2, 17.8, 23.2, 25]]
    smaller = [[0, 2.5], [9, 20.5]]
    torch.testing.assert_close(resize(image, 3, 5), torch.tensor([larger]))
    torch.testing.assert_close(resize(image, 2, 2), torch.tensor([smaller]))
    assert torch.equal(resize(image, 2, 3), image)


def test_images_are_scaled_to_the_square(tmp_path: Path) -> None:
    model = build_model(config("vanilla", tmp_path)).eval()
    assert isinstance(model, OfficialViLDRCNN)
    assert model.backbone.size_divisibility == 64
    assert model.backbone.output_shape()["p6"] == ShapeSpec(channels=256, stride=64)
    samples = [torch.full((3, 427, 640), 124.0), torch.zeros(3, 30, 20)]
    images = model.preprocess_image([{"image": image.byte()} for image in samples])
    assert images.image_sizes == [(171, 256), (256, 171)]
    assert images.tensor.shape == (2, 3, SIDE, SIDE)
    assert not images.tensor[0, :, 171:].any()
    expected = (124 - model.pixel_mean[0]) / model.pixel_std[0]
    torch.testing.assert_close(images.tensor[0, 0, :171], expected.expand(171, 256))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("INPUT.MIN_SIZE_TEST", 800), "expected INPUT.MIN_SIZE_TEST: 0"),
        (("INPUT.MAX_SIZE_TEST", 1000), "a multiple of 64, got 1000"),
        (("MODEL.RESNETS.DEPTH", 18), "DEPTH to be 50, 101 or 152"),
        (("MODEL.RPN.CONV_DIMS", [-1]), "two or more convolutions"),
    ],
)
def test_other_configurations_are_refused(
    changes: tuple[Any, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(config("vanilla", tmp_path, *changes))


def test_configurations_say_what_is_different() -> None:
    """A leaf sets only its variant, depth and weight."""
    for path in CONFIGS.glob("vild*.yaml"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 11, path
