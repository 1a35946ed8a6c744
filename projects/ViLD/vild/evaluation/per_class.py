"""What LVIS and COCO metrics share: reading the inputs, and evaluating one class at a time.

Legend: T IoU thresholds, R recall points, K classes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from detectron2.utils.logger import log_every_n_seconds

from vild.data.coco_format import Id
from vild.evaluation.detections import Detections, Results
from vild.evaluation.ground_truth import GroundTruth


def read_inputs(
    json_file: str | os.PathLike[str] | GroundTruth,
    results: Results | Detections,
    tasks: Sequence[str],
    novel: Mapping[Id, bool],
    federated: bool = False,
) -> tuple[GroundTruth, Detections]:
    """Read annotations and detections unless they are in memory, and check that they fit the tasks.

    Raises:
        ValueError: they are invalid, or ``federated`` and the annotations lack LVIS's lists.
    """
    truth = json_file if isinstance(json_file, GroundTruth) else GroundTruth.read(json_file, novel)
    if federated:
        truth.check_federated()
    found = results if isinstance(results, Detections) else Detections.read(results, truth)
    truth.check_tasks(tasks, found.tasks(), found.where)
    return truth, found


def evaluate_classes(
    truth: GroundTruth,
    found: Detections,
    task: str,
    shape: tuple[int, ...],
    make: Callable[[Id, dict[str, Any], npt.NDArray[np.int64]], Any],
) -> dict[str, npt.NDArray[np.float64]]:
    """Evaluate each class by an official package and collect precision and recall.

    Args:
        truth: annotations of K classes.
        found: detections.
        task: ``bbox`` or ``segm``.
        shape: shape of the precision: T, R, K and the package's further dimensions.
        make: returns the package's evaluation of a class, given its id, its entry and the indices
            of its detections; None if the class has nothing to evaluate.

    Returns:
        ``precision`` of this shape and ``recall``, which has no R; -1 for classes without objects.
    """
    rows, none = found.rows_by_category(), np.zeros(0, np.int64)
    precision, recall = -np.ones(shape), -np.ones((shape[0], *shape[2:]))
    for k, (category_id, category) in enumerate(truth.categories.items()):
        one = make(category_id, category, rows.get(category["id"], none))
        if one is None:
            continue
        one.evaluate()
        one.accumulate()
        precision[:, :, k], recall[:, k] = one.eval["precision"][:, :, 0], one.eval["recall"][:, 0]
        log_every_n_seconds(
            logging.INFO, f"{task}: {k + 1} of {shape[2]} classes evaluated", n=30, name=__name__
        )
    return {"precision": precision, "recall": recall}
