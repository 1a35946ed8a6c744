"""Metrics of one task: overall, for base and for novel classes, and per class.

Legend: T IoU thresholds, R recall points, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vild.data.coco_format import Id

Precision = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TaskFigures:
    """Average precisions in percent; NaN for classes or groups without objects.

    Attributes:
        metrics: name -> value, for example ``AP``, ``AP50``, ``APr``, ``AP-novel``.
        ap: category id -> AP over the IoU thresholds 0.5, 0.55, … 0.95.
        ap50: category id -> AP at the IoU threshold 0.5.
    """

    metrics: dict[str, float]
    ap: dict[Id, float]
    ap50: dict[Id, float]


def class_averages(precision: Precision) -> list[float]:
    """Compute the AP of each class in percent.

    Args:
        precision: (T, R, K), all -1 for a class without objects, as in both official packages.
    """
    found = []
    for values in np.moveaxis(precision, 2, 0):
        values = values[values > -1]
        found.append(float(values.mean()) * 100 if values.size else math.nan)
    return found


def group_mean(averages: Mapping[Id, float], novel: Mapping[Id, bool], wanted: bool) -> float:
    """Average the AP of the novel or base classes that have objects; NaN if none has."""
    values = [a for i, a in averages.items() if novel[i] == wanted and not math.isnan(a)]
    return float(np.mean(values)) if values else math.nan


def percent(value: float) -> float:
    """Convert to percent; the official packages' -1 becomes NaN."""
    return float(value) * 100 if value > -1 else math.nan


def with_groups(
    metrics: Mapping[str, float],
    category_ids: Sequence[Id],
    precision: Precision,
    thresholds: npt.NDArray[np.float64],
    novel: Mapping[Id, bool],
) -> TaskFigures:
    """Extend the official metrics with AP per class and for the base and novel groups.

    Args:
        metrics: name -> official value as a fraction, -1 if undefined.
        category_ids: K ids.
        precision: (T, R, K) over all sizes.
        thresholds: (T,) IoU thresholds; one of them is 0.5.
        novel: category id -> whether the class is novel.
    """
    ap = dict(zip(category_ids, class_averages(precision), strict=True))
    at_50 = precision[np.isclose(thresholds, 0.5)]
    ap50 = dict(zip(category_ids, class_averages(at_50), strict=True))
    named = {name: percent(value) for name, value in metrics.items()}
    named["AP-novel"] = group_mean(ap, novel, True)
    named["AP-base"] = group_mean(ap, novel, False)
    return TaskFigures(named, ap, ap50)
