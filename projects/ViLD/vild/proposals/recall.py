"""Average recall of class-agnostic proposals, separately for base and novel classes.

Recall is the fraction of objects that a proposal covers, counted as in Detectron2's
``_evaluate_box_proposals`` (evaluation/coco_evaluation.py): among the best ``limit`` proposals of
an image, objects and proposals are matched greedily one to one, highest IoU first; recall is the
fraction of objects whose match reaches a threshold, averaged over the IoU thresholds
0.5, 0.55, … 0.95. Crowds are ignored. ViLD reports this for novel classes, whose labels the
proposal network never saw (paper, section 4.1).

Legend: R proposals, G objects of one image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import Boxes, BoxMode, pairwise_iou

GROUPS = ("base", "novel", "all")
# ranges of the annotation's area in square pixels, both ends included, as in Detectron2
SIZES = {
    "all": (0.0, 1e5**2),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e5**2),
}
# computed as in Detectron2: some values differ from the decimal fractions in the last bit
_THRESHOLDS = torch.arange(0.5, 0.95 + 1e-5, 0.05, dtype=torch.float32).numpy()


class RecallMeter:
    """Accumulates proposals and objects image by image and computes average recalls.

    Example:
        >>> meter = RecallMeter(novel=[False, True], limits=(100,))
        >>> cat = {"bbox": [0, 0, 10, 10], "bbox_mode": 1, "category_id": 1, "area": 100}
        >>> meter.add(np.array([[0, 0, 10, 8]]), np.array([0.9]), [cat])
        >>> meter.summary()["AR@100/novel"]  # IoU 0.8: seven of the ten thresholds
        70.0

    Args:
        novel: novel flag for each row of the classifier; see :func:`vild.data.novel_flags`.
        limits: numbers of best proposals per image to evaluate.

    Raises:
        ValueError: no class, no limit, or a limit that is below 1 or repeated.
    """

    def __init__(self, novel: Sequence[bool], limits: Sequence[int] = (100, 300, 1000)) -> None:
        self._novel = np.asarray(novel, dtype=bool)
        if self._novel.ndim != 1 or not len(self._novel):
            raise ValueError(
                f"expected one novel flag per class, got an array of shape {self._novel.shape}"
            )
        if not limits or min(limits) < 1 or len(set(limits)) < len(limits):
            raise ValueError(
                f"expected different numbers of proposals as limits, each at least 1, got {limits}"
            )
        self._limits = tuple(limits)
        self._objects = np.zeros((len(GROUPS), len(SIZES)), dtype=np.int64)
        # number of matches that reach each threshold
        self._found = np.zeros((*self._objects.shape, len(limits), len(_THRESHOLDS)), np.int64)

    def add(
        self,
        boxes: np.ndarray,
        objectness: np.ndarray,
        ground_truth: Sequence[Mapping[str, Any]],
    ) -> None:
        """Add one image.

        Detectron2 ignores the objects of an image without proposals; here they count as missed.

        Args:
            boxes: (R, 4) XYXY in pixels of the original image, as the annotations; R may be 0.
            objectness: (R,) higher is better. Ties keep their order.
            ground_truth: annotations of the image in Detectron2's format: ``bbox``,
                ``bbox_mode`` (XYWH_ABS or XYXY_ABS), ``category_id`` the row, and optionally
                ``iscrowd``, ``area`` and ``segmentation``. The size of an object is its ``area``,
                else that of its ``segmentation`` (polygons or RLE), else that of its box. COCO
                and LVIS store the area of polygons, which differs slightly from the area of their
                pixels, which is computed here.

        Raises:
            ValueError: wrong shapes, non-finite values, or a class without a novel flag. The image
                is then not counted.
        """
        boxes, objectness = _checked_proposals(boxes, objectness)
        objects = [item for item in ground_truth if not item.get("iscrowd", 0)]
        if not objects:
            return
        novel = self._novel_objects(objects)
        gt_boxes = np.array([_xyxy(item) for item in objects], dtype=np.float32)
        # float32, as in Detectron2: it affects objects at the boundary between two sizes
        areas = np.array([_area(item) for item in objects], dtype=np.float32)

        members = np.stack([~novel, novel, np.ones_like(novel)])  # (groups, G)
        in_size = np.stack([(areas >= low) & (areas <= high) for low, high in SIZES.values()])
        kinds = members[:, None] & in_size[None]  # (groups, sizes, G)
        self._objects += kinds.sum(axis=2)

        order = np.argsort(-objectness, kind="stable")[: max(self._limits)]
        pairs = _candidate_pairs(gt_boxes, boxes[order])
        for k, limit in enumerate(self._limits):
            eligible = [pair for pair in pairs if pair[1] < limit]
            for kind in np.ndindex(self._objects.shape):
                if eligible and kinds[kind].any():
                    overlaps = _matched(eligible, kinds[kind].tolist())
                    self._found[(*kind, k)] += (overlaps[:, None] >= _THRESHOLDS).sum(axis=0)

    def summary(self) -> dict[str, float | None]:
        """Return average recalls in percent; None if there are no such objects.

        Returns:
            for every limit and each of ``base``, ``novel`` and ``all``: ``AR@100/novel`` over all
            sizes, then ``AR@100/novel/small``, ``…/medium`` and ``…/large``.
        """
        result: dict[str, float | None] = {}
        for k, limit in enumerate(self._limits):
            for g, group in enumerate(GROUPS):
                for s, size in enumerate(SIZES):
                    objects, found = int(self._objects[g, s]), self._found[g, s, k]
                    key = f"AR@{limit}/{group}" + ("" if size == "all" else f"/{size}")
                    result[key] = 100 * float(found.mean()) / objects if objects else None
        return result

    def table(self) -> str:
        """Return the summary as a table for the command line, one row per group of classes."""
        summary = self.summary()
        head = ["classes", "size", "objects", *(f"AR@{limit}" for limit in self._limits)]
        rows = [head]
        for g, group in enumerate(GROUPS):
            for s, size in enumerate(SIZES):
                suffix = "" if size == "all" else f"/{size}"
                recalls = [summary[f"{name}/{group}{suffix}"] for name in head[3:]]
                shown = ["-" if recall is None else f"{recall:.1f}" for recall in recalls]
                rows.append([group, size, str(self._objects[g, s]), *shown])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        )

    def _novel_objects(self, objects: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Return which objects are of a novel class, (G,) bool."""
        classes = np.array([item["category_id"] for item in objects], dtype=np.int64)
        odd = classes[(classes < 0) | (classes >= len(self._novel))]
        if len(odd):
            raise ValueError(
                f"expected classes from 0 to {len(self._novel) - 1} for {len(self._novel)} novel "
                f"flags, got the class {odd[0]}. Is the ground truth of another dataset, or does "
                "it have the ids of the json?"
            )
        return self._novel[classes]


