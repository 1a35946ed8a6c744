"""LVIS metrics, computed by the official package with little memory.

The official evaluation keeps three tables with an entry for every image and class, 24 million each
on LVIS's validation set and mostly empty. Classes are independent, so here the package evaluates
one class at a time, over the images in which that class was searched. The precisions of all classes
are then passed to its summary. All figures equal those of ``LVISEval(annotations, results, task)``;
a test compares them.

As in LVIS, a detection with both a box and a mask has the size of its box, also for APs, APm and
APl of masks.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from lvis import LVIS, LVISEval, LVISResults

from vild.data.coco_format import Id
from vild.evaluation.detections import Detections, Results
from vild.evaluation.figures import TaskFigures, with_groups
from vild.evaluation.ground_truth import GroundTruth
from vild.evaluation.per_class import evaluate_classes, read_inputs

MAX_DETECTIONS = 300  # per image; the official value
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


def evaluate_lvis(
    json_file: str | os.PathLike[str] | GroundTruth,
    results: Results | Detections,
    tasks: Sequence[str],
    novel: Mapping[Id, bool],
) -> dict[str, TaskFigures]:
    """Compute LVIS metrics of detections.

    Args:
        json_file: annotations in LVIS format.
        results: a results file, or its contents.
        tasks: ``bbox``, ``segm`` or both.
        novel: category id -> whether the class is novel, for every class to evaluate. Other classes
            of the json are ignored.

    Returns:
        For each task: AP, AP50, AP75, APs, APm, APl, APr, APc, APf, AP-novel and AP-base, and the
        figures of each class.

    Raises:
        ValueError: the annotations lack LVIS's lists of searched classes, or the results are
            invalid; see :meth:`Detections.read`.
    """
    truth, found = read_inputs(json_file, results, tasks, novel, federated=True)
    found = found.best(MAX_DETECTIONS)
    with _quiet():
        return {task: _evaluate(truth, found, task, novel) for task in tasks}


def _evaluate(
    truth: GroundTruth, found: Detections, task: str, novel: Mapping[Id, bool]
) -> TaskFigures:
    some_image = next(iter(truth.images.values()))
    everything = _Annotations([some_image], list(truth.categories.values()), [])
    whole = LVISEval(everything, _results([some_image], []), task)
    params = whole.params
    by_number, searched = truth.by_number(), _images_of(truth)

    def make(category_id: Id, category: dict[str, Any], own: npt.NDArray[np.int64]) -> Any:
        numbers = searched[category["id"]]
        images = [by_number[number] for number in numbers]
        if not images:
            return None
        own = own[np.isin(found.image_ids[own], numbers)]
        return LVISEval(
            _Annotations(images, [category], truth.for_task(category_id, task)),
            _results(images, found.items(own, by_number if task == "segm" else None)),
            task,
        )

    ids = list(truth.categories)
    shape = (len(params.iou_thrs), len(params.rec_thrs), len(ids), len(params.area_rng))
    whole.eval = evaluate_classes(truth, found, task, shape, make)
    groups = [category.get("frequency") for category in truth.categories.values()]
    whole.freq_groups = [
        [k for k, group in enumerate(groups) if group == label] for label in params.img_count_lbl
    ]
    whole.summarize()
    official = {name: whole.results[name] for name in METRICS}
    return with_groups(official, ids, whole.eval["precision"][..., 0], params.iou_thrs, novel)


class _Annotations(LVIS):
    """LVIS annotations from memory, where the official class reads a file."""

    def __init__(
        self,
        images: Sequence[Mapping[str, Any]],
        categories: Sequence[Mapping[str, Any]],
        annotations: Sequence[Mapping[str, Any]],
    ) -> None:
        super().__init__({"images": images, "categories": categories, "annotations": annotations})

    def _load_json(self, path: dict[str, Any]) -> dict[str, Any]:
        return path


def _results(images: Sequence[Mapping[str, Any]], items: list[dict[str, Any]]) -> LVISResults:
    """Make LVISResults, whose constructor copies the annotations and refuses an empty list."""
    if not items:
        # has no area, so LVIS.get_ann_ids skips it
        nothing = {"category_id": 0, "bbox": [0, 0, 0, 0], "score": 0.0}
        items = [{"image_id": images[0]["id"], **nothing}]
    sizes = [{key: image[key] for key in ("id", "height", "width")} for image in images]
    return LVISResults(_Annotations(sizes, [], []), items, max_dets=MAX_DETECTIONS)


def _images_of(truth: GroundTruth) -> dict[int, list[int]]:
    """Map category numbers to the images where the class is present or known absent, ascending."""
    found = {
        truth.numbers[key]: {item["image_id"] for item in own}
        for key, own in truth.annotations.items()
    }
    for image in truth.images.values():
        for number in image["neg_category_ids"]:
            if number in found:
                found[number].add(image["id"])
    return {number: sorted(images) for number, images in found.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the package, which would log the same messages for every class."""
    official = logging.getLogger("lvis")
    level = official.level
    official.setLevel(logging.ERROR)
    try:
        yield
    finally:
        official.setLevel(level)
