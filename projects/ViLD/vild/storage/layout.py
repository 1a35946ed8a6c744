"""File formats of a store.

Legend: N images, R rows (regions) of an image.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from safetensors.numpy import save

from vild.storage.errors import CorruptStoreError, StoreMismatchError
from vild.utils.files import atomic_path

FORMAT = "vild-store-2"  # version 1 recorded only image ids, which splits may share
SPEC, MANIFEST, CHECKED, LOCKS = "spec.json", "manifest.json", ".checked.json", ".locks"
BLOCK = 1 << 22  # bytes to read at a time
HEADER_LENGTH = 8  # bytes of the length field of a safetensors file
HEADER_KEY = "vild"  # one key: safetensors does not keep the order of several

OUTDATED = (
    "was written by an earlier version, which did not record the images of the split. Remove the "
    "store and rerun the command that made it"
)

ImageId = int | str
Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
_T = TypeVar("_T")


class Field(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One array of a record.

    Attributes:
        dtype: numpy's name of the dtype.
        columns: shape of a row: (columns,); 0 for scalars.
    """

    dtype: str
    columns: int = 0

    @property
    def bytes_per_row(self) -> int:
        """Bytes per row on disk."""
        return np.dtype(self.dtype).itemsize * max(1, self.columns)

    def shape(self, rows: int) -> tuple[int, ...]:
        """Return the shape of the array for a number of rows."""
        return (rows, self.columns) if self.columns else (rows,)


class StoreSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """Everything that defines a store's content; runs may share a folder only if it is equal.

    Attributes:
        kind: ``proposals`` or ``embeddings``.
        split: dataset whose images the store covers.
        fields: arrays of a record by name.
        source: everything else that affects the content (weights' hash, crop rule, ...), as json.
        images: number of images.
        images_sha256: sha256 of the image ids, in order.
        split_sha256: sha256 of ids, file names and sizes of the images; see
            :func:`vild.storage.split_digest`.
        images_per_shard: number of images per shard.
    """

    kind: str
    split: str
    fields: dict[str, Field]
    source: dict[str, Any]
    images: Positive
    images_sha256: str
    split_sha256: str
    images_per_shard: Positive

    @property
    def bytes_per_row(self) -> int:
        """Bytes per region on disk."""
        return sum(field.bytes_per_row for field in self.fields.values())

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.images // self.images_per_shard)

    @cached_property
    def sha256(self) -> str:
        """sha256 of the spec; every shard records the one it was made with."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return the spec as plain json."""
        return msgspec.to_builtins(self)

    @classmethod
    def from_json(cls, data: Any, where: str) -> StoreSpec:
        """Return the spec that :meth:`to_json` described.

        Raises:
            StoreMismatchError: it was written by an earlier version.
            CorruptStoreError: keys are missing or unknown, or values are of another type.
        """
        if isinstance(data, Mapping) and "fields" in data and "split_sha256" not in data:
            raise StoreMismatchError(f"{where} {OUTDATED}")
        return convert_json(data, cls, where)

    def require_equal(self, other: StoreSpec, where: Path) -> None:
        """Raise unless the spec in a folder equals the requested one.

        Args:
            other: the requested spec.
            where: the folder.

        Raises:
            StoreMismatchError: the specs differ; the message lists the differences.
        """
        found = differences(self.to_json(), other.to_json())
        if self.kind != other.kind:  # then everything else differs as well
            found = differences({"kind": self.kind}, {"kind": other.kind})
        if found:
            raise StoreMismatchError(
                f"{where} holds a different store; stored / requested: {'; '.join(found)}. Choose "
                "another folder, or remove this one if it is no longer needed."
            )


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return the differences of two json values, one line per leaf: ``teacher.name: 'a' / 'b'``."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        prefix = f"{path}." if path else ""
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{prefix}{k}")]
    return [] if old == new else [f"{path}: {old!r} / {new!r}"]


class ShardEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A shard's entry in the manifest.

    Attributes:
        file: file name in the store's folder.
        bytes: size of the file.
        header_sha256: sha256 of the length field and the header.
        data_sha256: sha256 of the rest.
        images: image ids, in order.
        rows: R of each image.
        heights: height of each image in pixels.
        widths: width of each image in pixels.
        failed: (id, reason) of images that could not be read; they have no record.
        spec_sha256: sha256 of the spec it was made with; None in shards of earlier versions.
    """

    file: str
    bytes: Count
    header_sha256: str
    data_sha256: str
    images: list[ImageId]
    rows: list[Count]
    heights: list[Count]
    widths: list[Count]
    failed: list[tuple[ImageId, str]]
    spec_sha256: str | None = None

    def __post_init__(self) -> None:
        if not len(self.images) == len(self.rows) == len(self.heights) == len(self.widths):
            raise ValueError("expected lists of equal length")
        if not {image for image, _ in self.failed} <= set(self.images):
            raise ValueError("expected failed images to be among the images")


def convert_json(data: Any, kind: type[_T], where: str) -> _T:
    """Convert json values to a :class:`StoreSpec` or :class:`ShardEntry`, or a list of them.

    Raises:
        CorruptStoreError: keys are missing or unknown, or values are of another type.
    """
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise CorruptStoreError(f"{where}: damaged description of a store ({error})") from None


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard_{number:05d}.safetensors"


def images_digest(images: Sequence[ImageId]) -> str:
    """Return the sha256 of image ids, in order."""
    return hashlib.sha256(json.dumps(list(images)).encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write a json file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(_compact(value), encoding="utf-8")


def create_json(path: Path, value: Any) -> None:
    """Write a json file atomically unless it exists; only one of several processes succeeds."""
    try:
        with atomic_path(path) as temporary:
            temporary.write_text(_compact(value), encoding="utf-8")
            try:
                os.link(temporary, path)  # unlike a rename, it fails if the file exists
            except OSError:  # no hard links on this file system: the last process wins
                if path.exists():
                    raise FileExistsError(path) from None
    except FileExistsError:
        pass


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def read_json(path: Path) -> Any:
    """Read a json file of a store.

    Raises:
        CorruptStoreError: it is not valid json.
    """
    try:
        return msgspec.json.decode(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CorruptStoreError(
            f"{path} is damaged ({error}). Remove it and rerun the command that made the store, or "
            "restore it from a copy."
        ) from None


def file_state(path: Path) -> list[int]:
    """Return values that change whenever a file is written or copied.

    Copies may keep size and modification time (``cp -a``), but neither the time of the last status
    change nor the inode. The device is left out: machines that share a file system number it
    differently.
    """
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def write_shard(path: Path, arrays: Mapping[str, np.ndarray], described: Mapping[str, Any]) -> None:
    """Write one shard atomically.

    Args:
        path: file to write.
        arrays: every field, concatenated over all images.
        described: ``images``, ``rows``, ``heights``, ``widths``, ``failed``, ``spec_sha256`` as in
            the manifest.
    """
    # serialise first: the checksum of the data goes into the header
    data = save(dict(arrays))
    start = data_start(data)
    header = {**described, "data_sha256": hashlib.sha256(memoryview(data)[start:]).hexdigest()}
    metadata = {HEADER_KEY: json.dumps(header, separators=(",", ":"))}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(dict(arrays), metadata=metadata))


def data_start(beginning: bytes) -> int:
    """Return the offset of the data of a safetensors file, given its first bytes."""
    return HEADER_LENGTH + int.from_bytes(beginning[:HEADER_LENGTH], "little")


def read_entry(path: Path) -> ShardEntry:
    """Return a shard's manifest entry from its header, without reading the data.

    Raises:
        CorruptStoreError: the header is damaged, or the file size differs from the recorded one.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = file.read(HEADER_LENGTH)
        start = data_start(length)
        header = file.read(start - HEADER_LENGTH) if start <= size else b""
    try:
        parsed = json.loads(header)
        described = json.loads(parsed.pop("__metadata__")[HEADER_KEY])
        expected = start + max((tensor["data_offsets"][1] for tensor in parsed.values()), default=0)
        described |= {"file": path.name, "bytes": size}
        described |= {"header_sha256": hashlib.sha256(length + header).hexdigest()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptStoreError(f"{path}: damaged header ({error!r})") from None
    if expected != size:
        raise CorruptStoreError(f"{path}: expected {expected} bytes, got {size}: truncated")
    return convert_json(described, ShardEntry, str(path))


def manifest_digest(spec: Mapping[str, Any], shards: Sequence[Mapping[str, Any]]) -> str:
    """Return the sha256 of everything that defines a store's content; other artefacts record it."""
    content = json.dumps([spec, shards], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


def file_digests(path: Path) -> tuple[str, str]:
    """Read a shard and return (sha256 of the header with its length field, sha256 of the data)."""
    data = hashlib.sha256()
    with path.open("rb") as file:
        length = file.read(HEADER_LENGTH)
        # a damaged length must not request more memory than the size of the file
        header = file.read(min(data_start(length), path.stat().st_size) - HEADER_LENGTH)
        while block := file.read(BLOCK):
            data.update(block)
    return hashlib.sha256(length + header).hexdigest(), data.hexdigest()
