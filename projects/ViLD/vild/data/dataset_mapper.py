"""Map dataset records to model inputs, including the regions to distil from.

Row identity: a region's box, objectness and embedding are rows of one `Instances` from here to the
loss, and nothing sorts or drops one without the others.

Shapes: R regions, D embedding. Boxes are xyxy in pixels.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances, PolygonMasks
from torch import Tensor

from vild.data.augmentations import for_any_shape, visible_boxes
from vild.data.images import read_image
from vild.data.jitter import LargeScaleJitter
from vild.data.masks import decode_segmentation

SOURCES = ("store", "online")
DRAWS = ("uniform", "first")


class RegionRecord(Protocol):
    """Stored regions of one image; ``embeddings`` is missing if the teacher runs online."""

    boxes: Tensor
    objectness: Tensor


class RegionSource(Protocol):
    """A store that maps image ids to records and raises for an unknown id."""

    def __getitem__(self, image_id: int | str) -> RegionRecord:
        """Return the record of an image."""

    def image_size(self, image_id: int | str) -> tuple[int, int]:
        """Return (height, width) of the image that the record was made from."""


class ViLDDatasetMapper(DatasetMapper):
    """Detectron2's mapper plus the regions that distillation needs.

    In training, the mapped dictionary has these fields in addition to Detectron2's. With
    ``regions``:

    - ``distill_regions``: Instances of up to ``limit`` rows, in the order of the store:
      ``proposal_boxes`` in the augmented image, ``objectness_logits``, ``original_boxes`` (in the
      original image) and, if the store has them, ``teacher_embeddings`` (R, D) float32;
    - ``original_image``: (3, H, W) uint8 RGB, if the teacher runs online: it crops the original
      pixels, whatever the augmentation.

    With ``proposals``: ``proposals``, Detectron2's field for precomputed proposals, with
    ``teacher_embeddings`` (R, D) float32 if the store has them. With ``online_proposals`` they have
    ``original_boxes`` instead, and ``original_image`` is present.

    Args:
        is_train: training or inference.
        regions: store of the regions to distil from, or None.
        online: whether the teacher computes the embeddings during training.
        limit: maximum number of regions per image.
        region_draw: how to choose among more than ``limit`` regions: ``uniform`` samples the
            visible ones; ``first`` takes the store's first ``limit`` rows and then drops the
            invisible ones, as the official code does.
        min_visible: minimum fraction of a region that must remain after augmentation. Other regions
            are not distilled: their embeddings describe content that is no longer in the image.
        proposals: store of precomputed proposals that replace the RPN, or None.
        online_proposals: whether the teacher computes the embeddings of the proposals.
        seed: seed for choosing regions. The choice depends on it, on the image and on the record's
            entry ``draw`` (how often the image was drawn before; 0 if missing), not on the worker.
        class_agnostic: whether all objects are of class 0.
        **kwargs: arguments of Detectron2's mapper.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        regions: RegionSource | None = None,
        online: bool = False,
        limit: int = 300,
        region_draw: str = "uniform",
        min_visible: float = 0.5,
        proposals: RegionSource | None = None,
        online_proposals: bool = False,
        seed: int = 0,
        class_agnostic: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(is_train, **kwargs)
        if limit < 1 or not 0 <= min_visible <= 1:
            raise ValueError(
                "expected at least one region an image and a visible fraction in [0, 1], got "
                f"{limit} and {min_visible}"
            )
        if region_draw not in DRAWS:
            raise ValueError(
                f"expected MODEL.VILD.DISTILL.DRAW to be one of {DRAWS}, got {region_draw!r}"
            )
        self.regions, self.online, self.limit = regions, online, limit
        self.region_draw = region_draw
        self.min_visible, self.proposals, self.seed = min_visible, proposals, seed
        self.class_agnostic, self.online_proposals = class_agnostic, online_proposals
        if proposals is not None and self.proposal_topk is None:
            raise ValueError("precomputed proposals need MODEL.LOAD_PROPOSALS: True")

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        is_train: bool = True,
        *,
        regions: RegionSource | None = None,
        proposals: RegionSource | None = None,
        online_proposals: bool = False,
    ) -> dict[str, Any]:
        """Return the constructor's arguments; the caller opens the stores."""
        distill = cfg.MODEL.VILD.DISTILL
        arguments = super().from_config(cfg, is_train)
        arguments["augmentations"] = for_any_shape(arguments["augmentations"])
        jitter = cfg.INPUT.LARGE_SCALE_JITTER
        if is_train and jitter.ENABLED:
            if cfg.INPUT.CROP.ENABLED:
                raise ValueError(
                    "expected INPUT.CROP.ENABLED: False with INPUT.LARGE_SCALE_JITTER.ENABLED: "
                    "True, which crops images itself, got True"
                )
            # As in the official code: flip first, and pad after normalising, that is with the mean.
            flips = [a for a in arguments["augmentations"] if isinstance(a, T.RandomFlip)]
            scales = jitter.MIN_SCALE, jitter.MAX_SCALE
            resize = LargeScaleJitter(*scales, jitter.SIZE, cfg.MODEL.PIXEL_MEAN)
            arguments["augmentations"] = [*flips, resize]
        return {
            **arguments,
            "regions": regions,
            "online": distill.SOURCE == "online",
            "limit": distill.REGIONS,
            "region_draw": distill.DRAW,
            "min_visible": distill.MIN_VISIBLE,
            "proposals": proposals,
            "online_proposals": online_proposals,
            "seed": max(cfg.SEED, 0),
            "class_agnostic": cfg.MODEL.ROI_HEADS.NUM_CLASSES == 1,
        }

    def __call__(self, dataset_dict: Mapping[str, Any]) -> dict[str, Any]:
        """Map one record.

        Args:
            dataset_dict: record in Detectron2's format; it is not modified.

        Raises:
            UnreadableImageError: the image cannot be read.
            MissingImageError: a store has no record of the image.
        """
        mapped = copy.deepcopy(dict(dataset_dict))
        original = read_image(mapped["file_name"])
        detection_utils.check_image_size(mapped, original)
        ordered = original[:, :, ::-1] if self.image_format == "BGR" else original
        augmented = T.AugInput(np.ascontiguousarray(ordered))
        transforms = self.augmentations(augmented)
        shape = augmented.image.shape[:2]
        pixels = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
        mapped["image"] = torch.as_tensor(pixels)
        if self.proposals is not None:
            record = _record(self.proposals, mapped, original)
            mapped["proposals"] = self._proposals(record, transforms, shape)
            if self.online_proposals:
                mapped["original_image"] = _channels_first(original)
        if not self.is_train:
            mapped.pop("annotations", None)
            return mapped
        if self.regions is not None:
            record = _record(self.regions, mapped, original)
            mapped["distill_regions"] = self._distilled(record, mapped, transforms, shape)
            if self.online:
                mapped["original_image"] = _channels_first(original)
        if "annotations" in mapped:
            if self.class_agnostic:
                for annotation in mapped["annotations"]:
                    annotation["category_id"] = 0
            self._transform_annotations(mapped, transforms, shape)
        return mapped

    def _transform_annotations(
        self,
        dataset_dict: dict[str, Any],
        transforms: T.TransformList,
        image_shape: tuple[int, int],
    ) -> None:
        """Transform annotations with polygons, with run lengths and without masks.

        An object without a mask gets its box as a rectangle in ``gt_masks``, and False in
        ``gt_has_mask``; :class:`vild.modeling.OptionalMaskROIHeads` excludes it from the mask loss.
        """
        own = [a for a in dataset_dict["annotations"] if not a.get("iscrowd")]
        kind = self.instance_mask_format
        if any(isinstance(annotation.get("segmentation"), dict) for annotation in own):
            kind = "bitmask"
        size = dataset_dict["height"], dataset_dict["width"]
        has_mask = torch.zeros(len(own), dtype=torch.bool)
        for row, annotation in enumerate(own):
            mask = annotation.get("segmentation")
            if not self.use_instance_mask:
                annotation.pop("segmentation", None)
            elif not mask or (kind == "bitmask" and not decode_segmentation(mask, *size).any()):
                annotation["segmentation"] = [_rectangle(annotation)]
            else:
                has_mask[row] = True
            if not self.use_keypoint:
                annotation.pop("keypoints", None)
        moved = [
            detection_utils.transform_instance_annotations(
                annotation,
                transforms,
                image_shape,
                keypoint_hflip_indices=self.keypoint_hflip_indices,
            )
            for annotation in own
        ]
        instances = detection_utils.annotations_to_instances(moved, image_shape, mask_format=kind)
        if self.use_instance_mask:
            instances.gt_has_mask = has_mask
        if self.recompute_boxes and len(own):
            masks = instances.gt_masks
            instances.gt_boxes = (
                visible_boxes(masks, image_shape)
                if isinstance(masks, PolygonMasks)
                else masks.get_bounding_boxes()
            )
        del dataset_dict["annotations"]
        dataset_dict["instances"] = detection_utils.filter_empty_instances(instances)

    def _proposals(
        self, record: RegionRecord, transforms: T.TransformList, shape: tuple[int, int]
    ) -> Instances:
        boxes, visible = transform_boxes(record.boxes, transforms, shape)
        proposals = Instances(shape)
        proposals.proposal_boxes = Boxes(boxes)
        proposals.objectness_logits = record.objectness
        if self.online_proposals:
            proposals.original_boxes = Boxes(record.boxes)
        elif hasattr(record, "embeddings"):
            proposals.teacher_embeddings = record.embeddings.float()
        return proposals[visible > 0][: self.proposal_topk]

    def _distilled(
        self,
        record: RegionRecord,
        mapped: Mapping[str, Any],
        transforms: T.TransformList,
        shape: tuple[int, int],
    ) -> Instances:
        boxes, visible = transform_boxes(record.boxes, transforms, shape)
        count = self.limit if self.region_draw == "first" else len(boxes)
        rows = torch.nonzero((visible > 0) & (visible >= self.min_visible))[:, 0]
        rows = rows[rows < count]
        if len(rows) > self.limit:
            draw = np.random.default_rng(
                [self.seed, zlib.crc32(str(mapped["image_id"]).encode()), mapped.get("draw", 0)]
            )
            chosen = draw.choice(len(rows), self.limit, replace=False)
            rows = rows[torch.from_numpy(np.sort(chosen))]
        regions = Instances(shape)
        regions.proposal_boxes = Boxes(boxes[rows])
        regions.objectness_logits = record.objectness[rows]
        regions.original_boxes = Boxes(record.boxes[rows])
        if not self.online:
            regions.teacher_embeddings = record.embeddings[rows].float()  # type: ignore[attr-defined]
        return regions


