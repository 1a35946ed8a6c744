"""Stores: one record per image, in safetensors shards below one manifest.

A store is a folder:

    spec.json                what is being made, written first; a run with another spec is refused
    shard_00000.safetensors  the records of some hundred images, written atomically
    manifest.json            written when all shards are there; a store without it is unfinished
    .checked.json            sizes, times and inodes of the shards whose checksums were right
    .locks/                  while it is written

`vild.proposals` and `vild.embeddings` say what a record holds; here is what they share.
"""

from vild.storage.errors import (
    CorruptStoreError,
    MissingImageError,
    StoreBusyError,
    StoreError,
    StoreMismatchError,
    UnfinishedStoreError,
)
from vild.storage.layout import Field, ImageId, ShardEntry, StoreSpec
from vild.storage.pipeline import RunBehind, map_ahead, run_ahead, working_on
from vild.storage.reader import RecordStore
from vild.storage.split import SplitImages, split_digest
from vild.storage.verification import store_faults
from vild.storage.writer import ShardBuilder, StoreWriter, require_disk_space, store_spec

__all__ = [
    "CorruptStoreError",
    "Field",
    "ImageId",
    "MissingImageError",
    "RecordStore",
    "RunBehind",
    "ShardBuilder",
    "ShardEntry",
    "SplitImages",
    "StoreBusyError",
    "StoreError",
    "StoreMismatchError",
    "StoreSpec",
    "StoreWriter",
    "UnfinishedStoreError",
    "map_ahead",
    "require_disk_space",
    "run_ahead",
    "split_digest",
    "store_faults",
    "store_spec",
    "working_on",
]