def _checked_proposals(boxes: np.ndarray, objectness: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes as float32 and objectness as float64; raise ValueError if they do not match."""
    boxes, objectness = np.asarray(boxes, np.float32), np.asarray(objectness, np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or objectness.shape != boxes.shape[:1]:
        raise ValueError(
            "expected boxes of shape (R, 4) and one objectness each, (R,), got "
            f"{boxes.shape} and {objectness.shape}"
        )
    if not (np.isfinite(boxes).all() and np.isfinite(objectness).all()):
        raise ValueError(
            "expected finite boxes and objectness, got NaN or infinity. Did the proposal network "
            "diverge?"
        )
    return boxes, objectness


def _xyxy(item: Mapping[str, Any]) -> list[float]:
    box = [float(value) for value in item["bbox"]]
    return BoxMode.convert(box, BoxMode(item["bbox_mode"]), BoxMode.XYXY_ABS)


def _area(item: Mapping[str, Any]) -> float:
    """Return the area of an object: of its annotation, else of its mask, else of its box."""
    if item.get("area") is not None:
        return float(item["area"])
    outline = item.get("segmentation")
    if isinstance(outline, Mapping):
        if isinstance(outline["counts"], list):  # uncompressed
            outline = mask_util.frPyObjects(outline, *outline["size"])
        return float(mask_util.area(outline))
    if outline is not None and len(outline):
        # rasterise on a canvas just large enough: the image size is unknown here
        points = np.concatenate([np.asarray(polygon).reshape(-1, 2) for polygon in outline])
        width, height = (max(1, math.ceil(end)) for end in points.max(axis=0))
        parts = mask_util.frPyObjects([list(polygon) for polygon in outline], height, width)
        return float(mask_util.area(mask_util.merge(parts)))
    x1, y1, x2, y2 = _xyxy(item)
    return (x2 - x1) * (y2 - y1)


def _candidate_pairs(gt_boxes: np.ndarray, boxes: np.ndarray) -> list[tuple[int, int, float]]:
    """Return pairs (object, proposal, IoU) that reach the lowest threshold, best first.

    Pairs below it cannot affect the matching above it. Ties are ordered by object, then by
    proposal, as with Detectron2's ``max``.
    """
    iou = pairwise_iou(Boxes(torch.from_numpy(gt_boxes)), Boxes(torch.from_numpy(boxes))).numpy()
    owners, proposals = np.nonzero(iou >= _THRESHOLDS[0])
    values = iou[owners, proposals]
    order = np.argsort(-values, kind="stable")
    ranked = (owners[order].tolist(), proposals[order].tolist(), values[order].tolist())
    return list(zip(*ranked, strict=True))


def _matched(pairs: Sequence[tuple[int, int, float]], members: Sequence[bool]) -> np.ndarray:
    """Match the ``members`` greedily one to one and return the IoUs of the pairs, float32."""
    used_objects: set[int] = set()
    used_proposals: set[int] = set()
    overlaps = []
    for owner, proposal, iou in pairs:
        if members[owner] and owner not in used_objects and proposal not in used_proposals:
            used_objects.add(owner)
            used_proposals.add(proposal)
            overlaps.append(iou)
    return np.array(overlaps, dtype=np.float32)
