"""Detections stored as columns, in a tenth of the memory of the official packages' objects.

Those objects are made for one class at a time; see :mod:`vild.evaluation.lvis_metrics`.

Legend: N detections.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from vild.data.annotations import SLACK
from vild.data.masks import check_segmentation, to_rle
from vild.evaluation.ground_truth import GroundTruth
from vild.evaluation.results import Results, iterate_detections, name_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Detections:
    """All detections of a dataset.

    Attributes:
        where: source file, for messages.
        image_ids: (N,) int64, image numbers of :class:`GroundTruth`.
        category_ids: (N,) int64, category numbers of :class:`GroundTruth`.
        scores: (N,) float64.
        boxes: (N, 4) float64, XYWH; None without boxes.
        mask_counts: N compressed run lengths; None without masks.
    """

    where: str
    image_ids: npt.NDArray[np.int64]
    category_ids: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    boxes: npt.NDArray[np.float64] | None
    mask_counts: list[str] | None

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def read(cls, results: Results, truth: GroundTruth) -> Detections:
        """Read a results file, or its contents in memory, which are not modified.

        Args:
            results: the file or its contents.
            truth: annotations of the same dataset.

        Raises:
            ValueError: see :func:`~vild.evaluation.results.iterate_detections`; or a mask does not
                fit its image, or only some of the detections have boxes or masks.
        """
        where = name_of(results)
        image_ids, category_ids, scores = array("q"), array("q"), array("d")
        boxes, counts, odd = array("d"), [], 0
        found = iterate_detections(results, truth.images, truth.numbers, truth.path)
        for index, item in enumerate(found):
            image = truth.images[item.image_id]
            image_ids.append(image["id"])
            category_ids.append(truth.numbers[item.category_id])
            scores.append(item.score)
            if item.bbox is not None:
                x, y, width, height = item.bbox
                odd += x + width > image["width"] + SLACK or y + height > image["height"] + SLACK
                odd += x + width <= 1 and y + height <= 1
                boxes.extend(item.bbox)
            if item.segmentation is not None:
                size = image["height"], image["width"]
                try:
                    mask = check_segmentation(item.segmentation, *size, may_be_empty=True)
                except ValueError as error:
                    raise ValueError(
                        f"{where}: expected a mask of its image for detection {index} (image "
                        f"{item.image_id!r}): {error}"
                    ) from None
                counts.append(str(to_rle(mask, *size).counts))
            # raised at the first detection that differs from the previous ones
            for key, number in (("bbox", len(boxes) // 4), ("segmentation", len(counts))):
                if number not in (0, len(scores)):
                    raise ValueError(
                        f"{where}: expected {key!r} for all detections or for none, but "
                        f"detections {index - 1} and {index} (image {item.image_id!r}) differ"
                    )
        if 4 * odd > len(scores):
            logger.warning(
                "%s: %d of %d boxes stick out of their image or are less than a pixel: are they "
                "x, y, width, height in pixels?",
                where,
                odd,
                len(scores),
            )
        return cls(
            where,
            np.frombuffer(image_ids, np.int64),
            np.frombuffer(category_ids, np.int64),
            np.frombuffer(scores, np.float64),
            np.frombuffer(boxes, np.float64).reshape(-1, 4) if boxes or not scores else None,
            counts if counts or not scores else None,
        )

    def tasks(self) -> tuple[str, ...]:
        """Return the tasks that can be evaluated; without detections, both."""
        found = (("bbox", self.boxes), ("segm", self.mask_counts))
        return tuple(task for task, values in found if values is not None)

    def best(self, limit: int) -> Detections:
        """Keep the best ``limit`` detections per image; ties keep the earlier ones, as in LVIS."""
        order = np.argsort(-self.scores, kind="stable")
        order = order[np.argsort(self.image_ids[order], kind="stable")]
        images = self.image_ids[order]
        rank = np.arange(len(self)) - np.searchsorted(images, images, side="left")
        if not len(self) or rank.max() < limit:
            return self
        kept = np.sort(order[rank < limit])
        return replace(
            self,
            image_ids=self.image_ids[kept],
            category_ids=self.category_ids[kept],
            scores=self.scores[kept],
            boxes=None if self.boxes is None else self.boxes[kept],
            mask_counts=(
                None if self.mask_counts is None else [self.mask_counts[n] for n in kept.tolist()]
            ),
        )

    def rows_by_category(self) -> dict[int, npt.NDArray[np.int64]]:
        """Group by class: category id -> indices of its detections, ascending."""
        order = np.argsort(self.category_ids, kind="stable")
        ids, starts = np.unique(self.category_ids[order], return_index=True)
        return dict(zip(ids.tolist(), np.split(order, starts[1:]), strict=True)) if len(ids) else {}

    def items(
        self, rows: npt.NDArray[np.int64], images: Mapping[int, Mapping[str, Any]] | None = None
    ) -> list[dict[str, Any]]:
        """Convert some detections to new dicts of the results format.

        Args:
            rows: indices of the detections.
            images: image number -> record with the image size, for masks; None omits
                ``segmentation``.
        """
        found: list[dict[str, Any]] = [
            {"image_id": image, "category_id": category, "score": score}
            for image, category, score in zip(
                self.image_ids[rows].tolist(),
                self.category_ids[rows].tolist(),
                self.scores[rows].tolist(),
                strict=True,
            )
        ]
        if self.boxes is not None:
            for item, box in zip(found, self.boxes[rows].tolist(), strict=True):
                item["bbox"] = box
        if images is not None and self.mask_counts is not None:
            for item, row in zip(found, rows.tolist(), strict=True):
                image = images[item["image_id"]]
                size = [image["height"], image["width"]]
                item["segmentation"] = {"size": size, "counts": self.mask_counts[row]}
        return found
