#!/usr/bin/env python
"""Measure time and memory of reading annotations, on a json as large as LVIS's training set.

python tools/benchmark_intake.py                       # makes the json below output/, then reads it
python tools/benchmark_intake.py --images 10000 --repeat 3

Each reader runs in a separate process, alternately; the table shows medians.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from vild_cli.arguments import tool_parser

ANNOTATIONS_PER_IMAGE = 12.7  # 1.27 million in 100,000 images, as in LVIS v1
CLASSES = 1203
READERS = ("json", "lvis", "pydantic", "msgspec", "intake", "records")


def make(path: Path, images: int, points: int) -> None:
    """Write annotations in LVIS format: random star-shaped polygons with ``points`` vertices."""
    rng = random.Random(0)
    number = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.write('{"annotations": [')
        for image in range(images):
            for _ in range(int(ANNOTATIONS_PER_IMAGE + rng.random())):
                number += 1
                x, y, size = rng.random() * 400, rng.random() * 300, 10 + rng.random() * 100
                polygon = [round(v + rng.random() * size, 2) for _ in range(points) for v in (x, y)]
                item = {
                    "id": number,
                    "image_id": image,
                    "category_id": 1 + rng.randrange(CLASSES),
                    "bbox": [x, y, size, size],
                    "area": size * size,
                    "segmentation": [polygon],
                }
                file.write((", " if number > 1 else "") + json.dumps(item))
        entries = [
            {
                "id": image,
                "height": 480,
                "width": 640,
                "coco_url": f"http://images.cocodataset.org/train2017/{image:012}.jpg",
                "neg_category_ids": [1, 2],
                "not_exhaustive_category_ids": [],
            }
            for image in range(images)
        ]
        classes = [
            {"id": i, "name": f"class {i}", "frequency": "f", "image_count": 1, "synonyms": []}
            for i in range(1, CLASSES + 1)
        ]
        tail = json.dumps({"images": entries, "categories": classes})
        file.write(f"], {tail[1:]}")


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def read(reader: str, path: Path) -> object:
    """Read the file once; imports are not timed."""
    import lvis
    import msgspec

    from vild.data import load_records
    from vild.data.annotations import decode_annotations
    from vild.data.coco_format import AnnotationFile

    if reader == "pydantic":
        from pydantic import BaseModel

        class Annotation(BaseModel):
            id: int
            image_id: int
            category_id: int
            bbox: list[float]
            area: float
            segmentation: list[list[float]]

        class File(BaseModel):
            annotations: list[Annotation]
            images: list[dict]
            categories: list[dict]

    before = resident()
    start = time.perf_counter()
    if reader == "json":
        found: object = json.loads(path.read_bytes())
    elif reader == "lvis":
        found = lvis.LVIS(str(path))  # json.load and the official indexing
    elif reader == "pydantic":
        found = File.model_validate_json(path.read_bytes())
    elif reader == "msgspec":
        found = msgspec.json.decode(path.read_bytes(), type=AnnotationFile)
    elif reader == "intake":
        found = decode_annotations(path)
    else:
        rows = {i: i - 1 for i in range(1, CLASSES + 1)}
        found = load_records(path, path.parent, rows)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    print(json.dumps([seconds, peak / 2**30]))
    return found


def main() -> None:
    """Run the command."""
    parser = tool_parser(__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--points", type=int, default=24, help="vertices per polygon")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--readers", nargs="+", default=READERS, choices=READERS)
    parser.add_argument("--file", type=Path, default=Path("output/benchmark_intake.json"))
    parser.add_argument("--read", choices=READERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        read(args.read, args.file)
        return
    if not args.file.is_file():
        make(args.file, args.images, args.points)
    print(f"{args.file}: {args.file.stat().st_size / 2**20:.0f} MiB")
    figures: dict[str, list[tuple[float, float]]] = {reader: [] for reader in args.readers}
    for _ in range(args.repeat):
        for reader, own in figures.items():
            command = [sys.executable, "-W", "ignore", __file__, "--read", reader]
            command += ["--file", str(args.file)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            own.append(tuple(json.loads(done.stdout.strip().splitlines()[-1])))
    print(f"{'reader':10}  {'seconds':>8}  {'peak GiB':>8}")
    for reader, own in figures.items():
        seconds, peak = (statistics.median(values) for values in zip(*own, strict=True))
        print(f"{reader:10}  {seconds:8.1f}  {peak:8.2f}")


if __name__ == "__main__":
    main()
