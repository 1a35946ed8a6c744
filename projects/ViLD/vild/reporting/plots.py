"""Plots of an experiment: AP per class, and similarity of regions to class names.

Shapes: K classes.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from vild.utils.formatting import csv_text

BASE_COLOUR, NOVEL_COLOUR = "#3b78b5", "#d9541e"  # cool and warm, as in drawn detections


@dataclass(frozen=True)
class ClassAP:
    """The AP of one class; NaN without objects."""

    name: str
    novel: bool
    ap: float


def read_class_ap(path: str | os.PathLike[str], task: str = "bbox") -> list[ClassAP]:
    """Read the AP per class from an evaluation's ``<dataset>_per_class.csv``.

    Raises:
        ValueError: the file does not exist, or has no column for this task.
    """
    column = f"{task} AP"
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
    except OSError as error:
        raise ValueError(f"expected per-class metrics at {path}: {error.strerror}") from None
    if not lines or not {"class", "novel", column} <= set(lines[0]):
        raise ValueError(f"{path}: expected the columns class, novel and {column!r}")
    return [
        ClassAP(csv_text(line["class"]), line["novel"] == "1", float(line[column] or "nan"))
        for line in lines
    ]


def plot_class_ap(
    classes: Sequence[ClassAP], other: Mapping[str, float], labels: tuple[str, str]
) -> Figure:
    """Plot one bar per class, best first, base and novel separate; ticks show another method.

    Args:
        classes: the K classes; those without objects are omitted.
        other: AP of the other method by class name.
        labels: names of the two methods.

    Returns:
        A figure 12 inches wide.
    """
    # $ must not start a formula
    own_label, other_label = (label.replace("$", "\\$") for label in labels)
    known = [c for c in classes if not math.isnan(c.ap)]
    shown = sorted(known, key=lambda c: (c.novel, -c.ap))
    figure = Figure(figsize=(12, 4.4), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    for novel, colour, kind in ((False, BASE_COLOUR, "base"), (True, NOVEL_COLOUR, "novel")):
        own = [(i, c.ap) for i, c in enumerate(shown) if c.novel == novel]
        if not own:
            continue
        xs, heights = zip(*own, strict=True)
        mean = float(np.mean(heights))
        label = f"{own_label}, {kind}: mean {mean:.1f}"
        axes.bar(xs, heights, color=colour, width=0.8, label=label)
        ends = (xs[0] - 0.5, xs[-1] + 0.5)
        axes.plot(ends, (mean, mean), color=colour, linewidth=1, linestyle=":")
    marks = [(i, other[c.name]) for i, c in enumerate(shown) if c.name in other]
    if marks:
        axes.plot(
            *zip(*marks, strict=True),
            "_k",
            markersize=9,
            markeredgewidth=2,
            label=other_label,
        )
    axes.set_xticks(
        range(len(shown)), [c.name for c in shown], rotation=90, size=7, parse_math=False
    )
    axes.set_xlim(-0.7, len(shown) - 0.3)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("box AP, percent")
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(loc="upper right", ncols=3, frameon=False, fontsize=9)
    return figure


def plot_similarities(
    matrices: Mapping[str, np.ndarray], names: Sequence[str], novel: Sequence[bool]
) -> Figure:
    """Plot heat maps of mean cosines side by side; a line separates the novel classes, at the end.

    Args:
        matrices: title -> (K, K), row = class of the regions, column = class of the text. NaN rows
            stay white.
        names: names of the K classes.
        novel: K flags.

    Returns:
        A figure with 7 inches per heat map.
    """
    order = sorted(range(len(names)), key=lambda i: novel[i])
    sorted_ones = {title: m[np.ix_(order, order)] for title, m in matrices.items()}
    low = min(float(np.nanmin(m)) for m in sorted_ones.values())
    high = max(float(np.nanmax(m)) for m in sorted_ones.values())
    figure = Figure(figsize=(7 * len(matrices) + 0.6, 7.2), facecolor="white", layout="constrained")
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    first_novel = len(names) - sum(novel)
    for axes, (title, matrix) in zip(panels, sorted_ones.items(), strict=True):
        image = axes.imshow(matrix, cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
        if 0 < first_novel < len(names):
            axes.axhline(first_novel - 0.5, color=NOVEL_COLOUR, linewidth=1.2)
            axes.axvline(first_novel - 0.5, color=NOVEL_COLOUR, linewidth=1.2)
        axes.set_title(title, size=11)
        axes.set_xlabel("text embedding of")
        size = min(7.0, 420 / max(len(names), 1))
        labels = [names[i] for i in order]
        axes.set_xticks(range(len(names)), labels, rotation=90, size=size, parse_math=False)
        axes.set_yticks(range(len(names)), labels, size=size, parse_math=False)
        for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
            for tick in ticks[first_novel:]:
                tick.set_color(NOVEL_COLOUR)
    panels[0].set_ylabel("regions of")
    figure.colorbar(image, ax=panels, shrink=0.6, label="mean cosine")
    return figure
