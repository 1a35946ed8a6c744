"""A region keeps its box, its score and its embedding through every augmentation.

The image shows one plain colour per region, and the region's embedding is that colour: after any
augmentation, the pixel in the middle of a box must equal its embedding.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, Instances, PolygonMasks
from detectron2.utils.env import seed_all_rng
from PIL import Image
from torch import Tensor

from vild.config import add_vild_config
from vild.data.dataset_mapper import ViLDDatasetMapper, transform_boxes
from vild.data.jitter import LargeScaleJitter
from vild.data.masks import to_rle

HEIGHT, WIDTH, SIDE = 200, 300, 20


class Record(NamedTuple):
    boxes: Tensor
    objectness: Tensor
    embeddings: Tensor


class Source:
    """A store of one image."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def __getitem__(self, image_id: int | str) -> Record:
        if image_id != 7:
            raise LookupError(image_id)
        return self.record

    def image_size(self, image_id: int | str) -> tuple[int, int]:
        return HEIGHT, WIDTH


@pytest.fixture
def source() -> Source:
    """Return 60 squares of a grid in shuffled order, with unsorted scores."""
    draw = np.random.default_rng(0)
    cells = [(x, y) for y in range(0, HEIGHT - 20, 30) for x in range(0, WIDTH - 20, 30)]
    order = draw.permutation(len(cells))
    boxes = torch.tensor(
        [(*cells[n], cells[n][0] + SIDE, cells[n][1] + SIDE) for n in order], dtype=torch.float32
    )
    # red encodes the row
    colours = torch.tensor(
        [(row * 4 + 2, 255 - row * 3, row % 7 * 30) for row in range(len(boxes))]
    )
    objectness = torch.from_numpy(draw.normal(size=len(boxes)).astype(np.float32))
    return Source(Record(boxes, objectness, colours.half()))


@pytest.fixture
def record(source: Source, tmp_path: Path) -> dict[str, Any]:
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for box, colour in zip(
        source.record.boxes.int().tolist(), source.record.embeddings, strict=True
    ):
        image[box[1] : box[3], box[0] : box[2]] = colour.numpy().astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "7.png")
    return {
        "file_name": str(tmp_path / "7.png"),
        "image_id": 7,
        "height": HEIGHT,
        "width": WIDTH,
        "annotations": [
            {
                "bbox": [30, 30, 50, 40],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": 3,
                "iscrowd": 0,
            }
        ],
    }


def mapper(source: Source | None, augmentations: list[Any], **changes: Any) -> ViLDDatasetMapper:
    return ViLDDatasetMapper(
        True, augmentations=augmentations, image_format="BGR", regions=source, **changes
    )


def rows_of(regions: Instances, source: Source) -> list[int]:
    """The rows of the store that regions are of, told by their boxes."""
    equal = (regions.original_boxes.tensor[:, None] == source.record.boxes).all(dim=2)
    assert (equal.sum(dim=1) == 1).all()
    return equal.int().argmax(dim=1).tolist()


AUGMENTATIONS = {
    "none": [],
    "flip": [T.RandomFlip(1.0)],
    "resize": [T.ResizeShortestEdge(131, 1000)],
    "crop": [T.RandomCrop("absolute", (120, 150))],
    "all": [
        T.RandomFlip(),
        T.ResizeShortestEdge((150, 300), 1000, "range"),
        T.RandomCrop("relative_range", (0.4, 0.4)),
        T.RandomFlip(horizontal=False, vertical=True),
    ],
    "lsj": [T.RandomFlip(), LargeScaleJitter(0.3, 2.0, 240, (124, 116, 104))],
}


@pytest.mark.parametrize("limit", [300, 12])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_box_shows_what_the_embedding_describes(
    source: Source, record: dict[str, Any], name: str, limit: int
) -> None:
    """Rows must not be sorted or dropped without their embeddings."""
    apply = mapper(source, AUGMENTATIONS[name], limit=limit)
    seen = 0
    for seed in range(8):
        seed_all_rng(seed)
        mapped = apply(record)
        regions = mapped["distill_regions"]
        assert regions.image_size == mapped["image"].shape[1:]
        image = mapped["image"].flip(0)  # BGR
        for n, row in enumerate(rows_of(regions, source)):
            x, y = regions.proposal_boxes[n].get_centers()[0].int().tolist()
            colour = regions.teacher_embeddings[n]
            # resizing rounds; a neighbour's red differs by at least 4 levels
            torch.testing.assert_close(image[:, y, x].float(), colour, rtol=0, atol=1.5)
            assert torch.equal(colour, source.record.embeddings[row].float())
            assert regions.objectness_logits[n] == source.record.objectness[row]
        assert len(regions) <= limit
        seen += len(regions)
    assert seen >= 40


