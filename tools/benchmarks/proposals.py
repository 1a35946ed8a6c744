"""Measurements of tools/benchmark_proposals.py."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.teacher import random_image
from benchmarks.timing import alternate, choose_device, describe_machine
from vild.config import read_config
from vild.data.images import read_image
from vild.proposals import ProposalExtractor, ProposalStore, extract_proposals
from vild.proposals.extraction import PreparedImage
from vild.proposals.store import FIELDS, KIND, Proposals
from vild.storage import SplitImages, StoreWriter, map_ahead, store_spec

Extract = Callable[[ProposalExtractor, StoreWriter, dict[int, str], int], None]


class StandIn(ProposalExtractor):
    """An extractor that waits instead of running a detector, as the main thread waits for a GPU."""

    seconds = 0.0

    def propose(self, image: PreparedImage) -> Proposals:
        """Return 1000 equal boxes of the prepared image's mean."""
        time.sleep(self.seconds)
        value = float(image.pixels[:, ::8, ::8].float().mean())
        return Proposals(torch.full((1000, 4), value), torch.zeros(1000))


def resized_between(
    extractor: ProposalExtractor, writer: StoreWriter, files: dict[int, str], threads: int
) -> None:
    """Read images ahead, but resize and convert each after the detector finished the last one."""
    for number in writer.pending():
        with writer.shard(number) as builder:
            reading = map_ahead(read_image, [files[image] for image in builder.images], threads)
            for image_id, future in zip(builder.images, reading, strict=True):
                image = extractor.prepare(future.result())
                found = extractor.propose(image._replace(pixels=image.pixels.float()))
                builder.add(image_id, image.height, image.width, found._asdict())


def resized_ahead(
    extractor: ProposalExtractor, writer: StoreWriter, files: dict[int, str], threads: int
) -> None:
    """Extract like tools/extract_proposals.py."""
    extract_proposals(extractor, writer, files, threads=threads, progress=False)


def benchmark(args: argparse.Namespace) -> int:
    """Print the requested measurements and return the exit code."""
    args.device = choose_device(args.device)
    print(describe_machine(args.device))
    kind = StandIn if args.stand_in_ms else ProposalExtractor
    extractor = kind(read_config(args.config_file), lambda _: None, device=args.device)
    if isinstance(extractor, StandIn):
        extractor.seconds = args.stand_in_ms / 1e3
    with tempfile.TemporaryDirectory() as temporary:
        folder, draw = Path(temporary), np.random.default_rng(0)
        files = {image: str(folder / f"{image}.jpg") for image in range(args.images)}
        for file in files.values():
            random_image(draw).save(file, quality=90)
        spec = store_spec(KIND, SplitImages("benchmark", files, ""), FIELDS, {}, 1024)
        prepared = [extractor.prepare(read_image(file)) for file in files.values()]
        runs = iter(range(sys.maxsize))
        digests = set()

        def write(extract: Extract) -> None:
            writer = StoreWriter(folder / f"run{next(runs)}", spec, list(files))
            extract(extractor, writer, files, args.threads)
            writer.finish({})
            digests.add(ProposalStore(writer.folder).digest)

        seconds = alternate(
            args.rounds,
            {
                "alone": lambda: [extractor.propose(image) for image in prepared],
                "between": lambda: write(resized_between),
                "ahead": lambda: write(resized_ahead),
            },
        )
    rates = {job: args.images / took for job, took in seconds.items()}
    detector = f"waiting {args.stand_in_ms:g} ms" if args.stand_in_ms else args.config_file
    print(
        f"extraction, {detector} on {args.device}: detector alone {rates['alone']:.2f} images/s, "
        f"resized between {rates['between'] / rates['alone']:.1%} of it, resized ahead "
        f"{rates['ahead'] / rates['alone']:.1%}: {rates['ahead'] / rates['between']:.2f} times as "
        f"fast; {'equal stores' if len(digests) == 1 else 'DIFFERENT stores'}"
    )
    return 0 if len(digests) == 1 else 1
