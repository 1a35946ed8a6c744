#!/usr/bin/env python
r"""Write a result page: the table, pictures, AP of each class, curves, similarities, commands.

python tools/result_page.py --dataset shapes_val --out output/result/index.html \
    --run "ViLD-ensemble=output/shapes/both_heads" --run "CLIP on crops=output/shapes/clip" \
    --config-file configs/shapes/vild_ensemble.yaml \
    --weights output/shapes/ensemble/model_final.pth --regions output/shapes/embeddings/shapes_val

The first run is the one that pictures, bars and curves are of; the second is what its bars are
compared with. A run is the folder of a training or of an evaluation by train_net.py. The page is
one file that opens from disk. Exit code: 0, or 2 for an error.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog

from vild.config import read_config
from vild.data import (
    Vocabulary,
    add_data_arguments,
    find_split,
    fraction,
    positive_int,
    read_image,
    register_from_arguments,
)
from vild.data.command_line import path
from vild.data.display import shown_size
from vild.data.files import require_writable_file
from vild.embeddings import EmbeddingStore
from vild.engine.progress import shown_time
from vild.engine.regions import compare_regions
from vild.engine.stages import Record, read_records
from vild.inference import (
    draw_detections,
    draw_ground_truth,
    instances_from_results,
    read_results_by_picture,
    side_by_side,
)
from vild.inference.drawing import NOVEL_MARK
from vild.inference.page import PageFigure, PageSection, PageTable, write_page
from vild.inference.plots import plot_class_ap, plot_similarities, read_class_ap
from vild.inference.runs import Run, read_runs
from vild.inference.summary import MISSING, build_tables, plot_curves

Runs = dict[str, Path]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", required=True, help="registered data set of the runs")
    parser.add_argument(
        "--run", action="append", required=True, metavar="NAME=FOLDER", help="may be repeated"
    )
    parser.add_argument("--out", type=path, required=True, help="html file")
    parser.add_argument("--title", default="ViLD: open-vocabulary detection")
    parser.add_argument("--task", choices=("bbox", "segm"), default="bbox", help="of all figures")
    parser.add_argument("--pictures", type=positive_int, default=10, help="how many")
    parser.add_argument(
        "--threshold", type=fraction, default=0.3, help="lowest score that is drawn"
    )
    group = parser.add_argument_group("heat map of region against text embeddings")
    group.add_argument("--config-file", help="of the detector whose regions are shown")
    group.add_argument("--weights", help="its checkpoint")
    group.add_argument("--regions", help="store of the teacher's embeddings of the data set")
    group.add_argument(
        "--region-pictures", type=positive_int, default=200, help="how many are looked at"
    )
    group.add_argument("opts", nargs="*", metavar="KEY VALUE", help="of its configuration")
    parser.add_argument("--stages", type=path, help="records of tools/quickstart.py, for times")
    add_data_arguments(parser)
    return parser


def table_section(runs: list[Run], data: str, task: str) -> tuple[PageSection, str]:
    """The table in the paper's form, and a sentence about the first run."""
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


def picture_section(folder: Path, args: argparse.Namespace) -> PageSection:
    """The first pictures that have novel objects, ground truth beside detections."""
    records = find_split(args.dataset)
    vocabulary = Vocabulary.from_dataset(args.dataset)
    rows = MetadataCatalog.get(args.dataset).thing_dataset_id_to_contiguous_id
    results = read_results_by_picture(
        folder / f"{args.dataset}_results.json", [r["image_id"] for r in records], rows
    )

    def has_novel(record: dict[str, Any]) -> bool:
        return any(vocabulary.novel[a["category_id"]] for a in record.get("annotations", ()))

    chosen = [record for record in records if has_novel(record)] or records
    figures = []
    for record in chosen[: args.pictures]:
        own = [e for e in results.get(record["image_id"], ()) if e.score >= args.threshold]
        found = instances_from_results(own, (record["height"], record["width"]), rows)
        picture = read_image(record["file_name"])
        drawn = side_by_side(
            draw_ground_truth(picture, record, vocabulary),
            draw_detections(picture, found, vocabulary, threshold=args.threshold),
            ("ground truth", f"detections, score ≥ {args.threshold:g}"),
        )
        names = sorted({vocabulary.names[a["category_id"]] for a in record.get("annotations", ())})
        figures.append(
            PageFigure.of_picture(
                drawn,
                f"image {record['image_id']}: {', '.join(names)}",
                f"image {record['image_id']}",
            )
        )
    text = (
        f"The first {len(figures)} pictures of {args.dataset} with novel objects, not a choice of "
        f"the best. Names that begin with {NOVEL_MARK}, in warm colours, are novel classes."
    )
    return PageSection("Pictures", text, figures=figures)