def test_regions_that_are_mostly_cut_off_are_dropped(
    source: Source, record: dict[str, Any]
) -> None:
    """A clipped box must not keep the target of the whole object, nor a box outside the crop."""
    crop = T.CropTransform(10, 0, 85, HEIGHT)  # columns 10 to 95
    for minimum, expected in ((0.0, 4), (0.25, 4), (0.5, 3), (0.51, 2), (1.0, 2)):
        apply = mapper(source, [crop], min_visible=minimum)
        regions = apply(record)["distill_regions"]
        left = {float(box[0]) for box in regions.original_boxes.tensor}
        # half of the squares at 0 is left, and a quarter of those at 90
        assert left == set([30.0, 60.0, 0.0, 90.0][:expected])
        assert (regions.proposal_boxes.area() > 0).all()
        quarter = regions.original_boxes.tensor[:, 0] == 90
        assert (
            (regions.proposal_boxes.area() / regions.original_boxes.area())[quarter].eq(0.25).all()
        )


def test_boxes_without_area_or_outside_are_never_visible() -> None:
    boxes = torch.tensor([[5.0, 5, 5, 9], [-30, 0, -10, 5], [0, 0, 10, 10], [95, 95, 105, 105]])
    clipped, visible = transform_boxes(boxes, T.TransformList([]), (100, 100))
    assert visible.tolist() == [0, 0, 1, 0.25]
    assert clipped[3].tolist() == [95, 95, 100, 100]
    assert boxes[3].tolist() == [95, 95, 105, 105]
    clipped, visible = transform_boxes(torch.empty(0, 4), T.TransformList([]), (100, 100))
    assert (clipped.shape, visible.shape) == ((0, 4), (0,))


def test_an_image_without_regions(record: dict[str, Any]) -> None:
    empty = Source(Record(torch.empty(0, 4), torch.empty(0), torch.empty(0, 3).half()))
    regions = mapper(empty, [T.RandomFlip(1.0)])(record)["distill_regions"]
    assert len(regions) == 0
    assert regions.teacher_embeddings.shape == (0, 3)


def test_the_draw_follows_from_seed_image_and_draw_alone(
    source: Source, record: dict[str, Any]
) -> None:
    def rows(seed: int = 0, **more: Any) -> list[int]:
        seed_all_rng(None)  # whatever a worker did before
        apply = mapper(source, [], limit=10, seed=seed)
        return rows_of(apply({**record, **more})["distill_regions"], source)

    assert rows() == rows()
    assert rows() != rows(seed=1)
    assert rows() != rows(draw=1)
    assert rows(draw=1) == rows(draw=1)
    counts = np.bincount(np.concatenate([rows(draw=n) for n in range(200)]), minlength=60)
    assert counts.min() > 0  # every region is drawn at some point


