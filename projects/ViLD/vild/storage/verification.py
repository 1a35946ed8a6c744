"""Find all faults of a store; used by tools/verify_store.py."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from vild.storage.errors import StoreError
from vild.storage.layout import (
    FORMAT,
    MANIFEST,
    ShardEntry,
    StoreSpec,
    convert_json,
    file_digests,
    images_digest,
    manifest_digest,
    read_entry,
    read_json,
    shard_name,
)
from vild.storage.reader import open_tensors

# (arrays of one image, (height, width)) -> faults
RecordCheck = Callable[[dict[str, Tensor], tuple[int, int]], list[str]]


def store_faults(
    folder: str | os.PathLike[str], check: RecordCheck | None = None, progress: bool = False
) -> list[str]:
    """Read a whole store and return its faults; an empty list if there are none.

    Args:
        folder: the store.
        check: additional check of one record, depending on the kind of store.
        progress: show a progress bar.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
        spec = StoreSpec.from_json(manifest["spec"], str(path))
        entries = convert_json(manifest["shards"], list[ShardEntry], str(path))
        digest = manifest_digest(manifest["spec"], manifest["shards"])
    except FileNotFoundError:
        return [f"{path} is missing: the store is unfinished"]
    except StoreError as error:
        return [str(error)]
    except OSError as error:
        return [f"{path} cannot be read ({error})"]
    except (KeyError, TypeError) as error:
        return [f"{path}: expected a manifest with a spec and shards, got {error!r}"]
    faults = []
    if manifest.get("format") != FORMAT:
        faults.append(f"{path}: expected the format {FORMAT!r}, got {manifest.get('format')!r}")
    if manifest.get("digest") != digest:
        faults.append(f"{path} was modified: its digest does not match its content")
    images = [image for entry in entries for image in entry.images]
    if len(images) != spec.images or images_digest(images) != spec.images_sha256:
        faults.append(f"{path}: its images differ from those in the spec")
    if len(set(images)) != len(images):
        faults.append(f"{path}: an image occurs more than once")
    names = [shard_name(number) for number in range(spec.shards)]
    if names != [entry.file for entry in entries]:
        faults.append(f"{path}: expected the shards {names[0]} to {names[-1]}")
    faults += [
        f"{file} does not belong to the store"
        for file in sorted(folder.glob("*.safetensors"))
        if file.name not in names
    ]
    for name, entry in tqdm(
        list(zip(names, entries, strict=False)), unit="shard", disable=not progress
    ):
        try:
            faults += _shard_faults(folder / name, entry, spec, check)
        except OSError as error:
            faults.append(f"{folder / name} cannot be read ({error})")
    return faults


def _shard_faults(
    path: Path, expected: ShardEntry, spec: StoreSpec, check: RecordCheck | None
) -> Iterator[str]:
    if not path.is_file():
        yield f"{path} is missing"
        return
    try:
        entry = read_entry(path)
    except StoreError as error:
        yield str(error)
        return
    header, data = file_digests(path)
    if header != expected.header_sha256:
        yield f"{path}: wrong checksum of the header"
    if data != expected.data_sha256:
        yield f"{path}: wrong checksum of the data"
    if entry.spec_sha256 not in (None, spec.sha256):
        yield f"{path}: made with other options than those in the manifest"
    if (entry.images, entry.rows) != (expected.images, expected.rows):
        yield f"{path}: its images differ from those in the manifest"
        return
    try:
        tensors = open_tensors(path)
    except SafetensorError as error:
        yield f"{path}: not a safetensors file ({error})"
        return
    rows = sum(entry.rows)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wanted = {name: field.shape(rows) for name, field in spec.fields.items()}
    if shapes != wanted:
        yield f"{path}: expected the arrays {wanted}, got {shapes}"
        return
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            yield f"{path}: {name} has non-finite values"
    if check is None:
        return
    start = 0
    for image, count, size in zip(
        entry.images, entry.rows, zip(entry.heights, entry.widths, strict=True), strict=True
    ):
        record = {name: tensor[start : start + count] for name, tensor in tensors.items()}
        try:
            yield from (f"{path}: image {image!r}: {fault}" for fault in check(record, size))
        except KeyError as error:  # the kind in the manifest does not match the arrays
            yield f"{path}: expected an array {error}, got {sorted(record)}"
            return
        start += count
