"""COCO metrics over the classes of a vocabulary, computed by pycocotools with little memory.

This is the generalised protocol: base and novel classes compete in one classifier, and AP50 is
reported for novel, base and all classes. The COCO json has 80 classes; only those of the vocabulary
count, 65 in ``coco_2017_ovd``.

pycocotools keeps an entry for every image, class and size. Classes are independent, so here it
evaluates one class at a time, over the images with an object or a detection of that class. The
precisions of all classes are then passed to its summary. All figures equal those of ``COCOeval``
with ``params.catIds`` set; a test compares them.

As in pycocotools, a detection with both a box and a mask has the size of its box, also for APs, APm
and APl of masks.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vild.data.coco_format import Id
from vild.evaluation.detections import Detections, Results
from vild.evaluation.figures import TaskFigures, group_mean, with_groups
from vild.evaluation.ground_truth import GroundTruth
from vild.evaluation.per_class import evaluate_classes, read_inputs

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def evaluate_coco_open_vocabulary(
    json_file: str | os.PathLike[str] | GroundTruth,
    results: Results | Detections,
    tasks: Sequence[str],
    novel: Mapping[Id, bool],
) -> dict[str, TaskFigures]:
    """Compute COCO metrics of detections, separately for novel and base classes.

    Args:
        json_file: annotations in COCO format.
        results: a results file, or its contents. Detections of classes outside the vocabulary are
            ignored.
        tasks: ``bbox``, ``segm`` or both.
        novel: category id -> whether the class is novel, for every class of the vocabulary.

    Returns:
        For each task: AP, AP50, AP75, APs, APm, APl over the vocabulary, AP-novel, AP-base,
        AP50-novel, AP50-base and AP50-all, and the figures of each class.

    Raises:
        ValueError: the results are invalid; see :meth:`Detections.read`.
    """
    truth, found = read_inputs(json_file, results, tasks, novel)
    with redirect_stdout(io.StringIO()):  # pycocotools prints for every class
        return {task: _evaluate(truth, found, task, novel) for task in tasks}


def _evaluate(
    truth: GroundTruth, found: Detections, task: str, novel: Mapping[Id, bool]
) -> TaskFigures:
    whole = COCOeval(iouType=task)
    params = whole.params
    by_number = truth.by_number()

    def make(category_id: Id, category: dict[str, Any], own: npt.NDArray[np.int64]) -> Any:
        annotations = truth.for_task(category_id, task)
        if not annotations:  # without objects there is no precision
            return None
        items = found.items(own, by_number if task == "segm" else None)
        involved = {item["image_id"] for item in (*annotations, *items)}
        images = [by_number[number] for number in sorted(involved)]
        objects = _indexed(images, category, annotations)
        detected = objects.loadRes(items) if items else _indexed(images, category, [])
        return COCOeval(objects, detected, task)

    ids = list(truth.categories)
    shape = (
        *(len(params.iouThrs), len(params.recThrs), len(ids)),
        *(len(params.areaRng), len(params.maxDets)),
    )
    whole.eval = evaluate_classes(truth, found, task, shape, make)
    whole.summarize()
    official = dict(zip(METRICS, whole.stats, strict=False))
    precision = whole.eval["precision"][..., 0, -1]
    figures = with_groups(official, ids, precision, params.iouThrs, novel)
    figures.metrics.update(
        {
            "AP50-novel": group_mean(figures.ap50, novel, True),
            "AP50-base": group_mean(figures.ap50, novel, False),
            "AP50-all": figures.metrics["AP50"],
        }
    )
    return figures


def _indexed(
    images: list[dict[str, Any]], category: dict[str, Any], annotations: list[dict[str, Any]]
) -> COCO:
    """Make a COCO object from annotations in memory."""
    coco = COCO()
    coco.dataset = {"images": images, "categories": [category], "annotations": annotations}
    coco.createIndex()
    return coco
