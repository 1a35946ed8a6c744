"""A detector's proposals, in the coordinates of the original image."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from PIL import Image
from torch import nn
from torchvision.ops import box_iou

from vild.config import add_vild_config
from vild.data.augmentations import ResizeShortestEdge
from vild.proposals import ProposalExtractor, ProposalStore, extract_proposals
from vild.proposals.extraction import PreparedImage
from vild.proposals.store import FIELDS, KIND, Proposals
from vild.storage import SplitImages, StoreWriter, store_spec


@pytest.fixture(scope="module")
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_vild_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.NORM = "GN"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [128], [256]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 1, 32
    cfg.INPUT.MIN_SIZE_TEST = 96
    cfg.SEED = 2
    return cfg


def keep(model: nn.Module) -> None:
    """Keep the random weights."""


def sample(height: int = 96, width: int = 128) -> np.ndarray:
    draw = np.random.default_rng(0)
    small = Image.fromarray(draw.integers(0, 255, (12, 16, 3), np.uint8))
    return np.array(small.resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("source", ["rpn", "detector"])
def test_proposals_are_sorted_apart_and_inside(cfg: CfgNode, source: str) -> None:
    extractor = ProposalExtractor(cfg, keep, source=source, nms_threshold=0.6, limit=50)
    boxes, objectness = extractor(sample())
    assert 0 < len(boxes) <= 50
    assert boxes.dtype == objectness.dtype == torch.float32
    assert (objectness.diff() <= 0).all()
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([128.0, 96, 128, 96])).all()
    assert float(box_iou(boxes, boxes).fill_diagonal_(0).max()) <= 0.6
    again = ProposalExtractor(cfg, keep, source=source, nms_threshold=0.6, limit=50)(sample())
    assert torch.equal(again.boxes, boxes)


def test_boxes_are_in_original_pixels(cfg: CfgNode) -> None:
    extractor = ProposalExtractor(cfg, keep, limit=20)
    once = extractor(sample())
    large = np.array(Image.fromarray(sample()).resize((384, 288), Image.Resampling.BICUBIC))
    # the network sees the large image at the size of the small one, except for resampling
    thrice = extractor(large).boxes
    assert float(thrice.max()) > 128
    overlap = box_iou(thrice[:5] / 3, once.boxes).amax(dim=1)
    assert float(overlap.min()) > 0.8


def test_the_threshold_keeps_more_where_it_is_higher(cfg: CfgNode) -> None:
    counts = [
        len(ProposalExtractor(cfg, keep, nms_threshold=t, limit=1000)(sample()).boxes)
        for t in (0.3, 0.6, 0.9)
    ]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_the_configurations_channel_order_is_kept(cfg: CfgNode) -> None:
    rgb = cfg.clone()
    rgb.INPUT.FORMAT = "RGB"
    mirrored = np.ascontiguousarray(sample()[:, :, ::-1])
    one = ProposalExtractor(cfg, keep, limit=20)(sample())
    other = ProposalExtractor(rgb, keep, limit=20)(mirrored)
    assert torch.equal(one.boxes, other.boxes)


def test_the_description_names_what_decides(cfg: CfgNode) -> None:
    described = ProposalExtractor(cfg, keep).describe()
    assert ProposalExtractor(cfg, keep).describe() == described
    elsewhere = cfg.clone()
    elsewhere.MODEL.WEIGHTS, elsewhere.OUTPUT_DIR = "other/path", "other"
    assert ProposalExtractor(elsewhere, keep).describe() == described
    other = cfg.clone()
    other.SEED = 3
    assert (
        ProposalExtractor(other, keep).describe()["weights_sha256"] != described["weights_sha256"]
    )
    larger = cfg.clone()
    larger.INPUT.MIN_SIZE_TEST = 128
    assert ProposalExtractor(larger, keep).describe()["config_sha256"] != described["config_sha256"]
    assert ProposalExtractor(cfg, keep, limit=7).describe()["limit"] == 7
    assert "precision" not in described  # fp32, as in stores from before the option
    half = ProposalExtractor(cfg, keep, precision="bf16").describe()
    assert half == {**described, "precision": "bf16"}


@pytest.mark.parametrize("source", ["rpn", "detector"])
def test_half_precision_proposes_nearly_the_same(cfg: CfgNode, source: str) -> None:
    full, half = (
        ProposalExtractor(cfg, keep, source=source, limit=50, precision=name)(sample())
        for name in ("fp32", "bf16")
    )
    assert half.boxes.dtype == half.objectness.dtype == torch.float32
    assert not torch.equal(half.objectness, full.objectness)
    overlap = box_iou(full.boxes, half.boxes).amax(dim=1)
    assert (overlap > 0.9).float().mean() > 0.8


def test_what_cannot_work_is_refused(cfg: CfgNode) -> None:
    with pytest.raises(ValueError, match=r"expected a precision of .*, got 'fp8'"):
        ProposalExtractor(cfg, keep, precision="fp8")
    with pytest.raises(ValueError, match="expected a source"):
        ProposalExtractor(cfg, keep, source="guess")
    with pytest.raises(ValueError, match="NMS threshold"):
        ProposalExtractor(cfg, keep, nms_threshold=0.0)
    many = cfg.clone()
    many.MODEL.ROI_HEADS.NUM_CLASSES = 2
    with pytest.raises(ValueError, match="class-agnostic detector"):
        ProposalExtractor(many, keep, source="detector")
    resizing = cfg.clone()
    resizing.MODEL.META_ARCHITECTURE = "OfficialViLDRCNN"
    with pytest.raises(ValueError, match="which resizes them itself"):
        ProposalExtractor(resizing, keep)


@pytest.mark.parametrize("channels", ["BGR", "RGB"])
def test_prepared_images_equal_detectron2s_input(cfg: CfgNode, channels: str) -> None:
    """Bit for bit the input of Detectron2's predictor, but uint8."""
    cfg = cfg.clone()
    cfg.INPUT.FORMAT = channels
    extractor = ProposalExtractor(cfg, keep, limit=20)
    image = sample(50, 77)
    prepared = extractor.prepare(image)
    assert prepared.pixels.dtype == torch.uint8
    ordered = image[:, :, ::-1] if channels == "BGR" else image
    resized = ResizeShortestEdge(96, 1333).get_transform(ordered).apply_image(ordered)
    expected = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
    assert torch.equal(prepared.pixels.float(), expected)
    of_floats = extractor.propose(PreparedImage(expected, 50, 77))
    assert all(map(torch.equal, extractor(image), of_floats))


