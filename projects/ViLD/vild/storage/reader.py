"""Read a store by image id, from any number of loader workers."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from vild.storage.errors import (
    CorruptStoreError,
    MissingImageError,
    StoreError,
    StoreMismatchError,
    UnfinishedStoreError,
)
from vild.storage.layout import (
    CHECKED,
    FORMAT,
    MANIFEST,
    OUTDATED,
    SPEC,
    ImageId,
    ShardEntry,
    StoreSpec,
    convert_json,
    differences,
    file_digests,
    file_state,
    manifest_digest,
    read_json,
    shard_name,
    write_json,
)
from vild.storage.split_images import image_root, split_digest
from vild.utils.formatting import format_size

logger = logging.getLogger(__name__)


class RecordStore:
    """A finished store: a mapping from image id to its arrays.

    Each process memory-maps shards on first use, so a store can be passed to forked and to spawned
    workers.

    Args:
        folder: the store.
        kind: ``proposals`` or ``embeddings``.
        expected: values that the store's spec must have, e.g.
            ``{"source": {"crop": {"mode": "stretch"}}}``.

    Raises:
        UnfinishedStoreError: there is no manifest.
        StoreMismatchError: another kind, format or spec.
        CorruptStoreError: a shard is missing, truncated or modified, or the manifest is damaged.
            Shards written or copied since the last check are verified by reading them completely.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        kind: str,
        expected: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = Path(folder)
        manifest = self._read_manifest(kind)
        path = str(self.folder / MANIFEST)
        self.spec = StoreSpec.from_json(manifest["spec"], path)
        if self.spec.kind != kind:
            raise StoreMismatchError(
                f"{self.folder}: expected a store of {kind}, got one of {self.spec.kind}"
            )
        self.digest: str = manifest["digest"]
        self._require_spec(expected or {})
        shards = convert_json(manifest["shards"], list[ShardEntry], path)
        self._index: dict[ImageId, tuple[int, int, int, int, int]] = {}
        self._reasons: dict[ImageId, str] = {}
        for number, shard in enumerate(shards):
            self._index_shard(number, shard)
        self._check_files(shards)
        self._opened: dict[int, dict[str, Tensor]] = {}
        self._process = os.getpid()

    def _read_manifest(self, kind: str) -> dict[str, Any]:
        path = self.folder / MANIFEST
        if not path.is_file():
            if not (self.folder / SPEC).is_file():
                raise UnfinishedStoreError(
                    f"expected a store of {kind} at {self.folder}: not found"
                )
            done = len(list(self.folder.glob("shard_*.safetensors")))
            total = StoreSpec.from_json(read_json(self.folder / SPEC), str(path)).shards
            raise UnfinishedStoreError(
                f"{self.folder} is unfinished: {done} of {total} shards are written. Rerun the "
                "command that started it to resume."
            )
        manifest = read_json(path)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            if isinstance(manifest, dict) and manifest.get("format") == "vild-store-1":
                raise StoreMismatchError(f"{self.folder} {OUTDATED}")
            raise StoreMismatchError(f"{path}: expected a manifest of the format {FORMAT!r}")
        whole = manifest.keys() >= {"digest", "spec", "made_by", "shards"}
        if not whole or manifest["digest"] != manifest_digest(manifest["spec"], manifest["shards"]):
            raise CorruptStoreError(
                f"{path} was modified. Rerun the command that made the store: it rewrites this "
                "file."
            )
        return manifest

    def _require_spec(self, expected: Mapping[str, Any]) -> None:
        own = _restricted(self.spec.to_json(), expected)
        found = differences(own, dict(expected))
        if found:
            raise StoreMismatchError(
                f"{self.folder} was made with other settings; store / expected: "
                f"{'; '.join(found)}. Choose another store, or make this one again."
            )

    def _index_shard(self, number: int, shard: ShardEntry) -> None:
        if shard.file != shard_name(number):
            where = self.folder / MANIFEST
            raise CorruptStoreError(
                f"{where}: expected {shard_name(number)}, got {shard.file}; {_REPAIR}"
            )
        if shard.spec_sha256 not in (None, self.spec.sha256):
            raise CorruptStoreError(
                f"{self.folder / shard.file} was made with other options than the store; {_REPAIR}"
            )
        self._reasons.update(shard.failed)
        start = 0
        columns = shard.images, shard.rows, shard.heights, shard.widths
        for image, rows, height, width in zip(*columns, strict=True):
            if image not in self._reasons:
                self._index[image] = (number, start, start + rows, height, width)
            start += rows

    def _check_files(self, shards: Sequence[ShardEntry]) -> None:
        """Check the sizes of all shards and the checksums of those that have changed."""
        known = self._checked()
        changed = []
        for shard in shards:
            file = self.folder / shard.file
            if not file.is_file():
                raise CorruptStoreError(f"{file} is missing; {_REPAIR}")
            state = file_state(file)
            if state[0] != shard.bytes:
                raise CorruptStoreError(
                    f"{file}: expected {shard.bytes} bytes, got {state[0]}; {_REPAIR}"
                )
            if known.get(shard.file) != state:
                changed.append((shard, state))
        if not changed:
            return
        size = sum(shard.bytes for shard, _ in changed)
        large = size > 1e9
        if large:
            logger.info("verifying %s of %s, once", format_size(size), self.folder)
        for shard, state in tqdm(changed, unit="shard", disable=not large):
            file = self.folder / shard.file
            if file_digests(file) != (shard.header_sha256, shard.data_sha256):
                raise CorruptStoreError(f"{file}: wrong checksum; {_REPAIR}")
            known[shard.file] = state
        try:
            write_json(self.folder / CHECKED, {"digest": self.digest, "shards": known})
        except OSError:  # a read-only folder
            logger.info(
                "%s is not writable: the store will be verified again", self.folder / CHECKED
            )

    def _checked(self) -> dict[str, list[int]]:
        """Return the file states of verified shards; empty if unknown."""
        try:
            record = read_json(self.folder / CHECKED)
        except (OSError, StoreError):
            return {}
        if not isinstance(record, dict) or record.get("digest") != self.digest:
            return {}
        shards = record.get("shards")
        return shards if isinstance(shards, dict) else {}

    @property
    def failed(self) -> dict[ImageId, str]:
        """Images that could not be read when the store was made, with the reasons."""
        return dict(self._reasons)

    @property
    def rows(self) -> int:
        """Number of regions over all images."""
        return sum(stop - start for _, start, stop, _, _ in self._index.values())

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[ImageId]:
        return iter(self._index)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._index

    def image_size(self, image_id: ImageId) -> tuple[int, int]:
        """Return (height, width) in pixels of the image that the record describes."""
        return self._locate(image_id)[3:]

    def count(self, image_id: ImageId) -> int:
        """Return R of an image without reading its record."""
        _, start, stop, _, _ = self._locate(image_id)
        return stop - start

    def _locate(self, image_id: ImageId) -> tuple[int, int, int, int, int]:
        try:
            return self._index[image_id]
        except KeyError:
            pass
        reason = self._reasons.get(image_id)
        why = f"unreadable when the store was made ({reason})" if reason else "not in its split"
        raise MissingImageError(
            f"{self.folder} has no record of the image {image_id!r}: {why}. Make a store of the "
            f"split that you use; this one covers {self.spec.split}."
        )

    def check_split(self, split: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Check that the store describes the images of a split.

        Args:
            split: a registered dataset; its name may differ from that of the store's split.
            records: all records of the split, in Detectron2's format.

        Raises:
            StoreMismatchError: the images have other ids, file names or sizes, or lie in another
                folder than those of the store's split, if that one is registered.
        """
        own = self.spec.split
        roots = image_root(own), image_root(split)
        # the digest covers only names relative to the root, which splits may share
        moved = own != split and None not in roots and roots[0] != roots[1]
        if self.spec.split_sha256 != split_digest(split, records) or moved:
            raise StoreMismatchError(
                f"expected a store of {split!r} ({len(records)} images), but {self.folder} covers "
                f"{own!r} ({self.spec.images} images): the images differ in ids, file names, "
                f"sizes or folders. Choose the store of {split!r}, or make one"
            )

    def check_images(self, images: Iterable[ImageId]) -> None:
        """Check that the store has a record of each of these images.

        Raises:
            MissingImageError: lists the first images without a record and the reasons.
        """
        lacking = [image for image in images if image not in self]
        if lacking:
            shown = "; ".join(
                f"{image!r} ({self._reasons.get(image, 'not in the store')})"
                for image in lacking[:5]
            )
            raise MissingImageError(
                f"{self.folder} has no record of {len(lacking)} images that are needed: {shown}"
                f"{'; ...' if len(lacking) > 5 else ''}. Repair these images and run the command "
                "that made the store with --retry-failed, or remove them from the annotations"
            )

    def arrays(self, image_id: ImageId) -> dict[str, Tensor]:
        """Return copies of a record's arrays, R rows each, by field.

        Raises:
            MissingImageError: the image has no record.
            CorruptStoreError: its shard was removed or damaged after the store was opened.
        """
        number, start, stop, _, _ = self._locate(image_id)
        return {name: t[start:stop].clone() for name, t in self._shard(number).items()}

    def _shard(self, number: int) -> dict[str, Tensor]:
        if self._process != os.getpid():  # a memory map must not be shared with the parent
            self._opened, self._process = {}, os.getpid()
        if number not in self._opened:
            path = self.folder / shard_name(number)
            try:
                self._opened[number] = open_tensors(path)
            except (OSError, SafetensorError) as error:
                raise CorruptStoreError(
                    f"{path} is no longer readable ({error}); {_REPAIR}"
                ) from None
        return self._opened[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}


_REPAIR = (
    "tools/verify_store.py lists all faults. Remove the damaged file and rerun the command that "
    "made the store: it makes this shard again."
)


def _restricted(value: Any, keys: Any) -> Any:
    """Return the part of a nested json value whose keys occur in another one."""
    if isinstance(value, dict) and isinstance(keys, Mapping):
        return {key: _restricted(value.get(key), keys[key]) for key in keys}
    return value


def open_tensors(path: Path) -> dict[str, Tensor]:
    """Return all arrays of one shard, memory-mapped."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
