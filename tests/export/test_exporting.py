"""Exported detectors match the original, also on other images and with other classes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from vild.embeddings import TextEmbeddings
from vild.export import checks, exporting
from vild.export.exporting import export_detector
from vild.inference.predictor import prepare_image
from vild.modeling.official.roi_heads import OfficialROIHeads

from ..making import mapped_image, text_embeddings, tiny_config, tiny_model

TEXT = text_embeddings(7, novel=["class 2", "class 6"])
OTHER = text_embeddings(30, novel=["class 1"], seed=5)  # more classes than detections
Outputs = Sequence[Any]


def sample(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Make a random image (H, W, 3) uint8 RGB."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def detector(
    folder: Path, variant: str, *changes: Any, text: TextEmbeddings = TEXT
) -> tuple[nn.Module, CfgNode]:
    """Make a model and its configuration, with weights in a file.

    It does not use GN: with 32 channels each group has one channel, which amplifies the rounding of
    the nearly constant features of a narrow box.
    """
    changes = ("MODEL.ROI_BOX_HEAD.NORM", "BN", *changes)
    model = tiny_model(folder, variant, text, *changes).eval()
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    weights = ("MODEL.WEIGHTS", str(folder / "model.pth"))
    return model, tiny_config(folder, variant, text, *weights, *changes)


def eager(model: nn.Module, image: Tensor) -> list[Tensor]:
    with torch.no_grad():
        (found,) = model.inference([{"image": image}], do_postprocess=False)
    return [found.pred_boxes.tensor, found.scores, found.pred_classes, found.pred_masks]


def run_torchscript(folder: Path, *inputs: Tensor) -> Outputs:
    return torch.jit.load(str(folder / "model.ts"))(*inputs)


def run_onnx(folder: Path, *inputs: Tensor) -> Outputs:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    names = [item.name for item in session.get_inputs()]
    assert names == ["image", "text", "novel"][: len(inputs)]
    feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    return [torch.from_numpy(value) for value in session.run(None, feed)]


def assert_equal(found: Outputs, expected: Outputs, tolerance: float) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        assert torch.allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("variant", "text_input"),
    [
        *(("vild", False), ("ensemble", True)),
        *(
            pytest.param(*others, marks=pytest.mark.slow)
            for others in (
                *(("text", True), ("text", False), ("vild", True)),
                *(("ensemble", False), ("image", True)),
            )
        ),
    ],
)
def test_every_variant(variant: str, text_input: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    objectness = ("MODEL.VILD.OBJECTNESS", variant == "vild")
    model, cfg = detector(tmp_path, variant, *objectness)
    before = eager(model, prepare_image(cfg, sample(60, 80)))
    folder = tmp_path / "exported"
    written = export_detector(
        model, cfg, folder, [sample(60, 80)], text_input=text_input, repeats=1
    )
    assert [item.file.name for item in written] == ["model.ts", "model.onnx"]
    for item in written:
        assert len(item.checks) == (3 if text_input else 2)
        assert all(check.detections for check in item.checks)
    after = eager(model, prepare_image(cfg, sample(60, 80)))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    # cases not covered by the export's checks: a larger image, more classes than detections
    inputs: tuple[Tensor, ...] = (torch.from_numpy(sample(171, 130, seed=3)).permute(2, 0, 1),)
    if text_input:
        model.roi_heads.set_vocabulary(OTHER)
        inputs += (OTHER.embeddings,)
        if variant == "ensemble":
            inputs += (torch.tensor(OTHER.vocabulary.novel),)
    expected = eager(model, inputs[0])
    assert len(expected[0]) == 20
    assert expected[3].shape == (20, 1, 28, 28)
    assert_equal(run_torchscript(folder, *inputs), expected, 1e-6)
    assert_equal(run_onnx(folder, *inputs), expected, 1e-4)


@pytest.mark.slow
def test_the_backbone_and_mask_head_of_the_official_schedule(tmp_path: Path) -> None:
    """A trace must pad the sides of any image to multiples of 64."""
    pytest.importorskip("onnxruntime")
    official = (
        *("MODEL.BACKBONE.NAME", "build_official_resnet_fpn_backbone"),
        *("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256),
        *("MODEL.ANCHOR_GENERATOR.OFFSET", 0.5),
        *("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"]),
        *("MODEL.ROI_MASK_HEAD.NAME", "OfficialMaskHead", "MODEL.ROI_MASK_HEAD.NORM", "BN"),
    )
    model, cfg = detector(tmp_path, "ensemble", *official)
    # weights and statistics that, like a trained model's, do not amplify rounding
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            module.weight.data.fill_(0.2 if name.endswith("conv3.norm") else 1.0)
    with torch.no_grad(), EventStorage():
        model.train()([mapped_image(4, 8, side=256, seed=seed) for seed in range(3)])
    torch.save({"model": model.eval().state_dict()}, tmp_path / "model.pth")
    folder = tmp_path / "exported"
    export_detector(model, cfg, folder, [sample(60, 80)], text_input=True, repeats=1)
    model.roi_heads.set_vocabulary(OTHER)
    for size in ((171, 130), (40, 250)):
        image = torch.from_numpy(sample(*size, seed=3)).permute(2, 0, 1)
        inputs = (image, OTHER.embeddings, torch.tensor(OTHER.vocabulary.novel))
        expected = eager(model, image)
        assert len(expected[0]) == 20
        assert_equal(run_torchscript(folder, *inputs), expected, 1e-6)
        assert_equal(run_onnx(folder, *inputs), expected, 1e-4)


def test_what_is_written(tmp_path: Path) -> None:
    model, cfg = detector(tmp_path, "ensemble")
    folder = tmp_path / "exported"
    export_detector(model, cfg, folder, [sample(60, 80)], formats=["torchscript"], repeats=1)
    assert {file.name for file in folder.iterdir()} == {
        *("model.ts", "model.json", "text.safetensors")
    }
    about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    assert [item["name"] for item in about["inputs"]] == ["image", "text", "novel"]
    assert [item["type"] for item in about["inputs"]] == ["uint8", "float32", "bool"]
    assert [item["name"] for item in about["outputs"]] == ["boxes", "scores", "classes", "masks"]
    assert about["vocabulary"][2] == {"name": "class 2", "novel": True}
    assert about["image"] == {"channels": "BGR", "short_side": 96, "long_side": 1333}
    assert len(about["weights"]["sha256"]) == 64
    assert about["config"] == cfg.dump()
    text = TextEmbeddings.load(folder / "text.safetensors")
    assert torch.equal(text.embeddings, TEXT.embeddings)
    assert text.vocabulary == TEXT.vocabulary


def test_nothing_is_found_in_the_traced_image(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With fewer classes, which get larger probabilities, something is found."""
    pytest.importorskip("onnxruntime")
    many, one = (text_embeddings(k, temperature=1.0, seed=2) for k in (40, 1))
    threshold = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.2)
    model, cfg = detector(tmp_path, "text", *threshold, text=many)
    written = export_detector(model, cfg, tmp_path / "exported", [sample(60, 80)], repeats=1)
    assert {check.detections for item in written for check in item.checks} == {0}
    assert "not compared on any detection" in caplog.text
    image = torch.from_numpy(sample(96, 96)).permute(2, 0, 1)
    for run, tolerance in ((run_torchscript, 1e-6), (run_onnx, 1e-4)):
        model.roi_heads.set_vocabulary(one)
        expected = eager(model, image)
        assert len(expected[0])
        assert_equal(run(tmp_path / "exported", image, one.embeddings), expected, tolerance)
        none = run(tmp_path / "exported", image, many.embeddings)
        assert [tuple(value.shape) for value in none] == [(0, 4), (0,), (0,), (0, 1, 28, 28)]


