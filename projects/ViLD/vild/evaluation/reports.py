"""Reports of an evaluation, as files and in the log."""

from __future__ import annotations

import csv
import json
import logging
import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from detectron2.utils.logger import create_small_table

from vild.data.coco_format import Id
from vild.evaluation.figures import TaskFigures
from vild.evaluation.ground_truth import GroundTruth
from vild.utils.files import atomic_path
from vild.utils.formatting import csv_cell

logger = logging.getLogger(__name__)

LOGGED_CLASSES = 100  # above this, per-class figures go to the file only


def write_per_class(
    path: Path,
    truth: GroundTruth,
    novel: Mapping[Id, bool],
    frequency: Mapping[Id, str],
    figures: Mapping[str, TaskFigures],
) -> None:
    """Write a csv with one row per class, in the order of the category ids.

    Its columns: ``class``, ``novel`` (0 or 1), ``frequency`` (r, c, f; empty if unknown),
    ``instances`` (objects without crowds), and for each task, for example, ``bbox AP`` and ``bbox
    AP50``: percent, empty for a class without objects.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        columns = [f"{task} {name}" for task in figures for name in ("AP", "AP50")]
        writer.writerow(["class", "novel", "frequency", "instances", *columns])
        for i, category in truth.categories.items():
            values = [v[i] for f in figures.values() for v in (f.ap, f.ap50)]
            shown = ["" if math.isnan(value) else repr(value) for value in values]
            known = [
                csv_cell(category["name"]),
                int(novel[i]),
                frequency.get(i, ""),
                truth.instances(i),
            ]
            writer.writerow([*known, *shown])


def write_metrics(
    path: Path,
    truth: GroundTruth,
    figures: Mapping[str, TaskFigures],
    **origin: str | int | None,
) -> None:
    """Write the metrics of all tasks and their origin as json; undefined metrics are null."""
    contents = {
        **{name: value for name, value in origin.items() if value is not None},
        "annotations": truth.path,
        "images": len(truth.images),
        "classes": len(truth.categories),
        "objects": len(truth),
        "versions": {name: version(name) for name in ("lvis", "pycocotools")},
        "metrics": {
            task: {n: None if math.isnan(v) else v for n, v in f.metrics.items()}
            for task, f in figures.items()
        },
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")


def log_figures(
    truth: GroundTruth, novel: Mapping[Id, bool], figures: Mapping[str, TaskFigures]
) -> None:
    """Log the metrics of each task, and of each class unless there are too many classes."""
    for task, found in figures.items():
        logger.info("Metrics of %s in percent:\n%s", task, create_small_table(found.metrics))
    if len(truth.categories) > LOGGED_CLASSES:
        return
    width = max(len("class"), *(len(str(c["name"])) for c in truth.categories.values()))
    columns = [f"{task} {name}" for task in figures for name in ("AP", "AP50")]
    lines = [f"{'class':{width}}  novel  instances" + "".join(f"  {c:>9}" for c in columns)]
    for i, category in truth.categories.items():
        values = [v[i] for f in figures.values() for v in (f.ap, f.ap50)]
        lines.append(
            f"{category['name']:{width}}  {'yes' if novel[i] else 'no':>5}  "
            f"{truth.instances(i):>9}" + "".join(f"  {value:>9.2f}" for value in values)
        )
    logger.info("Metrics of each class in percent:\n%s", "\n".join(lines))
