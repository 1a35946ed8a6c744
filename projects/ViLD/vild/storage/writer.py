"""Write a store from any number of processes on any number of machines, with resuming.

The unit of work is the shard: rank r of w writes shards r, r + w, ... Shards are written
atomically, and finished ones are skipped. The processes share only the folder and need no
communication.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from filelock import FileLock, Timeout

from vild.storage.errors import CorruptStoreError, StoreBusyError, StoreError
from vild.storage.layout import (
    CHECKED,
    FORMAT,
    LOCKS,
    MANIFEST,
    SPEC,
    ImageId,
    ShardEntry,
    StoreSpec,
    create_json,
    file_state,
    images_digest,
    manifest_digest,
    read_entry,
    read_json,
    shard_name,
    write_json,
    write_shard,
)
from vild.storage.pipeline import BackgroundJob
from vild.storage.split_images import SplitImages
from vild.utils.files import remove_leftovers
from vild.utils.formatting import format_size

logger = logging.getLogger(__name__)


class ShardBuilder:
    """Collects the records of one shard; get one from :meth:`StoreWriter.shard`."""

    def __init__(self, spec: StoreSpec, images: Sequence[ImageId]) -> None:
        self.images = images
        self._spec = spec
        self._arrays: dict[str, list[np.ndarray]] = {name: [] for name in spec.fields}
        self._sizes: list[tuple[int, int, int]] = []
        self._failed: list[tuple[ImageId, str]] = []

    def add(self, image_id: ImageId, height: int, width: int, arrays: Mapping[str, Any]) -> None:
        """Append the record of the next image.

        Args:
            image_id: must be the next of :attr:`images`.
            height: image height in pixels.
            width: image width in pixels.
            arrays: every field of the store, R rows each.

        Raises:
            ValueError: wrong shapes or row counts, or non-finite values.
        """
        self._expect(image_id)
        rows = {len(array) for array in arrays.values()}
        if arrays.keys() != self._spec.fields.keys() or len(rows) != 1:
            got = {name: np.shape(array) for name, array in arrays.items()}
            raise ValueError(
                f"image {image_id}: expected the fields {sorted(self._spec.fields)} with one row "
                f"count, got {got}"
            )
        (count,) = rows
        for name, field in self._spec.fields.items():
            array = np.asarray(arrays[name])
            if array.shape != field.shape(count):
                raise ValueError(
                    f"image {image_id}: expected {name} of shape {field.shape(count)}, got "
                    f"{array.shape}"
                )
            with np.errstate(over="ignore"):  # overflow to inf is detected by the next check
                array = array.astype(field.dtype)
            if not np.isfinite(array).all():
                row = int(np.argwhere(~np.isfinite(array).reshape(count, -1).all(axis=1))[0, 0])
                raise ValueError(
                    f"image {image_id}: expected finite values, got NaN or infinity in row {row} "
                    f"of {name} as {field.dtype}. The model may have wrong weights or need a "
                    "higher precision (fp32)."
                )
            self._arrays[name].append(array)
        self._sizes.append((count, height, width))

    def fail(self, image_id: ImageId, reason: str) -> None:
        """Record that the next image has no record, and the reason."""
        self._expect(image_id)
        self._failed.append((image_id, reason))
        self._sizes.append((0, 0, 0))

    def _expect(self, image_id: ImageId) -> None:
        if len(self._sizes) >= len(self.images) or self.images[len(self._sizes)] != image_id:
            raise ValueError(
                f"expected the records of {list(self.images)[:5]}... in this order, got "
                f"{image_id!r} as number {len(self._sizes)}"
            )

    def write(self, path: Path) -> None:
        """Write the shard once every image was added or has failed."""
        if len(self._sizes) != len(self.images):
            raise ValueError(f"expected {len(self.images)} images, got {len(self._sizes)}")
        arrays = {
            name: np.concatenate([np.empty(field.shape(0), field.dtype), *self._arrays[name]])
            for name, field in self._spec.fields.items()
        }
        rows, heights, widths = (list(column) for column in zip(*self._sizes, strict=True))
        described = {
            "images": list(self.images),
            "rows": rows,
            "heights": heights,
            "widths": widths,
            "failed": self._failed,
            "spec_sha256": self._spec.sha256,
        }
        write_shard(path, arrays, described)


class StoreWriter:
    """Access of one process to a store that is being written.

    Args:
        folder: the store; created if missing.
        spec: what to write; see :func:`store_spec`.
        images: ids of all images, in order.

    Raises:
        StoreMismatchError: the folder holds a store with another spec. If several processes start
            at the same time with different specs, the first one wins.
        OSError: the folder cannot be written.
    """

    def __init__(
        self, folder: str | os.PathLike[str], spec: StoreSpec, images: Sequence[ImageId]
    ) -> None:
        self.folder, self.spec, self._images = Path(folder), spec, list(images)
        self._written: dict[str, list[int]] = {}  # states of the shards written by this process
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / SPEC
        # list shards before reading the spec: other processes write the spec first
        shards = sorted(self.folder.glob("shard_*"))
        begun = shards or (self.folder / MANIFEST).exists()
        if not path.exists():
            if begun and not (shards and all(map(self._is_own, shards))):
                raise StoreError(
                    f"{self.folder} has shards but no {SPEC}, so it cannot be continued. Choose "
                    "another folder, or remove this one if it is no longer needed."
                )
            create_json(path, spec.to_json())
        StoreSpec.from_json(read_json(path), str(path)).require_equal(spec, self.folder)

    def _is_own(self, shard: Path) -> bool:
        """Return whether a shard was made with exactly this spec."""
        try:
            return read_entry(shard).spec_sha256 == self.spec.sha256
        except CorruptStoreError:
            return False

    def pending(self, rank: int = 0, world_size: int = 1) -> list[int]:
        """Return the shards of one rank that are missing or broken."""
        return [n for n in range(rank, self.spec.shards, world_size) if self._entry(n) is None]

    def images_of(self, shard: int) -> list[ImageId]:
        """Return the image ids of a shard."""
        size = self.spec.images_per_shard
        return self._images[shard * size : (shard + 1) * size]

    @contextmanager
    def shard(self, number: int, background: BackgroundJob | None = None) -> Iterator[ShardBuilder]:
        """Write one shard: add records in the block; the file is written when the block ends.

        Args:
            number: number of the shard.
            background: writes the file in the background after the previous one. The shard stays
                locked until it is written.

        Raises:
            StoreBusyError: another process is writing this shard.
            StoreError: this file or the previous one cannot be written, e.g. on a full disk.
        """
        path = self.folder / shard_name(number)
        with ExitStack() as held:
            busy = f"shard {number} of {self.folder} is being written"
            held.enter_context(self._lock(path.stem, busy))
            remove_leftovers(path)
            if self._entry(number) is None:  # a finished store becomes unfinished
                (self.folder / MANIFEST).unlink(missing_ok=True)
            builder = ShardBuilder(self.spec, self.images_of(number))
            yield builder
            if background is None:
                self._write(builder, path)
            else:
                background.submit(partial(self._write, builder, path), held)

    def _write(self, builder: ShardBuilder, path: Path) -> None:
        try:
            builder.write(path)
        except OSError as error:
            raise StoreError(
                f"cannot write {path} ({error.strerror or error}). Earlier shards are complete: "
                "free disk space or repair the folder, then rerun the same command."
            ) from error
        self._written[path.name] = file_state(path)

    @contextmanager
    def _lock(self, name: str, message: str) -> Iterator[None]:
        folder = self.folder / LOCKS
        folder.mkdir(exist_ok=True)
        lock = FileLock(folder / f"{name}.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise StoreBusyError(
                f"{message} by another process. If two runs are meant to share the work, give "
                "them different --machine-rank; otherwise wait for the other one to finish."
            ) from None
        except (OSError, NotImplementedError) as error:
            raise StoreError(
                f"cannot lock files in {folder} ({error}). Make the store on another disk and "
                "copy it."
            ) from None
        try:
            yield
        finally:
            lock.release()

    def finish(self, made_by: Mapping[str, str], part: tuple[int, int] | None = None) -> bool:
        """Write the manifest if all shards exist.

        Args:
            made_by: versions of the software, for the record.
            part: (rank, number of processes) whose shards must exist.

        Raises:
            StoreError: a shard of ``part`` is missing or damaged, or one was made by a run with
                other options.
            OSError: the manifest cannot be written.

        Returns:
            whether the store is finished; False while other ranks are still working.
        """
        entries = [self._entry(number) for number in range(self.spec.shards)]
        missing = [number for number, entry in enumerate(entries) if entry is None]
        lost = [number for number in missing if part and number % part[1] == part[0]]
        if lost:
            raise StoreError(
                f"{self.folder / shard_name(lost[0])} was written but is now missing or damaged. "
                "Find out what removes or changes files there, then rerun the same command."
            )
        if missing:
            return False
        shards = msgspec.to_builtins(entries)
        spec = self.spec.to_json()
        manifest = {
            "format": FORMAT,
            "digest": manifest_digest(spec, shards),
            "spec": spec,
            "made_by": dict(made_by),
            "shards": shards,
        }
        if self._manifest_digest() == manifest["digest"]:
            return True
        # only shards written by this process are known to be intact; others are checked on opening
        checked = {"digest": manifest["digest"], "shards": self._written}
        write_json(self.folder / CHECKED, checked)
        write_json(self.folder / MANIFEST, manifest)
        shutil.rmtree(self.folder / LOCKS, ignore_errors=True)
        return True

    def _manifest_digest(self) -> str | None:
        """Return the digest of an intact manifest; None if it is missing or damaged."""
        try:
            manifest = read_json(self.folder / MANIFEST)
            actual = manifest_digest(manifest["spec"], manifest["shards"])
            return actual if (manifest["format"], manifest["digest"]) == (FORMAT, actual) else None
        except (FileNotFoundError, StoreError, KeyError, TypeError):
            return None

    def retry_failed(self, rank: int = 0, world_size: int = 1) -> int:
        """Delete every shard of one rank that has a failed image, so that it is written again.

        Returns:
            the number of failed images in these shards.
        """
        failed = 0
        for number in range(rank, self.spec.shards, world_size):
            entry = self._entry(number)
            if entry is not None and entry.failed:
                failed += len(entry.failed)
                (self.folder / MANIFEST).unlink(missing_ok=True)
                (self.folder / entry.file).unlink()
        return failed

    def _entry(self, number: int) -> ShardEntry | None:
        """Return the entry of an intact shard; None if it is missing or broken."""
        path = self.folder / shard_name(number)
        try:
            entry = read_entry(path)
        except FileNotFoundError:
            return None
        except CorruptStoreError as error:
            logger.warning("%s; writing it again", error)
            return None
        if entry.images != self.images_of(number):
            raise StoreError(
                f"{path}: expected the images of this run's shard {number}, got others; remove "
                "the file"
            )
        if entry.spec_sha256 not in (None, self.spec.sha256):
            raise StoreError(
                f"{path} was made with other options than {self.folder / SPEC}; remove the file "
                "and rerun the same command"
            )
        return entry


def store_spec(
    kind: str,
    images: SplitImages,
    fields: Mapping[str, Any],
    source: Mapping[str, Any],
    images_per_shard: int,
) -> StoreSpec:
    """Return the spec of a store for the images of a split.

    Args:
        kind: ``proposals`` or ``embeddings``.
        images: the images of the split.
        fields: arrays of a record by name.
        source: everything else that affects the content; plain json.
        images_per_shard: number of images per shard.

    Raises:
        ValueError: the shard size is invalid.
    """
    if images_per_shard < 1:
        raise ValueError(f"expected at least 1 image per shard, got {images_per_shard}")
    return StoreSpec(
        kind,
        images.split,
        dict(fields),
        dict(source),
        images=len(images.files),
        images_sha256=images_digest(list(images.files)),
        split_sha256=images.sha256,
        images_per_shard=images_per_shard,
    )


def require_disk_space(folder: str | os.PathLike[str], needed: int) -> str:
    """Check that a disk has enough free space.

    Args:
        folder: where the space is needed; it may not exist yet.
        needed: bytes.

    Returns:
        a line for the log.

    Raises:
        StoreError: there is less free space.
    """
    folder = Path(folder).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    line = f"needs {format_size(needed)} on disk, {format_size(free)} are free"
    if needed > free:
        raise StoreError(f"{folder}: {line}. Free some, or choose another folder.")
    return line
