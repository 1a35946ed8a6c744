"""Measurements of tools/benchmark_evaluation.py."""

from __future__ import annotations

import argparse
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import Boxes, Instances
from lvis import LVIS, LVISEval, LVISResults

from benchmarks.timing import alternate
from vild.evaluation import ResultsWriter, encode_masks, evaluate_lvis

TOOL = Path(__file__).parents[1] / "benchmark_evaluation.py"
HEIGHT, WIDTH = 480, 640
LVIS_IMAGES, LIMIT_GIB = 19_809, 24


def benchmark(args: argparse.Namespace) -> int:
    """Print the requested measurements and return the exit code."""
    torch.set_num_threads(1)
    if args.step:
        steps = {"write": write, "evaluate": evaluate, "official": official}
        print(json.dumps(steps[args.step](args)))
        return 0
    if args.encoding:
        encoding(args.detections)
        return 0
    print(
        f"{args.images} images of {HEIGHT} x {WIDTH}, {args.detections} detections with masks "
        f"each, {args.classes} classes, {args.objects} objects and {args.negatives} absent classes "
        f"an image; 1 thread, torch {torch.__version__}, numpy {np.__version__}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        half = run(args, Path(folder), max(1, args.images // 2))
        whole = run(args, Path(folder), args.images)
    slope = (whole - half) / max(1, args.images - args.images // 2)
    expected = whole + slope * (LVIS_IMAGES - args.images)
    verdict = "fits" if expected < LIMIT_GIB else "does not fit"
    print(
        f"peak memory of the evaluation by these two, for {LVIS_IMAGES} images: "
        f"{expected:.1f} GiB, which {verdict} {LIMIT_GIB} GiB"
    )
    return 0


def encoding(number: int, repeats: int = 7) -> None:
    """Time the encoding of an image's masks, by this project and pycocotools alternately."""
    height, width = 800, 1216  # a large LVIS image after resizing
    rng = np.random.default_rng(0)
    masks = np.zeros((number, height, width), bool)
    for mask in masks:
        h, w = rng.integers(16, 300, 2)
        y, x = rng.integers(0, height - h), rng.integers(0, width - w)
        rows, columns = np.ogrid[:h, :w]
        inside = (rows / h - 0.5) ** 2 + (columns / w - 0.5) ** 2 <= 0.25
        mask[y : y + h, x : x + w] = inside
    given = torch.from_numpy(masks)

    def official() -> list[dict[str, Any]]:
        found = []
        for mask in masks:
            (item,) = mask_util.encode(np.asfortranarray(mask[:, :, None].view(np.uint8)))
            found.append({"size": list(item["size"]), "counts": item["counts"].decode("ascii")})
        return found

    assert encode_masks(given) == official()
    seconds = alternate(repeats, {"ours": lambda: encode_masks(given), "theirs": official})
    ours, theirs = seconds["ours"] * 1e3, seconds["theirs"] * 1e3
    print(
        f"{number} masks of {height} x {width}: {ours:.0f} ms, pycocotools {theirs:.0f} ms, ratio "
        f"{theirs / ours:.1f}"
    )


def run(args: argparse.Namespace, folder: Path, images: int) -> float:
    """Run all steps for some images and return the evaluation's peak memory in GiB."""
    print(f"{images} images:")
    (folder / "annotations.json").write_text(json.dumps(annotations(args, images)), "utf-8")
    options = [f"--{name}={getattr(args, name)}" for name in ("detections", "classes")]
    peaks, metrics = {}, {}
    for step in ("write", "evaluate", *(["official"] if args.official else [])):
        command = [sys.executable, str(TOOL), *options, f"--step={step}", f"--folder={folder}"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        peaks[step], metrics[step] = found["peak"], found.get("metrics")
        print(f"    {step}: {found['summary']}; peak {found['peak']:.2f} GiB", flush=True)
    if args.official:
        apart = [
            abs(metrics["evaluate"][task][name] - value)
            for task, values in metrics["official"].items()
            for name, value in values.items()
            if value >= 0  # negative: no such class
        ]
        print(f"    largest difference of {len(apart)} metrics to the official: {max(apart):.1e}")
    return peaks["evaluate"]


def write(args: argparse.Namespace) -> dict[str, Any]:
    """Write the detections to the results file."""
    contents = json.loads((args.folder / "annotations.json").read_text("utf-8"))
    searched = {i["id"]: list(i["neg_category_ids"]) for i in contents["images"]}
    for item in contents["annotations"]:
        searched[item["image_id"]].append(item["category_id"])
    rng = np.random.RandomState(1)
    masks = random_masks(args.detections, rng)
    seconds = 0.0
    with ResultsWriter(args.folder / "results.json") as writer:
        for image_id, classes in searched.items():
            detections = random_detections(masks, classes, args.classes, rng)
            start = time.perf_counter()
            writer.add(image_id, detections, range(1, args.classes + 1))
            seconds += time.perf_counter() - start
    size = (args.folder / "results.json").stat().st_size
    each = seconds / len(searched) * 1e3
    return {
        "summary": f"{seconds:.0f} s, {each:.0f} ms an image, {size / 1e6:.0f} MB",
        "peak": peak_gib(),
    }


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate the results file."""
    novel = {category_id: category_id % 4 == 0 for category_id in range(1, args.classes + 1)}
    files = (args.folder / "annotations.json", args.folder / "results.json")
    start = time.perf_counter()
    figures = evaluate_lvis(*files, ("bbox", "segm"), novel)
    return {
        "summary": f"{time.perf_counter() - start:.0f} s for boxes and masks",
        "peak": peak_gib(),
        "metrics": {task: found.metrics for task, found in figures.items()},
    }


def official(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate with the plain official package, one task after the other in one process."""
    logging.getLogger("lvis").setLevel(logging.ERROR)
    start, metrics = time.perf_counter(), {}
    for task in ("bbox", "segm"):
        truth = LVIS(str(args.folder / "annotations.json"))
        found = LVISResults(truth, str(args.folder / "results.json"))
        evaluation = LVISEval(truth, found, task)
        evaluation.run()
        metrics[task] = {k: v * 100 for k, v in evaluation.results.items() if "AR" not in k}
    return {
        "summary": f"{time.perf_counter() - start:.0f} s for boxes and masks",
        "peak": peak_gib(),
        "metrics": metrics,
    }


def annotations(args: argparse.Namespace, count: int) -> dict[str, Any]:
    """Make annotations of random classes, frequent ones first, with lists of absent classes."""
    rng = np.random.RandomState(0)
    odds = 1 / np.arange(1, args.classes + 1)
    odds /= odds.sum()
    images, objects = [], []
    for image_id in range(1, count + 1):
        present = rng.choice(args.classes, args.objects, p=odds) + 1
        absent = np.setdiff1d(rng.choice(args.classes, args.negatives) + 1, present)
        images.append(
            {
                **{"id": image_id, "height": HEIGHT, "width": WIDTH},
                "file_name": f"{image_id}.jpg",
                "neg_category_ids": absent.tolist(),
                "not_exhaustive_category_ids": present[:1].tolist(),
            }
        )
        for category_id in present.tolist():
            x, y, w, h = box = random_box(rng)
            turns = np.linspace(0, 2 * np.pi, 40)
            outline = np.stack([x + w / 2 * (1 + np.cos(turns)), y + h / 2 * (1 + np.sin(turns))])
            objects.append(
                {
                    **{"id": len(objects) + 1, "image_id": image_id, "category_id": category_id},
                    **{"bbox": box, "area": w * h * np.pi / 4},
                    "segmentation": [outline.T.round(2).ravel().tolist()],
                }
            )
    categories = [
        {"id": n + 1, "name": f"class {n}", "frequency": "fcr"[3 * n // args.classes]}
        for n in range(args.classes)
    ]
    return {"images": images, "annotations": objects, "categories": categories}


def random_box(rng: np.random.RandomState) -> list[float]:
    """Make a random XYWH box inside the image."""
    w, h = rng.uniform(10, 300, 2)
    return [rng.uniform(0, WIDTH - w), rng.uniform(0, HEIGHT - h), w, h]


def random_masks(number: int, rng: np.random.RandomState) -> torch.Tensor:
    """Make masks (R, H, W) bool: ellipses with ragged edges, like predicted masks."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    masks = np.zeros((number, HEIGHT, WIDTH), bool)
    for mask in masks:
        x, y, w, h = random_box(rng)
        across, down = (columns - x) / w * 2 - 1, (rows - y) / h * 2 - 1
        mask[:] = across**2 + down**2 < 1 + 0.1 * np.sin(8 * np.arctan2(down, across))
    return torch.from_numpy(masks)


def random_detections(
    masks: torch.Tensor, searched: list[int], classes: int, rng: np.random.RandomState
) -> Instances:
    """Make detections from shuffled masks, half of them of classes that count."""
    masks = masks[torch.from_numpy(rng.permutation(len(masks)))]
    rows = rng.randint(0, classes, len(masks))
    counted = rng.rand(len(masks)) < 0.5
    rows[counted] = rng.choice(searched, counted.sum()) - 1
    boxes = np.array([random_box(rng) for _ in masks])
    boxes[:, 2:] += boxes[:, :2]
    found = Instances((HEIGHT, WIDTH))
    found.pred_boxes = Boxes(torch.from_numpy(boxes).float())
    found.scores = torch.from_numpy(rng.rand(len(masks))).float()
    found.pred_classes = torch.from_numpy(rows)
    found.pred_masks = masks
    return found


def peak_gib() -> float:
    """Return the peak memory of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