def class_section(folders: Runs, args: argparse.Namespace) -> PageSection:
    """A bar a class."""
    (label, folder), *others = folders.items()
    file = f"{args.dataset}_per_class.csv"
    classes = read_class_ap(folder / file, args.task)
    other, other_label = {}, ""
    if others:
        other_label = others[0][0]
        other = {c.name: c.ap for c in read_class_ap(others[0][1] / file, args.task)}
    plot = plot_class_ap(classes, other, (label, other_label))
    return PageSection(
        "AP of each class", figures=[PageFigure.of_plot(plot, "a bar for the AP of each class")]
    )


def similarity_section(args: argparse.Namespace) -> PageSection:
    """Heat maps of the teacher's and of the detector's regions."""
    options = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", args.weights, *args.opts]
    cfg = read_config(args.config_file, options)
    store = EmbeddingStore(args.regions)
    teacher, student = compare_regions(cfg, args.dataset, store, args.region_pictures)
    vocabulary = Vocabulary.from_dataset(args.dataset)
    matrices = {"the teacher's": teacher.mean().numpy(), "the detector's": student.mean().numpy()}
    plot = plot_similarities(
        {f"{who} region embeddings": np.asarray(m) for who, m in matrices.items()},
        *(vocabulary.names, vocabulary.novel),
    )
    caption = " ".join(
        f"Of {who} embeddings, the nearest text is that of the object's class for "
        f"{meter.accuracy(False):.0f} % of base and {meter.accuracy(True):.0f} % of novel regions."
        for who, meter in zip(matrices, (teacher, student), strict=True)
    )
    text = (
        f"Mean cosine of the regions of each class with the text embedding of each class, over "
        f"{int(teacher.counts.sum())} proposals that cover an object. The detector was never told "
        "the names in the lower right corner: it has learned where their regions lie from the "
        "teacher's embeddings."
    )
    return PageSection(
        "Regions against names", text, figures=[PageFigure.of_plot(plot, "two heat maps", caption)]
    )


def stage_section(stages: list[Record]) -> PageSection:
    """Commands, times and memory."""
    rows = [(s.title, s.command, shown_time(s.seconds), shown_size(s.peak_bytes)) for s in stages]
    total = sum(s.seconds for s in stages)
    peak = max((s.peak_bytes for s in stages), default=0)
    text = (
        f"{shown_time(total)} in all, at most {shown_size(peak)} of memory. Each command can "
        "be repeated by itself."
    )
    table = PageTable(("stage", "command", "time", "memory"), tuple(rows), numbers=2, code=True)
    return PageSection("Commands", text, table)


def main() -> int:
    """Command line entry; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = build_parser()
    args = parser.parse_args()
    bad = [run for run in args.run if not all(part.strip() for part in run.partition("="))]
    if bad:
        parser.error(f"expected --run NAME=FOLDER, got {bad[0]!r}")
    if bool(args.config_file) != bool(args.regions) or bool(args.regions) != bool(args.weights):
        parser.error("--config-file, --weights and --regions go together")
    folders = {name: Path(folder) for name, folder in (run.split("=", 1) for run in args.run)}
    if len(folders) < len(args.run):
        parser.error("expected another NAME for every --run, got one twice")
    try:
        require_writable_file(args.out, "--out")
        register_from_arguments(args)
        runs = read_runs(list(folders.values()), list(folders))
        first, lead = table_section(runs, args.dataset, args.task)
        sections = [first, picture_section(next(iter(folders.values())), args)]
        sections.append(class_section(folders, args))
        curves = plot_curves(runs[:1], args.task)
        if curves is not None:
            plot = PageFigure.of_plot(curves, "AP and losses over the iterations")
            sections.append(PageSection(f"Training of {runs[0].name}", figures=[plot]))
        if args.regions:
            sections.append(similarity_section(args))
        if args.stages:
            sections.append(stage_section(read_records(args.stages)))
        write_page(args.out, args.title, lead, sections)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
