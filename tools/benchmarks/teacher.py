"""Measurements of tools/benchmark_teacher.py."""

from __future__ import annotations

import argparse
import io
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor, multiprocessing
from torch.nn import functional

from benchmarks.timing import alternate, choose_device, describe_machine
from vild.embeddings import (
    CropRule,
    EmbeddingStore,
    RegionCropper,
    build_teacher,
    crop_and_resize,
    extract_embeddings,
)
from vild.embeddings.open_clip_teacher import CLIP_MEAN, CLIP_STD
from vild.embeddings.store import KIND, embedding_source, fields
from vild.embeddings.teacher import default_precision
from vild.proposals import ProposalStore
from vild.proposals.store import FIELDS as PROPOSAL_FIELDS
from vild.proposals.store import KIND as PROPOSALS
from vild.storage import SplitImages, StoreWriter, store_spec

SIZE, DIMENSION = 224, 512
IMAGE = (480, 640)


def random_boxes(
    count: int, draw: np.random.Generator, sides: tuple[float, float] = (12, 400)
) -> np.ndarray:
    """Make boxes (R, 4) xyxy float32, with log-uniform sides between two lengths."""
    height, width = IMAGE
    side = np.exp(draw.uniform(*np.log(sides), (count, 1)))
    side = side * np.exp(draw.uniform(-0.4, 0.4, (count, 2)))
    corners = draw.uniform(0, 1, (count, 2)) * np.maximum(1, [width, height] - side)
    boxes = np.concatenate([corners, np.minimum(corners + side, [width, height])], axis=1)
    return boxes.astype(np.float32)