def test_the_first_regions_of_the_store(source: Source, record: dict[str, Any]) -> None:
    """As in the official code, only the invisible ones of the first ``limit`` are dropped."""
    apply = mapper(source, [], limit=10, region_draw="first")
    regions = apply({**record, "draw": 3})["distill_regions"]
    assert rows_of(regions, source) == list(range(10))
    half = T.CropTransform(0, 0, WIDTH // 2, HEIGHT)
    apply = mapper(source, [half], limit=10, region_draw="first")
    left = [n for n in range(10) if source.record.boxes[n, 0] < WIDTH // 2]
    assert rows_of(apply(record)["distill_regions"], source) == left
    assert 0 < len(left) < 10


def test_the_online_teacher_gets_original_pixels(source: Source, record: dict[str, Any]) -> None:
    """Targets must not be computed from augmented pixels."""
    apply = mapper(source, [T.RandomFlip(1.0), T.Resize((77, 99))], online=True)
    mapped = apply(record)
    expected = np.asarray(Image.open(record["file_name"]))
    np.testing.assert_array_equal(mapped["original_image"].permute(1, 2, 0).numpy(), expected)
    regions = mapped["distill_regions"]
    assert not regions.has("teacher_embeddings")
    for row, box in zip(rows_of(regions, source), regions.original_boxes.tensor.int(), strict=True):
        colour = mapped["original_image"][:, box[1] + 5, box[0] + 5]
        assert torch.equal(colour.half(), source.record.embeddings[row])


def test_precomputed_proposals_are_detectron2s(source: Source, record: dict[str, Any]) -> None:
    augmentations = AUGMENTATIONS["all"]
    apply = mapper(None, augmentations, proposals=source, precomputed_proposal_topk=15)
    seed_all_rng(5)
    proposals = apply(record)["proposals"]

    seed_all_rng(5)
    image = detection_utils.read_image(record["file_name"], "BGR")
    augmented = T.AugInput(image)
    transforms = T.AugmentationList(augmentations)(augmented)
    expected = {
        "proposal_boxes": source.record.boxes.numpy(),
        "proposal_objectness_logits": source.record.objectness.numpy(),
        "proposal_bbox_mode": BoxMode.XYXY_ABS,
    }
    detection_utils.transform_proposals(
        expected, augmented.image.shape[:2], transforms, proposal_topk=15
    )
    expected = expected["proposals"]
    assert proposals.image_size == expected.image_size
    torch.testing.assert_close(proposals.proposal_boxes.tensor, expected.proposal_boxes.tensor)
    assert torch.equal(proposals.objectness_logits, expected.objectness_logits)


def test_without_regions_it_is_detectron2s_mapper(record: dict[str, Any]) -> None:
    cfg = get_cfg()
    add_vild_config(cfg)
    outputs = []
    for kind in (DatasetMapper, ViLDDatasetMapper):
        seed_all_rng(3)
        outputs.append(kind(cfg, True)(copy.deepcopy(record)))
    theirs, ours = outputs
    assert ours.keys() == theirs.keys()
    assert torch.equal(ours["image"], theirs["image"])
    assert torch.equal(ours["instances"].gt_boxes.tensor, theirs["instances"].gt_boxes.tensor)
    assert torch.equal(ours["instances"].gt_classes, theirs["instances"].gt_classes)
    testing = [
        kind(cfg, False)(copy.deepcopy(record)) for kind in (DatasetMapper, ViLDDatasetMapper)
    ]
    assert testing[0].keys() == testing[1].keys()
    assert torch.equal(testing[0]["image"], testing[1]["image"])


def test_jitter_follows_the_flip(record: dict[str, Any]) -> None:
    """Padding is the mean, in the order of INPUT.FORMAT, and not part of a mask."""
    cfg = get_cfg()
    add_vild_config(cfg)
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.MODEL.PIXEL_MEAN = [103.53, 116.28, 123.675]
    jitter = cfg.INPUT.LARGE_SCALE_JITTER
    jitter.ENABLED, jitter.MIN_SCALE, jitter.MAX_SCALE, jitter.SIZE = True, 0.5, 0.5, 64
    cfg.MODEL.MASK_ON = True
    whole = np.ones((HEIGHT, WIDTH), np.uint8, order="F")
    annotation = {**record["annotations"][0], "segmentation": pycocotools.mask.encode(whole)}
    apply = ViLDDatasetMapper(cfg, True)
    flip, jitter = apply.augmentations.augs
    assert (type(flip), type(jitter)) == (T.RandomFlip, LargeScaleJitter)
    for seed in range(4):
        seed_all_rng(seed)
        mapped = apply({**record, "annotations": [annotation]})
        image, masks = mapped["image"], mapped["instances"].gt_masks.tensor
        assert image.shape == (3, 64, 64)
        mean = torch.tensor([104, 116, 124])[:, None]
        assert (image[:, 21:].flatten(1) == mean).all()
        assert (image[:, :, 32:].flatten(1) == mean).all()
        assert masks[0, :21, :32].all()
        assert masks.sum() == 21 * 32


def test_jitter_of_polygons_needs_no_further_package(record: dict[str, Any]) -> None:
    """A cropped object keeps its polygon; one outside the square has no box and is dropped."""
    cfg = get_cfg()
    add_vild_config(cfg)
    jitter = cfg.INPUT.LARGE_SCALE_JITTER
    jitter.ENABLED, jitter.MIN_SCALE, jitter.MAX_SCALE, jitter.SIZE = True, 2.0, 2.0, 300
    cfg.MODEL.MASK_ON = True
    boxes = [[0, 0, WIDTH, HEIGHT], [0, 0, 20, 20]]
    polygons = [[[x, y, x + w, y, x + w, y + h, x, y + h]] for x, y, w, h in boxes]
    annotations = [
        {**record["annotations"][0], "bbox": box, "segmentation": polygon}
        for box, polygon in zip(boxes, polygons, strict=True)
    ]
    apply = ViLDDatasetMapper(cfg, True)
    counts = set()
    for seed in range(6):
        seed_all_rng(seed)
        instances = apply({**record, "annotations": annotations})["instances"]
        assert instances.gt_boxes.tensor[0].tolist() == [0, 0, 300, 300]
        assert len(instances.gt_masks) == len(instances)
        assert instances.gt_masks.crop_and_resize(instances.gt_boxes.tensor, 28)[0].all()
        counts.add(len(instances))
    assert counts == {1, 2}


SQUARE = [30.0, 30.0, 80.0, 30.0, 80.0, 70.0, 30.0, 70.0]


def with_masks(record: dict[str, Any], *masks: Any) -> dict[str, Any]:
    """Return the record with an object for each mask; None for no mask."""
    (plain,) = record["annotations"]
    own = [dict(plain) if m is None else {**plain, "segmentation": m} for m in masks]
    return {**record, "annotations": own}


def run_lengths(polygon: list[float]) -> dict[str, Any]:
    return to_rle([polygon], HEIGHT, WIDTH).to_dict()


@pytest.mark.parametrize("augmentation", ["none", "flip", "resize", "lsj"])
def test_objects_with_and_without_masks(augmentation: str, record: dict[str, Any]) -> None:
    given = with_masks(record, [SQUARE], None, run_lengths(SQUARE))
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002  (Detectron2 draws from it)
    found = mapper(None, AUGMENTATIONS[augmentation], use_instance_mask=True)(given)["instances"]
    assert found.gt_has_mask.tolist() == [True, False, True]
    assert len(found.gt_masks) == 3
    boxes = found.gt_boxes.tensor
    assert torch.equal(boxes[0], boxes[1])
    # polygon and run lengths of the same object give the same target, except at edge pixels
    polygon, lengths = (
        found.gt_masks[row : row + 1].crop_and_resize(boxes[row : row + 1], 14) for row in (0, 2)
    )
    assert (polygon != lengths).float().mean() < 0.1
    assert polygon.float().mean() > 0.9


def test_polygons_stay_polygons_where_no_run_lengths_are(record: dict[str, Any]) -> None:
    found = mapper(None, [], use_instance_mask=True)(with_masks(record, [SQUARE], None))
    assert isinstance(found["instances"].gt_masks, PolygonMasks)
    found = mapper(None, [], use_instance_mask=True)(with_masks(record, run_lengths(SQUARE)))
    assert isinstance(found["instances"].gt_masks, BitMasks)


def test_a_polygon_without_pixels_keeps_its_box(record: dict[str, Any]) -> None:
    line = [30.0, 30.0, 30.0, 70.0, 30.0, 50.0]
    given = with_masks(record, [line], run_lengths(SQUARE))
    found = mapper(None, [], use_instance_mask=True)(given)["instances"]
    assert found.gt_has_mask.tolist() == [False, True]


def test_without_masks_in_the_model_there_are_none(record: dict[str, Any]) -> None:
    found = mapper(None, [])(with_masks(record, [SQUARE], None, run_lengths(SQUARE)))["instances"]
    assert set(found.get_fields()) == {"gt_boxes", "gt_classes"}
    assert len(found) == 3


def test_one_class_for_all(record: dict[str, Any]) -> None:
    cfg = get_cfg()
    add_vild_config(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    assert ViLDDatasetMapper(cfg, True)(record)["instances"].gt_classes.tolist() == [0]
    assert record["annotations"][0]["category_id"] == 3


def test_a_missing_image_is_an_error(source: Source, record: dict[str, Any]) -> None:
    with pytest.raises(LookupError):
        mapper(source, [])({**record, "image_id": 8})


def test_a_store_of_another_image_is_refused(source: Source, record: dict[str, Any]) -> None:
    Image.new("RGB", (90, 80)).save(record["file_name"])
    changed = {**record, "width": 90, "height": 80}
    with pytest.raises(ValueError, match=r"80 x 90 pixels, .* is of 200 x 300"):
        mapper(source, [])(changed)


def test_bad_arguments(source: Source) -> None:
    with pytest.raises(ValueError, match="at least one region"):
        mapper(source, [], limit=0)
    with pytest.raises(ValueError, match="visible fraction"):
        mapper(source, [], min_visible=1.5)
    with pytest.raises(ValueError, match=r"DRAW to be one of \('uniform', 'first'\), got 'best'"):
        mapper(source, [], region_draw="best")
    with pytest.raises(ValueError, match="LOAD_PROPOSALS"):
        mapper(None, [], proposals=source)
