"""Sections of the page of tools/result_page.py."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog

from experiments.progress import format_time
from experiments.stages import Record, read_records
from vild.config import read_config
from vild.data import Vocabulary, find_split, read_image, register_from_arguments
from vild.embeddings import EmbeddingStore
from vild.engine.region_similarity import compare_regions
from vild.reporting import (
    draw_detections,
    draw_ground_truth,
    instances_from_results,
    read_results_by_image,
    side_by_side,
)
from vild.reporting.drawing import NOVEL_MARK
from vild.reporting.plots import plot_class_ap, plot_similarities, read_class_ap
from vild.reporting.result_page import PageFigure, PageSection, PageTable, write_page
from vild.reporting.runs import Run, read_runs
from vild.reporting.summary import MISSING, build_tables, plot_curves
from vild.utils.files import require_writable_file
from vild.utils.formatting import format_size

Runs = dict[str, Path]


def table_section(runs: list[Run], data: str, task: str) -> tuple[PageSection, str]:
    """Make the table in the paper's layout, and a sentence about the first run."""
    tables = build_tables([run for run in runs if run.data == data], task)
    (table,) = tables
    rows = tuple(
        (row.method, *(MISSING if math.isnan(v) else f"{v:.1f}" for v in row.values))
        for row in table.rows
    )
    text = (
        f"{table.title} on {data}. APr, APc and APf are those of rare, common and frequent "
        "classes; the rare ones are the novel ones."
        if table.kind == "lvis"
        else f"{table.title} on {data}."
    )
    first = ", ".join(f"{h} {v}" for h, v in zip(table.headings, rows[0][1:], strict=True))
    lead = f"{rows[0][0]} reaches {first} on {data}."
    return PageSection("Results", text, PageTable(("method", *table.headings), rows)), lead


def image_section(folder: Path, args: argparse.Namespace) -> PageSection:
    """Make the section of the first images with novel objects, ground truth next to detections."""
    records = find_split(args.dataset)
    vocabulary = Vocabulary.from_dataset(args.dataset)
    rows = MetadataCatalog.get(args.dataset).thing_dataset_id_to_contiguous_id
    results = read_results_by_image(
        folder / f"{args.dataset}_results.json", [r["image_id"] for r in records], rows
    )

    def has_novel(record: dict[str, Any]) -> bool:
        return any(vocabulary.novel[a["category_id"]] for a in record.get("annotations", ()))

    chosen = [record for record in records if has_novel(record)] or records
    figures = []
    for record in chosen[: args.images]:
        own = [e for e in results.get(record["image_id"], ()) if e.score >= args.threshold]
        found = instances_from_results(own, (record["height"], record["width"]), rows)
        image = read_image(record["file_name"])
        drawn = side_by_side(
            draw_ground_truth(image, record, vocabulary),
            draw_detections(image, found, vocabulary, threshold=args.threshold),
            ("ground truth", f"detections, score ≥ {args.threshold:g}"),
        )
        names = sorted({vocabulary.names[a["category_id"]] for a in record.get("annotations", ())})
        figures.append(
            PageFigure.from_image(
                drawn,
                f"image {record['image_id']}: {', '.join(names)}",
                f"image {record['image_id']}",
            )
        )
    text = (
        f"The first {len(figures)} images of {args.dataset} with novel objects, not selected "
        f"by result. Names that begin with {NOVEL_MARK}, in warm colours, are novel classes."
    )
    return PageSection("Images", text, figures=figures)


def class_section(folders: Runs, args: argparse.Namespace) -> PageSection:
    """Make the section with one bar per class."""
    (label, folder), *others = folders.items()
    file = f"{args.dataset}_per_class.csv"
    classes = read_class_ap(folder / file, args.task)
    other, other_label = {}, ""
    if others:
        other_label = others[0][0]
        other = {c.name: c.ap for c in read_class_ap(others[0][1] / file, args.task)}
    plot = plot_class_ap(classes, other, (label, other_label))
    return PageSection(
        "AP of each class", figures=[PageFigure.from_plot(plot, "a bar for the AP of each class")]
    )


def similarity_section(args: argparse.Namespace) -> PageSection:
    """Make the section of heat maps for the teacher's and the detector's regions."""
    options = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", args.weights, *args.opts]
    cfg = read_config(args.config_file, options)
    store = EmbeddingStore(args.regions)
    teacher, student = compare_regions(cfg, args.dataset, store, args.region_images)
    vocabulary = Vocabulary.from_dataset(args.dataset)
    matrices = {"the teacher's": teacher.mean().numpy(), "the detector's": student.mean().numpy()}
    plot = plot_similarities(
        {f"{who} region embeddings": np.asarray(m) for who, m in matrices.items()},
        vocabulary.names,
        vocabulary.novel,
    )
    caption = " ".join(
        f"Of {who} embeddings, the nearest text is that of the object's class for "
        f"{meter.accuracy(False):.0f} % of base and {meter.accuracy(True):.0f} % of novel regions."
        for who, meter in zip(matrices, (teacher, student), strict=True)
    )
    text = (
        f"Mean cosine of the regions of each class with the text embedding of each class, over "
        f"{int(teacher.counts.sum())} proposals that cover an object. The detector was not "
        "trained on the names in the lower right corner: it learned to embed their regions from "
        "the teacher."
    )
    return PageSection(
        "Region embeddings and class names",
        text,
        figures=[PageFigure.from_plot(plot, "two heat maps", caption)],
    )


def stage_section(stages: list[Record]) -> PageSection:
    """Make the section of commands with times and memory."""
    rows = [(s.title, s.command, format_time(s.seconds), format_size(s.peak_bytes)) for s in stages]
    total = sum(s.seconds for s in stages)
    peak = max((s.peak_bytes for s in stages), default=0)
    text = (
        f"{format_time(total)} in total, at most {format_size(peak)} of memory. Each command can "
        "be run again separately."
    )
    table = PageTable(("stage", "command", "time", "memory"), tuple(rows), numbers=2, code=True)
    return PageSection("Commands", text, table)


def write_result_page(folders: Runs, args: argparse.Namespace) -> None:
    """Write the page to ``--out``.

    Raises:
        ValueError: see the called functions.
    """
    require_writable_file(args.out, "--out")
    register_from_arguments(args)
    runs = read_runs(list(folders.values()), list(folders))
    first, lead = table_section(runs, args.dataset, args.task)
    sections = [first, image_section(next(iter(folders.values())), args)]
    sections.append(class_section(folders, args))
    curves = plot_curves(runs[:1], args.task)
    if curves is not None:
        plot = PageFigure.from_plot(curves, "AP and losses over the iterations")
        sections.append(PageSection(f"Training of {runs[0].name}", figures=[plot]))
    if args.regions:
        sections.append(similarity_section(args))
    if args.stages:
        sections.append(stage_section(read_records(args.stages)))
    write_page(args.out, args.title, lead, sections)