def test_boxes_alone_where_there_are_no_masks(tmp_path: Path) -> None:
    model, cfg = detector(tmp_path, "text", "MODEL.MASK_ON", False)
    (item,) = export_detector(
        model, cfg, tmp_path / "exported", [sample(60, 80)], formats=["torchscript"], repeats=1
    )
    assert item.checks[0].masks == 0
    image = prepare_image(cfg, sample(60, 80))
    assert len(run_torchscript(tmp_path / "exported", image, TEXT.embeddings)) == 3


@pytest.mark.parametrize("change", ["score", "class", "box", "mask", "fewer", "none"])
def test_a_file_that_finds_something_else_is_not_kept(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: nn.Module, inputs: tuple[Tensor, ...], file: Path):  # type: ignore[no-untyped-def]
        file.write_bytes(b"a model")

        def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            boxes, scores, classes, masks = (value.clone() for value in eager(model, inputs[0]))
            scores[3] += 2e-4 * (change == "score")
            classes[3] += change == "class"
            boxes[3, 1] += 0.1 * (change == "box")
            masks[3] += 2e-4 * (change == "mask")
            kept = {"fewer": len(boxes) - 1, "none": 0}.get(change, len(boxes))
            return boxes[:kept], scores[:kept], classes[:kept], masks[:kept]

        return run

    monkeypatch.setitem(exporting._EXPORTERS, "torchscript", broken)
    model, cfg = detector(tmp_path, "text")
    folder = tmp_path / "exported"
    with pytest.raises(ValueError, match=r"the torchscript file finds .* nothing was written"):
        export_detector(model, cfg, folder, [sample(60, 80)], formats=["torchscript"])
    assert not folder.exists()