def random_image(draw: np.random.Generator) -> Image.Image:
    """Make an image with as much detail as a photograph."""
    small = draw.integers(0, 255, (IMAGE[0] // 8, IMAGE[1] // 8, 3), np.uint8)
    return Image.fromarray(small).resize(IMAGE[::-1], Image.Resampling.BICUBIC)


def make_inputs(folder: Path, count: int, regions: int) -> tuple[dict[int, str], ProposalStore]:
    """Make JPEG images and a store of their proposals."""
    draw = np.random.default_rng(0)
    images = list(range(count))
    files = {image: str(folder / f"{image}.jpg") for image in images}
    spec = store_spec(PROPOSALS, SplitImages("benchmark", files, ""), PROPOSAL_FIELDS, {}, 1024)
    writer = StoreWriter(folder / "proposals", spec, images)
    with writer.shard(0) as builder:
        for image in images:
            random_image(draw).save(files[image], quality=90)
            objectness = np.sort(draw.normal(size=regions))[::-1]
            arrays = {"boxes": random_boxes(regions, draw), "objectness": objectness}
            builder.add(image, *IMAGE, arrays)
    writer.finish({})
    return files, ProposalStore(folder / "proposals")


def embedding_writer(
    folder: Path, images: list[int], dimension: int, per_shard: int
) -> StoreWriter:
    """Open a new store of embeddings for writing."""
    teacher = {"name": "random", "fingerprint": "", "dimension": dimension}
    source = embedding_source(teacher, CropRule(), {"digest": ""}, 300, 256)
    split = SplitImages("benchmark", dict.fromkeys(images, ""), "")
    spec = store_spec(KIND, split, fields(dimension, "float16"), source, per_shard)
    return StoreWriter(folder, spec, images)


def crops(args: argparse.Namespace) -> None:
    """Compare this project's crops with PIL's crop and open_clip's preprocessing, box by box."""
    draw = np.random.default_rng(0)
    image = random_image(draw)
    pixels = torch.from_numpy(np.array(image)).to(args.device)
    preprocess = open_clip.image_transform(SIZE, is_train=False, resize_mode="squash")
    mean, std = (torch.tensor(values, device=args.device) for values in (CLIP_MEAN, CLIP_STD))
    buffer = torch.empty(args.batch_size, 3, SIZE, SIZE, device=args.device)
    kinds = {"small": (8, 32), "medium": (32, 96), "large": (96, 300), "all": (12, 400)}
    for kind, sides in kinds.items():
        boxes = torch.from_numpy(random_boxes(300, draw, sides))
        whole = [tuple(box) for box in boxes.round().int().tolist()]

        def theirs(boxes: list[tuple[int, ...]] = whole) -> None:
            for start in range(0, len(boxes), args.batch_size):
                some = boxes[start : start + args.batch_size]
                torch.stack([preprocess(image.crop(box)) for box in some])

        def ours(boxes: Tensor = boxes) -> None:
            for some in boxes.split(args.batch_size):
                crop_and_resize(pixels, some, SIZE, out=buffer[: len(some)], normalise=(mean, std))

        seconds = alternate(7, {"theirs": theirs, "ours": ours})
        print(
            f"crops, {kind} boxes: PIL + open_clip {300 / seconds['theirs']:.0f}/s, "
            f"crop_and_resize {300 / seconds['ours']:.0f}/s on {args.device}: "
            f"{seconds['theirs'] / seconds['ours']:.2f} times as fast"
        )


def extraction(args: argparse.Namespace, folder: Path) -> None:
    """Compare the whole extraction with the encoder alone on prepared crops."""
    files, proposals = make_inputs(folder, args.images, args.regions)
    torch.manual_seed(0)
    teacher = build_teacher("ViT-B-32", None, args.device, args.precision)
    total = args.images * args.regions * 2
    batch = torch.rand(args.batch_size, 3, SIZE, SIZE, device=args.device)
    sizes = [args.batch_size] * (total // args.batch_size) + [total % args.batch_size]
    runs = iter(range(100))

    def alone() -> None:
        for size in sizes:
            if size:
                teacher.encode_image(batch[:size], normalised=True).cpu()

    def whole() -> None:
        writer = embedding_writer(folder / f"run{next(runs)}", list(files), DIMENSION, 256)
        cropper = RegionCropper(
            proposals,
            files,
            CropRule(),
            limit=300,
            size=SIZE,
            batch_size=args.batch_size,
            device=args.device,
            normalise=teacher.statistics,
        )
        encode = partial(teacher.encode_image, normalised=True)
        extract_embeddings(cropper, encode, writer, progress=False)
        writer.finish({})

    seconds = alternate(3, {"alone": alone, "whole": whole})
    print(
        f"extraction, ViT-B/32 {args.precision} on {args.device}, {total} crops: encoder alone "
        f"{total / seconds['alone']:.1f}/s, whole {total / seconds['whole']:.1f}/s: "
        f"{seconds['alone'] / seconds['whole']:.1%} of the encoder alone"
    )


def store(folder: Path) -> None:
    """Compare size and random reads of the store with one npz per image and a zip of pth files."""
    images, regions = list(range(512)), 300
    draw = np.random.default_rng(0)
    writer = embedding_writer(folder / "store", images, DIMENSION, 256)
    (folder / "npz").mkdir()
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        for number in writer.pending():
            with writer.shard(number) as builder:
                for image in builder.images:
                    vectors = draw.normal(size=(regions, DIMENSION)).astype(np.float16)
                    arrays = {
                        "boxes": random_boxes(regions, draw),
                        "objectness": draw.normal(size=regions).astype(np.float32),
                        "embeddings": vectors,
                    }
                    builder.add(image, *IMAGE, arrays)
                    np.savez(folder / "npz" / f"{image}.npz", **arrays)
                    buffer = io.BytesIO()
                    torch.save({k: torch.from_numpy(v) for k, v in arrays.items()}, buffer)
                    archive.writestr(f"{image}.pth", buffer.getvalue())
    writer.finish({})
    payload = len(images) * regions * writer.spec.bytes_per_row
    on_disk = sum(file.stat().st_size for file in (folder / "store").rglob("*") if file.is_file())
    print(f"store: {on_disk / payload - 1:.3%} more than the payload of {payload / 1e6:.0f} MB")
    opened, order = EmbeddingStore(folder / "store"), draw.permutation(images).tolist()
    zipped = zipfile.ZipFile(folder / "all.zip")

    def read_npz() -> None:
        for image in order:
            with np.load(folder / "npz" / f"{image}.npz") as file:
                for name in file.files:
                    file[name]

    def read_zip() -> None:
        for image in order:
            torch.load(io.BytesIO(zipped.read(f"{image}.pth")))

    def read_store() -> None:
        for image in order:
            opened[image]

    seconds = alternate(5, {"npz": read_npz, "zip": read_zip, "store": read_store})
    print(
        f"random reads: {len(order) / seconds['store']:.0f} records/s, "
        f"{seconds['npz'] / seconds['store']:.1f} times as fast as npz files, "
        f"{seconds['zip'] / seconds['store']:.1f} times as fast as pth files in a zip"
    )


OPENING = """
import sys, time
import torch, vild.embeddings
from vild.embeddings import EmbeddingStore, build_teacher
def resident():
    with open("/proc/self/status") as file:
        return next(int(l.split()[1]) / 1e3 for l in file if l.startswith("VmRSS"))
before, start = resident(), time.perf_counter()
store = EmbeddingStore(sys.argv[1])
seconds = time.perf_counter() - start
images = list(store)
for image in images[:: len(images) // 500]:
    store[image]
print(f"opening {len(store)} images: {seconds:.2f} s; {resident() - before:.0f} MB more after it"
      " and 500 reads")
"""


def opening(folder: Path) -> None:
    """Measure opening a store of 100,000 images, in a separate process."""
    images = list(range(100_000))
    writer = embedding_writer(folder / "many", images, 8, 256)
    rows = {
        "boxes": np.tile(np.float32([0, 0, 1, 1]), (2, 1)),
        "objectness": np.zeros(2),
        "embeddings": np.full((2, 8), 8**-0.5),
    }
    for number in writer.pending():
        with writer.shard(number) as builder:
            for image in builder.images:
                builder.add(image, *IMAGE, rows)
    writer.finish({})
    command = [sys.executable, "-W", "ignore", "-c", OPENING, str(folder / "many")]
    for _ in range(3):
        subprocess.run(command, check=True)


def stub(batch: Tensor) -> Tensor:
    """Return embeddings at once, in place of an encoder."""
    return functional.normalize(torch.ones(len(batch), DIMENSION), dim=1)


def _share(rank: int, world_size: int, folder: Path, images: int, gate: Any, times: Any) -> None:
    torch.set_num_threads(1)  # one thread per worker
    files = {image: str(folder / f"{image}.jpg") for image in range(images)}
    writer = embedding_writer(folder / f"shared{world_size}", list(files), DIMENSION, 4)
    proposals = ProposalStore(folder / "proposals")
    cropper = RegionCropper(
        proposals, files, CropRule(), limit=300, size=SIZE, batch_size=256, threads=1
    )
    gate.wait()  # imports are not timed
    start = time.perf_counter()
    extract_embeddings(cropper, stub, writer, rank=rank, world_size=world_size, progress=False)
    times.put(time.perf_counter() - start)
    writer.finish({})


def processes(folder: Path) -> None:
    """Measure reading, cropping and storing with one and two workers, with a stub encoder."""
    images = 64
    make_inputs(folder, images, 100)
    context = multiprocessing.get_context("spawn")
    ratios = []
    for _ in range(3):
        took = []
        for count in (1, 2):
            gate, times = context.Barrier(count), context.Queue()
            workers = [
                context.Process(target=_share, args=(r, count, folder, images, gate, times))
                for r in range(count)
            ]
            for worker in workers:
                worker.start()
            took.append(max(times.get() for _ in workers))
            for worker in workers:
                worker.join()
        one, two = (EmbeddingStore(folder / f"shared{count}") for count in (1, 2))
        assert one.digest == two.digest
        ratios.append(took[1] / took[0])
        for count in (1, 2):
            for file in (folder / f"shared{count}").iterdir():
                file.unlink()
    print(
        f"two processes on {images * 200} crops: the same store in "
        f"{statistics.median(ratios):.1%} of the time of one (encoder stubbed)"
    )


def benchmark(args: argparse.Namespace, parts: Sequence[str]) -> int:
    """Print the measurements of the given parts and return the exit code."""
    args.device = choose_device(args.device)
    args.precision = args.precision or default_precision(args.device)
    print(describe_machine(args.device))
    with tempfile.TemporaryDirectory() as temporary:
        jobs = {
            "crops": lambda folder: crops(args),
            "extraction": lambda folder: extraction(args, folder),
            "store": store,
            "opening": opening,
            "processes": processes,
        }
        for part in parts:
            folder = Path(temporary) / part
            folder.mkdir()
            jobs[part](folder)
    return 0