def _rectangle(annotation: Mapping[str, Any]) -> list[float]:
    x1, y1, x2, y2 = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def _channels_first(image: np.ndarray) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _record(source: RegionSource, mapped: Mapping[str, Any], image: np.ndarray) -> RegionRecord:
    """Return the store's record of an image; raise if it was made from another image size."""
    image_id, size = mapped["image_id"], image.shape[:2]
    record, expected = source[image_id], source.image_size(image_id)
    if size != expected:
        raise ValueError(
            f"{mapped['file_name']} is {size[0]} x {size[1]} pixels, the store's record of image "
            f"{image_id} is of {expected[0]} x {expected[1]}: the image was changed, or "
            "the store is of another dataset"
        )
    return record


def transform_boxes(
    boxes: Tensor, transforms: T.TransformList, shape: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Transform boxes to the augmented image.

    Args:
        boxes: (R, 4) in the original image.
        transforms: the transforms applied to the image.
        shape: (height, width) of the augmented image.

    Returns:
        (R, 4) float32 clipped boxes, and (R,) float32 remaining fractions of their areas: 0 for
        boxes that are outside the image or have no area.
    """
    if len(boxes) == 0:
        return boxes.reshape(0, 4).float(), torch.zeros(0)
    whole = torch.as_tensor(transforms.apply_box(boxes.numpy().astype(np.float64)))
    clipped = Boxes(whole.clone())
    clipped.clip(shape)
    area = Boxes(whole).area()
    visible = torch.where(area > 0, clipped.area() / area.clamp(min=1e-12), torch.zeros_like(area))
    return clipped.tensor.float(), visible.float()