def write_store(
    folder: Path, extractor: Any, files: dict[int, Path], threads: int = 2
) -> ProposalStore:
    spec = store_spec(KIND, SplitImages("images", dict(files), ""), FIELDS, {}, 4)
    writer = StoreWriter(folder, spec, list(files))
    extract_proposals(extractor, writer, files, threads=threads, progress=False)
    writer.finish({})
    return ProposalStore(folder)


@pytest.fixture
def files(tmp_path: Path) -> dict[int, Path]:
    result = {number: tmp_path / f"{number}.png" for number in range(6)}
    for number, path in result.items():
        Image.fromarray(sample(40 + 5 * number, 90 - 8 * number)).save(path)
    return result


def test_stores_do_not_depend_on_threads(
    cfg: CfgNode, files: dict[int, Path], tmp_path: Path
) -> None:
    files[3].write_bytes(b"damaged")
    extractor = ProposalExtractor(cfg, keep, limit=20)
    stores = [write_store(tmp_path / f"{n}", extractor, files, n) for n in (1, 3)]
    assert list(stores[0].failed) == [3]
    assert len({store.digest for store in stores}) == 1
    for image, found in stores[0].items():
        alone = extractor(np.array(Image.open(files[int(image)])))
        assert all(map(torch.equal, found, alone))


class Recorder:
    """Stand-in for an extractor; each image waits until the next of its shard is prepared."""

    def __init__(self, images: int, per_shard: int = 4) -> None:
        self.prepared = [threading.Event() for _ in range(images)]
        self.threads: set[int] = set()
        self.next = {n: n + 1 for n in range(images - 1) if (n + 1) % per_shard}
        self.at = 0

    def prepare(self, image: np.ndarray) -> PreparedImage:
        self.threads.add(threading.get_ident())
        self.prepared[(image.shape[0] - 40) // 5].set()
        return PreparedImage(torch.zeros(3, 1, 1, dtype=torch.uint8), *image.shape[:2])

    def propose(self, image: PreparedImage) -> Proposals:
        assert self.prepared[self.next.get(self.at, self.at)].wait(10), "nothing is read ahead"
        self.at += 1
        return Proposals(torch.ones(1, 4), torch.ones(1))


def test_images_are_prepared_while_the_detector_works(
    files: dict[int, Path], tmp_path: Path
) -> None:
    extractor = Recorder(len(files))
    assert len(write_store(tmp_path / "store", extractor, files)) == len(files)
    assert threading.get_ident() not in extractor.threads


def test_errors_of_resizing(
    files: dict[int, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Running out of memory fails one image; other errors stop, and the log names the image."""
    error: Exception = MemoryError()

    class Failing(Recorder):
        def prepare(self, image: np.ndarray) -> PreparedImage:
            prepared = super().prepare(image)
            if image.shape[0] == 50:
                raise error
            return prepared

    store = write_store(tmp_path / "store", Failing(len(files)), files)
    assert store.failed == {2: f"not enough memory to read {files[2]}"}
    assert len(store) == len(files) - 1
    error = KeyError("bug")
    with pytest.raises(KeyError):
        write_store(tmp_path / "other", Failing(len(files)), files)
    assert f"stopped at image 2 ({files[2]})" in caplog.text
