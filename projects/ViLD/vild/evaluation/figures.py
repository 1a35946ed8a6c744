"""Metrics of one task: over all classes, over base and novel ones, and of each class.

Legend: T IoU thresholds, R recall points, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vild.data.entries import Id

Precision = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TaskFigures:
    """Average precisions in percent; NaN where no object could have been found.

    Attributes:
        metrics: name -> figure, for example ``AP``, ``AP50``, ``APr``, ``AP-novel``.
        ap: category id -> AP over the IoU thresholds 0.5, 0.55, … 0.95.
        ap50: category id -> AP at the IoU threshold 0.5.
    """

    metrics: dict[str, float]
    ap: dict[Id, float]
    ap50: dict[Id, float]


def class_averages(precision: Precision) -> list[float]:
    """AP of each class in percent.

    Args:
        precision: (T, R, K), -1 throughout for a class without objects, as both official packages
            give it.
    """
    found = []
    for values in np.moveaxis(precision, 2, 0):
        values = values[values > -1]
        found.append(float(values.mean()) * 100 if values.size else math.nan)
    return found


def group_mean(averages: Mapping[Id, float], novel: Mapping[Id, bool], wanted: bool) -> float:
    """Mean AP of the novel or the base classes that have objects; NaN if none has."""
    values = [a for i, a in averages.items() if novel[i] == wanted and not math.isnan(a)]
    return float(np.mean(values)) if values else math.nan


def percent(value: float) -> float:
    """In percent; NaN for the official packages' -1."""
    return float(value) * 100 if value > -1 else math.nan


def with_groups(
    metrics: Mapping[str, float],
    category_ids: Sequence[Id],
    precision: Precision,
    novel: Mapping[Id, bool],
) -> TaskFigures:
    """The official metrics with the figures of the classes and of the two groups.

    Args:
        metrics: name -> official figure as a fraction, -1 where there is none.
        category_ids: K ids.
        precision: (T, R, K) over all sizes; the first threshold is 0.5.
        novel: category id -> whether the class is novel.
    """
    ap = dict(zip(category_ids, class_averages(precision), strict=True))
    ap50 = dict(zip(category_ids, class_averages(precision[:1]), strict=True))
    named = {name: percent(value) for name, value in metrics.items()}
    named["AP-novel"] = group_mean(ap, novel, True)
    named["AP-base"] = group_mean(ap, novel, False)
    return TaskFigures(named, ap, ap50)
