"""Summary tables of several runs in the paper's layout, as Markdown, CSV and a plot."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, MaxNLocator

from vild.reporting.runs import Run
from vild.utils.files import atomic_path
from vild.utils.formatting import csv_cell, markdown_cell

MISSING = "\N{EN DASH}"
_TASK_NAMES = {"segm": "mask", "bbox": "box"}
_PUBLISHED = Path(__file__).with_name("published.json")
_FIRST_LOSSES = ("total_loss", "loss_cls", "loss_distill", "loss_box_reg", "loss_mask")


@dataclass(frozen=True)
class _Kind:
    """A table layout.

    Attributes:
        sign: metric that identifies runs of this kind.
        task: task that the paper reports.
        columns: metrics; of ``AP50-all``, Detectron2's evaluators have only ``AP50``.
    """

    sign: str
    task: str
    columns: tuple[str, ...]


# A run belongs to the first kind whose sign it has.
_KINDS = {
    "lvis": _Kind("APr", "segm", ("APr", "APc", "APf", "AP")),
    "coco": _Kind("AP50-novel", "bbox", ("AP50-novel", "AP50-base", "AP50-all")),
    "plain": _Kind("AP", "bbox", ("AP", "AP50", "AP75")),
}


@dataclass(frozen=True)
class Row:
    """One row of a table; ``published`` is the source of published figures, empty if measured."""

    method: str
    data: str
    values: tuple[float, ...]
    published: str = ""

    @property
    def origin(self) -> str:
        """Return the text of the column ``figures``."""
        return f"published ({self.published})" if self.published else "measured"


@dataclass(frozen=True)
class Table:
    """Runs that are reported in the same layout.

    Attributes:
        kind: ``lvis``, ``coco`` or ``plain``.
        task: ``segm`` or ``bbox``.
        headings: headings of the value columns.
        rows: measured rows first, then published ones.
        source: source of the published rows.
    """

    kind: str
    task: str
    headings: tuple[str, ...]
    rows: tuple[Row, ...]
    source: str = ""

    @property
    def title(self) -> str:
        """Return a title that says what the figures are."""
        return f"{_TASK_NAMES[self.task].capitalize()} AP in percent"


def build_tables(
    runs: Sequence[Run], task: str | None = None, reference: bool = False
) -> list[Table]:
    """Sort runs into tables: LVIS (APr, APc, APf, AP), COCO (AP50 novel, base, all), or any other.

    Args:
        runs: runs; one without results, still training, gets an empty row in the first table.
        task: ``segm`` or ``bbox``; by default what the paper reports: masks on LVIS, boxes on COCO.
        reference: add the paper's published rows after the measured ones.

    Returns:
        At most one table per kind, in the order of the runs.

    Raises:
        ValueError: there are no runs, or a run was evaluated, but not on this task.
    """
    if not runs:
        raise ValueError("expected at least one run, got none")
    kinds = [_kind_of(run) for run in runs]
    first = next((kind for kind in kinds if kind), "plain")
    published = json.loads(_PUBLISHED.read_text(encoding="utf-8"))
    tables = []
    for kind in dict.fromkeys(kind or first for kind in kinds):
        form = _KINDS[kind]
        chosen = task or form.task
        rows = []
        for run, own in zip(runs, kinds, strict=True):
            if (own or first) != kind:
                continue
            if run.results and chosen not in run.results:
                other = " and ".join(run.results)
                raise ValueError(
                    f"the run {run.name} has no results for {chosen}, only for {other}: "
                    f"choose another --task, or evaluate it on {chosen}"
                )
            rows.append(Row(run.name, run.data, _values(run.results.get(chosen, {}), form)))
        added = [
            Row(entry["method"], entry["data"], _values(entry, form), entry["from"])
            for entry in published["rows"]
            if reference and (entry["kind"], entry["task"]) == (kind, chosen)
        ]
        headings = tuple(column.replace("-", " ") for column in form.columns)
        source = published["source"] if added else ""
        tables.append(Table(kind, chosen, headings, (*rows, *added), source))
    return tables


def _kind_of(run: Run) -> str:
    keys = {key for metrics in run.results.values() for key in metrics}
    return next((kind for kind, form in _KINDS.items() if form.sign in keys), "")


def _values(metrics: Mapping[str, float], form: _Kind) -> tuple[float, ...]:
    found = (metrics.get(key, metrics.get(key.removesuffix("-all"))) for key in form.columns)
    return tuple(math.nan if value is None else float(value) for value in found)


def to_markdown(tables: Sequence[Table]) -> str:
    """Format tables as Markdown; published rows are marked and in italics."""
    parts = []
    for table in tables:
        head = ["method", "data", "figures", *table.headings]
        lines = [
            f"**{table.title}**",
            "",
            f"| {' | '.join(head)} |",
            f"| {' | '.join(['---'] * 3 + ['---:'] * len(table.headings))} |",
        ]
        for row in table.rows:
            cells = [row.method, row.data or MISSING, row.origin, *map(_format, row.values)]
            cells = list(map(markdown_cell, cells))
            if row.published:
                cells = [f"*{cell}*" for cell in cells]
            lines.append(f"| {' | '.join(cells)} |")
        if table.source:
            lines += ["", f"Published figures: {table.source}."]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def to_csv(tables: Sequence[Table]) -> str:
    """Format all tables as one CSV; missing values are empty cells."""
    headings = list(dict.fromkeys(h for table in tables for h in table.headings))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "data", "figures", "task", *headings])
    for table in tables:
        for row in table.rows:
            values = dict(zip(table.headings, row.values, strict=True))
            cells = [values.get(heading, math.nan) for heading in headings]
            shown = ["" if math.isnan(v) else f"{v:.3f}" for v in cells]
            texts = map(csv_cell, (row.method, row.data, row.origin, table.task))
            writer.writerow([*texts, *shown])
    return text.getvalue()


def _format(value: float) -> str:
    return MISSING if math.isnan(value) else f"{value:.1f}"


def write_summary(
    folder: str | os.PathLike[str], runs: Sequence[Run], tables: Sequence[Table]
) -> list[Path]:
    """Write ``summary.md``, ``summary.csv`` and ``summary.png``.

    Args:
        folder: output folder; created if missing.
        runs: runs, for the curves.
        tables: result of :func:`build_tables`.

    Returns:
        The three files.
    """
    folder = Path(folder)
    texts = {"summary.md": to_markdown(tables), "summary.csv": to_csv(tables)}
    for name, text in texts.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    with atomic_path(folder / "summary.png") as temporary:
        plot_summary(runs, tables).savefig(temporary, dpi=_DPI)
    return [folder / name for name in (*texts, "summary.png")]


# sizes of the figure, in inches
_DPI = 110
_WIDTH, _MARGIN, _LINE = 12.0, 0.35, 0.29
_PANEL_HEIGHT, _PANELS = 2.7, 4  # panels per row
_GREY = "0.42"
Colours = dict[tuple[str, str], tuple[float, ...]]  # of a run on a dataset


def plot_summary(runs: Sequence[Run], tables: Sequence[Table]) -> Figure:
    """Draw the tables, and below them AP and losses over iterations.

    Each run has one colour, shown next to its name in the table. Published figures are grey and in
    italics, and have no curves.

    Args:
        runs: runs, for the curves.
        tables: result of :func:`build_tables` for these runs.

    Returns:
        A figure 12 inches wide; save it without changing its size.
    """
    return _plot(runs, tables, _panels(runs, tables))


def plot_curves(runs: Sequence[Run], task: str | None = None) -> Figure | None:
    """Draw AP and losses over iterations, without a table.

    Args:
        runs: runs, one colour each.
        task: see :func:`build_tables`.

    Returns:
        A figure 12 inches wide; None if no run has a history.

    Raises:
        ValueError: see :func:`build_tables`.
    """
    panels = _panels(runs, build_tables(runs, task))
    return _plot(runs, (), panels) if panels else None


def _plot(
    runs: Sequence[Run], tables: Sequence[Table], panels: Sequence[tuple[str, str]]
) -> Figure:
    colours = _colours(runs)
    heights = [_LINE * (len(table.rows) + 2.6) for table in tables]
    rows = -(-len(panels) // _PANELS)
    height = 2 * _MARGIN + sum(heights) + rows * _PANEL_HEIGHT
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, facecolor="white")
    top = height - _MARGIN
    for table, own in zip(tables, heights, strict=True):
        top -= own
        inner = (_MARGIN / _WIDTH, top / height, 1 - 2 * _MARGIN / _WIDTH, own / height)
        _draw_table(figure.add_axes(inner), table, own, colours)
    width = (_WIDTH - _MARGIN) / _PANELS
    for index, (title, key) in enumerate(panels):
        line, column = divmod(index, _PANELS)
        x, y = _MARGIN + 0.2 + column * width, top - (line + 1) * _PANEL_HEIGHT + 0.45
        axes = figure.add_axes(
            (x / _WIDTH, y / height, (width - 0.55) / _WIDTH, (_PANEL_HEIGHT - 0.95) / height)
        )
        _draw_curves(axes, title, key, runs, colours)
    return figure


def _colours(runs: Sequence[Run]) -> Colours:
    keys = list(dict.fromkeys((run.name, run.data) for run in runs))
    palette = colormaps["tab10" if len(keys) <= 10 else "tab20"]
    return {key: palette(index % palette.N) for index, key in enumerate(keys)}


def _panels(runs: Sequence[Run], tables: Sequence[Table]) -> list[tuple[str, str]]:
    """Return (title, key in the history) of every curve that at least one run has."""
    there = {key for run in runs for key in run.history}
    panels = {}
    for table in tables:
        for column, heading in zip(_KINDS[table.kind].columns, table.headings, strict=True):
            key = f"{table.task}/{column}"
            key = key if key in there else key.removesuffix("-all")
            if key in there:
                panels[key] = f"{_TASK_NAMES[table.task]} {heading}"
    losses = sorted(key for key in there if "/" not in key)
    losses.sort(key=lambda k: _FIRST_LOSSES.index(k) if k in _FIRST_LOSSES else 99)
    return [(title, key) for key, title in panels.items()] + [(key, key) for key in losses]


def _draw_table(axes: Axes, table: Table, height: float, colours: Colours) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(height, 0)  # y in inches from the top
    axes.axis("off")
    ends = np.linspace(1, 0.74, len(table.headings))[::-1]
    y = 0.6 * _LINE
    axes.text(0, y, table.title, weight="bold", size=11, va="center")
    y += 1.1 * _LINE
    for x, word in zip((0.018, 0.31, 0.465), ("method", "data", "figures"), strict=True):
        axes.text(x, y, word, size=9.5, va="center", color=_GREY)
    for x, heading in zip(ends, table.headings, strict=True):
        axes.text(x, y, heading, size=9.5, va="center", ha="right", color=_GREY)
    axes.axhline(y + _LINE / 2, color="black", linewidth=0.9)
    before = None
    for row in table.rows:
        if row.published and before is not None and not before.published:
            axes.axhline(y + _LINE / 2, color="0.75", linewidth=0.7)
        y += _LINE
        before = row
        style: dict[str, Any] = {"size": 10, "va": "center", "parse_math": False}
        if row.published:
            style |= {"color": _GREY, "style": "italic"}
        if not row.published:
            chip = Rectangle(
                (0, y - 0.06), 0.0105, 0.12, color=colours[row.method, row.data], linewidth=0
            )
            axes.add_patch(chip)
        cells = zip(
            (0.018, 0.31, 0.465), (row.method, row.data, row.origin), (36, 18, 34), strict=True
        )
        for x, text, room in cells:
            axes.text(x, y, _cut(text or MISSING, room), **style)
        for x, value in zip(ends, row.values, strict=True):
            axes.text(x, y, _format(value), ha="right", **style)
    axes.axhline(y + _LINE / 2, color="black", linewidth=0.9)


def _cut(text: str, room: int) -> str:
    text = " ".join(text.split())  # remove line breaks
    return text if len(text) <= room else f"{text[: room - 1]}…"


def _draw_curves(
    axes: Axes,
    title: str,
    key: str,
    runs: Sequence[Run],
    colours: Colours,
) -> None:
    for index, run in enumerate(run for run in runs if key in run.history):
        iterations, values = run.history[key].T
        axes.plot(
            iterations,
            values,
            color=colours[run.name, run.data],
            linewidth=1.4,
            linestyle=("-", "--")[index // 20 % 2],  # dashed once the colours repeat
            # a single evaluation needs a marker, since a line of one point is invisible
            marker="o" if "/" in key or len(values) == 1 else None,
            markersize=3.5,
        )
    axes.set_title(title, size=10, loc="left")
    if "/" in key:
        axes.set_ylim(0, 1.08 * max(axes.get_ylim()[1], 1e-6))  # keeps points off the edge
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.tick_params(labelsize=8, color="0.6")
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel("iteration", size=8, color=_GREY, labelpad=1)
