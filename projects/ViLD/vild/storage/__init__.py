"""Stores: one record per image, in safetensors shards listed by one manifest.

A store is a folder:

    spec.json                what the store contains, written first; other specs are refused
    shard_00000.safetensors  the records of some hundred images, written atomically
    manifest.json            written when all shards exist; a store without it is unfinished
    .checked.json            sizes, times and inodes of the shards whose checksums were verified
    .locks/                  lock files used while writing

`vild.proposals` and `vild.embeddings` define the records; this package holds the shared code.
"""

from vild.storage.errors import (
    CorruptStoreError,
    MissingImageError,
    StoreBusyError,
    StoreError,
    StoreMismatchError,
    UnfinishedStoreError,
)
from vild.storage.layout import Field, ImageId, StoreSpec
from vild.storage.pipeline import BackgroundJob, log_failing_image, map_ahead, prefetch
from vild.storage.reader import RecordStore
from vild.storage.split_images import SplitImages, split_digest
from vild.storage.verification import store_faults
from vild.storage.writer import ShardBuilder, StoreWriter, require_disk_space, store_spec

__all__ = [
    "BackgroundJob",
    "CorruptStoreError",
    "Field",
    "ImageId",
    "MissingImageError",
    "RecordStore",
    "ShardBuilder",
    "SplitImages",
    "StoreBusyError",
    "StoreError",
    "StoreMismatchError",
    "StoreSpec",
    "StoreWriter",
    "UnfinishedStoreError",
    "log_failing_image",
    "map_ahead",
    "prefetch",
    "require_disk_space",
    "split_digest",
    "store_faults",
    "store_spec",
]
