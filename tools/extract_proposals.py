#!/usr/bin/env python
r"""Extract class-agnostic proposals of a split, resumable, on any number of processes and machines.

python tools/extract_proposals.py --config-file configs/LVIS/rpn_baseline_r50_fpn.yaml \
    --weights output/rpn/model_final.pth --split lvis_v1_train_base --split lvis_v1_val
python tools/extract_proposals.py ... --num-machines 4 --machine-rank 2   # on the third machine

Each split becomes a folder below --out-dir. Rerun the command to resume after an interruption.
Exit code: 0, or 3 if images could not be read, or 2 for an error.
"""

from __future__ import annotations

import argparse
import logging
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vild_cli.arguments import (
    add_data_arguments,
    add_precision_argument,
    add_store_arguments,
    add_worker_arguments,
    positive_int,
    tool_parser,
)
from vild_cli.errors import one_line_errors

if TYPE_CHECKING:
    from vild.storage import SplitImages

logger = logging.getLogger("extract_proposals")


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = tool_parser(__doc__)
    parser.add_argument("--config-file", required=True, help="configuration of the detector")
    parser.add_argument("--weights", help="checkpoint of the detector; MODEL.WEIGHTS by default")
    parser.add_argument("--split", action="append", required=True, help="registered dataset")
    parser.add_argument("--out-dir", type=Path, default=Path("proposals"))
    parser.add_argument(
        "--source",
        default="rpn",
        choices=("rpn", "detector"),
        help="boxes of the RPN, or boxes refined by the box head of a class-agnostic detector",
    )
    parser.add_argument(
        "--nms-threshold", type=float, default=0.9, help="IoU in (0, 1], class-agnostic"
    )
    parser.add_argument(
        "--topk", type=positive_int, default=1000, help="maximum proposals per image"
    )
    add_precision_argument(parser, "fp32")
    parser.add_argument(
        "--recall",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="report average recall at the end",
    )
    parser.add_argument(
        "--detectron2-pickle",
        action="store_true",
        help="also write SPLIT.pkl, for DATASETS.PROPOSAL_FILES_TRAIN",
    )
    add_store_arguments(parser, images_per_shard=1024)
    add_data_arguments(parser)
    add_worker_arguments(parser)
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the configuration"
    )
    return parser


def work(
    rank: int, world_size: int, device: str, args: argparse.Namespace, splits: list[SplitImages]
) -> None:
    """Extract the shards of one worker.

    Args:
        rank: rank of this worker.
        world_size: number of workers.
        device: device to compute on.
        args: parsed arguments of :func:`build_parser`.
        splits: images of each split.
    """
    import torch

    import vild
    from vild.checkpoint import load_weights
    from vild.config import read_config
    from vild.proposals import ProposalExtractor, extract_proposals
    from vild.proposals.store import FIELDS, KIND
    from vild.storage import StoreWriter, store_spec

    cfg = read_config(args.config_file, args.opts)
    weights = cfg.MODEL.WEIGHTS if args.weights is None else args.weights
    # the RPN needs no RoI heads, so a checkpoint of any variant works
    unused = ("roi_heads.",) if args.source == "rpn" else ()
    extractor = ProposalExtractor(
        cfg,
        partial(load_weights, path=weights, unused=unused),
        source=args.source,
        nms_threshold=args.nms_threshold,
        limit=args.topk,
        precision=args.precision,
        device=device,
    )
    source = extractor.describe()  # hashes the weights, once for all splits
    for split in splits:
        spec = store_spec(KIND, split, FIELDS, source, args.images_per_shard)
        writer = StoreWriter(args.out_dir / split.split, spec, list(split.files))
        if args.retry_failed:
            failed = writer.retry_failed(rank, world_size)
            logger.info("%s: retrying %d failed images", split.split, failed)
        extract_proposals(
            extractor,
            writer,
            split.files,
            rank=rank,
            world_size=world_size,
            threads=args.threads,
        )
        versions = {"vild": vild.__version__, "torch": torch.__version__}
        writer.finish(versions, part=(rank, world_size))
    args.world_size = world_size  # for main(), if it runs in the same process


def report(
    folder: Path, split: str, records: list[dict[str, Any]], args: argparse.Namespace
) -> int:
    """Print a summary of a split's finished store and return the number of failed images."""
    from detectron2.data import MetadataCatalog
    from tqdm import tqdm

    from vild.proposals import ProposalStore, RecallMeter, write_detectron2_proposals

    store = ProposalStore(folder)
    print(f"{folder}: {store.rows} proposals of {len(store)} images")
    if args.detectron2_pickle:
        file = folder.with_name(f"{split}.pkl")
        write_detectron2_proposals(file, ((i, *found) for i, found in store.items()))
        print(f"wrote {file}")
    if args.recall:
        meter = RecallMeter(MetadataCatalog.get(split).novel)
        for record in tqdm(records, desc="recall", unit="img"):
            if record["image_id"] in store:
                boxes, objectness = store[record["image_id"]]
                meter.add(boxes.numpy(), objectness.numpy(), record.get("annotations", []))
        print(meter.table())
    for image, reason in store.failed.items():
        print(f"failed: image {image}: {reason}")
    return len(store.failed)


@one_line_errors
def main() -> int:
    """Run the command and return its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = build_parser().parse_args()
    from vild.config import read_config, register_datasets
    from vild.data import find_split, register_from_arguments
    from vild.engine import run_workers
    from vild.proposals.store import FIELDS
    from vild.storage import SplitImages, require_disk_space
    from vild.utils.files import require_writable_file, require_writable_folder

    failed = 0
    register_from_arguments(args)
    register_datasets(read_config(args.config_file, args.opts))
    records = {split: find_split(split) for split in args.split}
    splits = [SplitImages.from_records(split, own) for split, own in records.items()]
    rows = args.topk * sum(len(split.files) for split in splits)
    need = rows * sum(field.bytes_per_row for field in FIELDS.values())
    logger.info("%s at most", require_disk_space(args.out_dir, need))
    for split in args.split:
        require_writable_folder(args.out_dir / split, "--out-dir")
        if args.detectron2_pickle:
            require_writable_file(args.out_dir / f"{split}.pkl", "--detectron2-pickle")
    run_workers(work, args, (args, splits))
    alone = getattr(args, "world_size", args.num_machines) == 1
    for split, own in records.items():
        folder = args.out_dir / split
        if alone or (folder / "manifest.json").exists():
            failed += report(folder, split, own, args)
        else:
            print(f"{folder}: this process has finished its part; others are still running")
    return 3 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
