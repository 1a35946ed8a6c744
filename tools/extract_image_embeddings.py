#!/usr/bin/env python
r"""Embed the regions of a split with the teacher, resumable, on any number of processes.

python tools/extract_image_embeddings.py --split lvis_v1_train_base \
    --proposals proposals/lvis_v1_train_base --out-dir embeddings
python tools/extract_image_embeddings.py ... --num-machines 4 --machine-rank 2

The store is OUT_DIR/SPLIT. Rerun the command to resume after an interruption, at the next shard.
Exit code: 0, or 3 if images could not be read, or 2 for an error.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vild_cli.arguments import (
    add_data_arguments,
    add_store_arguments,
    add_worker_arguments,
    positive_float,
    positive_int,
    tool_parser,
)
from vild_cli.errors import one_line_errors

if TYPE_CHECKING:
    from vild.storage import ImageId, SplitImages, StoreSpec, StoreWriter

logger = logging.getLogger("extract_image_embeddings")


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = tool_parser(__doc__)
    parser.add_argument("--split", required=True, help="registered dataset")
    parser.add_argument(
        "--proposals", type=Path, required=True, help="store of the split's proposals"
    )
    parser.add_argument("--out-dir", type=Path, default=Path("embeddings"))
    regions = parser.add_argument_group("regions")
    regions.add_argument(
        "--regions", type=positive_int, default=300, help="maximum per image; the best are kept"
    )
    regions.add_argument(
        "--crop-mode",
        default="stretch",
        choices=("stretch", "pad", "clip"),
        help="how a crop becomes a square: stretch, pad, or clip: centre crop, as CLIP does",
    )
    regions.add_argument(
        "--scales",
        type=positive_float,
        nargs="+",
        metavar="SCALE",
        help="sizes of the crops relative to the region; 1 and 1.5 if not given",
    )
    regions.add_argument(
        "--dtype",
        default="float16",
        choices=("float16", "int8"),
        help="data type of the stored embeddings",
    )
    encoder = parser.add_argument_group("encoder")
    encoder.add_argument("--model", default="ViT-B-32", help="open_clip model, or vild-shapes")
    encoder.add_argument(
        "--pretrained", default="openai", help="open_clip tag or checkpoint; '' for random weights"
    )
    encoder.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "bf16", "fp16", "fp32"),
        help="auto: bf16 on GPUs that support it, otherwise fp32",
    )
    encoder.add_argument("--batch-size", type=positive_int, default=256, help="crops per batch")
    add_store_arguments(parser, images_per_shard=256)
    add_data_arguments(parser)
    add_worker_arguments(parser)
    return parser


def open_writer(folder: Path, spec: StoreSpec, images: Sequence[ImageId]) -> StoreWriter:
    """Open the store for writing.

    Raises:
        StoreMismatchError: the store was started with other options. The message names the option
            if the precision differs, whose default depends on the machine.
    """
    from vild.storage import StoreMismatchError, StoreWriter
    from vild.storage.layout import SPEC, read_json

    try:
        return StoreWriter(folder, spec, images)
    except StoreMismatchError as error:
        if "source.teacher.precision: " not in str(error):
            raise
        precision = read_json(folder / SPEC)["source"]["teacher"]["precision"]
        raise StoreMismatchError(
            f"{error} To continue it on this machine, use --precision {precision}."
        ) from None


def work(
    rank: int, world_size: int, device: str, args: argparse.Namespace, split: SplitImages
) -> None:
    """Embed the shards of one worker.

    Args:
        rank: rank of this worker.
        world_size: number of workers.
        device: device to compute on.
        args: parsed arguments of :func:`build_parser`.
        split: images to embed.
    """
    import open_clip
    import torch

    import vild
    from vild.embeddings import CropRule, RegionCropper, build_teacher, extract_embeddings
    from vild.embeddings.store import KIND, embedding_source, fields
    from vild.embeddings.teacher import default_precision
    from vild.proposals import ProposalStore
    from vild.storage import require_disk_space, store_spec

    torch.manual_seed(0)  # equal weights in all workers if they are random
    precision = default_precision(device) if args.precision == "auto" else args.precision
    teacher = build_teacher(args.model, args.pretrained or None, device, precision)
    proposals = ProposalStore(args.proposals)
    rule = CropRule(args.crop_mode)
    if args.scales is not None:
        rule = replace(rule, scales=tuple(args.scales))
    source = embedding_source(
        teacher.describe(), rule, {"digest": proposals.digest}, args.regions, args.batch_size
    )
    images = list(split.files)
    fields_of = fields(teacher.dimension, args.dtype)
    spec = store_spec(KIND, split, fields_of, source, args.images_per_shard)
    writer = open_writer(args.out_dir / args.split, spec, images)
    if args.retry_failed:
        logger.info("retrying %d failed images", writer.retry_failed(rank, world_size))
    rows = sum(min(proposals.count(i), args.regions) for i in images if i in proposals)
    missing = len(writer.pending()) / spec.shards
    need = require_disk_space(writer.folder, int(rows * spec.bytes_per_row * missing))
    if rank == 0:
        logger.info("%d regions x %d crops; %s", rows, len(rule.scales), need)
    cropper = RegionCropper(
        proposals,
        split.files,
        rule,
        limit=args.regions,
        size=teacher.image_size,
        batch_size=args.batch_size,
        device=device,
        threads=args.threads,
        normalise=teacher.statistics,
        interpolation=teacher.interpolation,
    )
    extract_embeddings(
        cropper,
        partial(teacher.encode_image, normalised=True),
        writer,
        dtype=args.dtype,
        rank=rank,
        world_size=world_size,
    )
    versions = {"torch": torch.__version__, "open_clip": open_clip.__version__}
    writer.finish({"vild": vild.__version__, **versions}, part=(rank, world_size))
    args.world_size = world_size  # for main(), if it runs in the same process


@one_line_errors
def main() -> int:
    """Run the command and return its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = build_parser().parse_args()
    from vild.data import find_split, register_from_arguments
    from vild.embeddings import EmbeddingStore
    from vild.engine import run_workers
    from vild.proposals import ProposalStore
    from vild.storage import SplitImages
    from vild.utils.files import require_writable_folder

    folder = args.out_dir / args.split
    register_from_arguments(args)
    records = find_split(args.split)
    ProposalStore(args.proposals).check_split(args.split, records)
    require_writable_folder(folder, "--out-dir")
    run_workers(work, args, (args, SplitImages.from_records(args.split, records)))
    alone = getattr(args, "world_size", args.num_machines) == 1
    if not alone and not (folder / "manifest.json").exists():
        print(f"{folder}: this process has finished its part; others are still running")
        return 0
    store = EmbeddingStore(folder)
    print(f"{folder}: {store.rows} regions of {len(store)} images, D = {store.dimension}")
    for image, reason in store.failed.items():
        print(f"failed: image {image}: {reason}")
    return 3 if store.failed else 0


if __name__ == "__main__":
    sys.exit(main())