def test_detections_of_equal_scores_may_come_in_another_order() -> None:
    boxes, scores = torch.arange(12.0).reshape(3, 4), torch.tensor([0.9, 0.5, 0.5 - 1e-6])
    case = checks.Case("a", (), (boxes, scores, torch.tensor([0, 1, 2])))
    order = torch.tensor([0, 2, 1])
    check = checks.compare("onnx", case, tuple(value[order] for value in case.expected))
    assert (check.detections, check.boxes, check.scores) == (3, 0, 0)


def test_bad_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, cfg = detector(tmp_path, "text")
    (tmp_path / "file").write_text("here", encoding="utf-8")

    def refused(message: str, folder: str = "new", **kwargs: Any) -> None:
        with pytest.raises(ValueError, match=message):
            export_detector(model, cfg, tmp_path / folder, [sample(60, 80)], **kwargs)

    refused("expected formats of torchscript, onnx, got", formats=["tflite"])
    refused("expected formats", formats=[])
    refused("file is a file", "file")
    refused("a new or empty folder", ".")
    refused("at least 1 repeat", repeats=0)
    with pytest.raises(ValueError, match="expected at least one image"):
        export_detector(model, cfg, tmp_path / "new", [])
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        refused(r"not installed .*'\.\[export\]'", formats=["onnx"])
    with monkeypatch.context() as patch:

        def gpu_only(*_: object) -> None:
            raise NotImplementedError("Deformable Conv is not supported on CPUs!")

        patch.setattr(model.backbone, "forward", gpu_only)
        refused("runs on the CPU, where it is exported: Deformable Conv")
    model.train()
    refused("evaluation mode")
    model.eval()
    model.roi_heads.box_predictor.test_topk_per_image = -1
    refused("TEST.DETECTIONS_PER_IMAGE: -1")
    assert not (tmp_path / "new").exists()


def test_detectors_of_other_kinds(tmp_path: Path) -> None:
    precomputed = ("MODEL.LOAD_PROPOSALS", True)
    generator = ("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals")
    clip = ("MODEL.VILD.VARIANT", "text_clip")
    for changes in ((*precomputed, *generator), (*precomputed, *generator, *clip)):
        model, cfg = detector(tmp_path, "text", *changes)
        with pytest.raises(ValueError, match="finds its regions itself"):
            export_detector(model, cfg, tmp_path / "new", [sample(60, 80)])
    with pytest.raises(ValueError, match="expected a detector with ViLDROIHeads, got Linear"):
        export_detector(nn.Linear(1, 1), cfg, tmp_path / "new", [sample(60, 80)])
    model, cfg = detector(tmp_path, "text")
    model.roi_heads.__class__ = OfficialROIHeads  # selects detections differently
    with pytest.raises(ValueError, match="with OfficialROIHeads, which is not exported"):
        export_detector(model, cfg, tmp_path / "new", [sample(60, 80)])
    model, cfg = detector(tmp_path, "text")
    model.roi_heads.mask_head = nn.Identity()
    with pytest.raises(ValueError, match="a mask head of Mask R-CNN's kind"):
        export_detector(model, cfg, tmp_path / "new", [sample(60, 80)])


def test_the_image_is_prepared_as_the_predictor_does(tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path, "text", TEXT)
    image = prepare_image(cfg, sample(60, 80))
    assert image.shape == (3, 96, 128)
    assert image.dtype == torch.uint8
    plain = mapped_image(0, 0, side=96)["image"]  # already in the target size
    assert torch.equal(prepare_image(cfg, plain.permute(1, 2, 0).numpy()), plain.flip(0))
    cfg.INPUT.FORMAT = "RGB"
    assert torch.equal(prepare_image(cfg, plain.permute(1, 2, 0).numpy()), plain)


def test_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    """After a kill following the last file, the same command can be repeated."""
    model, cfg = detector(tmp_path, "text")
    for _ in range(2):
        export_detector(
            model, cfg, tmp_path / "out", [sample(60, 80)], formats=["torchscript"], repeats=1
        )
    found = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert found == ["model.json", "model.ts", "text.safetensors"]
