"""Download and unpack the official archives of COCO and LVIS, only when the user asks for it."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import re
import shutil
import urllib.error
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from vild.utils.files import write_errors_named
from vild.utils.formatting import format_size

logger = logging.getLogger(__name__)

_CHUNK = 1 << 20  # bytes
_TIMEOUT = 60  # seconds without receiving data


@dataclass(frozen=True)
class Archive:
    """An official archive.

    Attributes:
        url: the publisher's address.
        md5: checksum of the zip, 32 hexadecimal digits.
        gigabytes: approximate size of the zip, for messages.
        datasets: the datasets that need it.
        folder: target folder in Detectron2's layout, relative to the data root.
        flat_folder: target folder in the flat layout.
        provides: what unpacking creates: files, or a folder of images.
        images: number of files in the folder in ``provides``; None if these are files.
    """

    url: str
    md5: str
    gigabytes: float
    datasets: tuple[str, ...]
    folder: str
    flat_folder: str
    provides: tuple[str, ...]
    images: int | None = None

    @property
    def name(self) -> str:
        """File name of the zip."""
        return PurePosixPath(urlsplit(self.url).path).name

    def is_unpacked(self, folder: Path) -> bool:
        """Return whether everything that the archive provides exists below ``folder``."""
        for name in self.provides:
            path = folder / name
            if self.images is None:
                if not path.is_file():
                    return False
            # an incomplete file ends in .part
            elif sum(1 for _ in path.glob("*.jpg")) < self.images:
                return False
        return True


_COCO = "http://images.cocodataset.org"
_LVIS = "https://dl.fbaipublicfiles.com/LVIS"

# The checksums are those that public code verifies its downloads with; this project did not compute
# them itself. The sizes are approximate.
ARCHIVES: tuple[Archive, ...] = (
    Archive(
        f"{_COCO}/annotations/annotations_trainval2017.zip",
        "f4bbac642086de4f52a3fdda2de5fa2c",
        0.25,
        ("coco",),
        "coco",
        ".",
        ("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
    ),
    Archive(
        f"{_LVIS}/lvis_v1_train.json.zip",
        "4410d837f71203af226950447ef9d422",
        0.35,
        ("lvis",),
        "lvis",
        "annotations",
        ("lvis_v1_train.json",),
    ),
    Archive(
        f"{_LVIS}/lvis_v1_val.json.zip",
        "87734a7f895990b9552075d7ce723e27",
        0.06,
        ("lvis",),
        "lvis",
        "annotations",
        ("lvis_v1_val.json",),
    ),
    Archive(
        f"{_COCO}/zips/val2017.zip",
        "442b8da7639aecaf257c1dceb8ba8c80",
        0.8,
        ("lvis", "coco"),
        "coco",
        ".",
        ("val2017",),
        images=5_000,
    ),
    Archive(
        f"{_COCO}/zips/train2017.zip",
        "cced6f7f71b7629ddf16f17bbcfab6b2",
        18.0,
        ("lvis", "coco"),
        "coco",
        ".",
        ("train2017",),
        images=118_287,
    ),
)


def fetch(
    dataset: str,
    root: Path,
    *,
    flat: bool = False,
    archive_base: str | None = None,
    keep_archives: bool = False,
) -> None:
    """Download and unpack the archives of ``dataset`` that are missing.

    Args:
        dataset: ``lvis`` or ``coco``.
        root: the data root. Zips are kept there until they are unpacked.
        flat: unpack into the flat layout instead of Detectron2's.
        archive_base: address of a mirror that replaces the scheme and host of every archive's
            address. The same checksums are verified.
        keep_archives: keep the zips after unpacking. Otherwise they are removed, even if the
            dataset was already unpacked.

    Raises:
        ValueError: an unknown dataset, a wrong checksum, or an archive with other contents.
        OSError: no connection, a connection that broke, or too little disk space.
    """
    known = sorted({name for archive in ARCHIVES for name in archive.datasets})
    if dataset not in known:
        raise ValueError(f"expected a dataset among {', '.join(known)}, got {dataset!r}")
    for archive in ARCHIVES:
        if dataset not in archive.datasets:
            continue
        folder = root / (archive.flat_folder if flat else archive.folder)
        if archive.is_unpacked(folder):
            logger.info("%s: already unpacked in %s", archive.name, folder)
            if not keep_archives:  # an interrupted run may have left it after unpacking
                Path(root, archive.name).unlink(missing_ok=True)
            continue
        url = archive.url
        if archive_base is not None:
            url = archive_base.rstrip("/") + urlsplit(url).path
        logger.info("%s: about %g GB from %s", archive.name, archive.gigabytes, url)
        target = root / archive.name
        download(url, target, archive.md5)
        extract(target, folder)
        if not archive.is_unpacked(folder):
            raise ValueError(
                f"{target}: expected an archive of {', '.join(archive.provides)}, but {folder} is "
                "incomplete after unpacking. Remove the archive and run again."
            )
        if not keep_archives:
            target.unlink()


def download(url: str, target: Path, md5: str) -> None:
    """Download ``url`` to ``target``, resuming an interrupted download.

    Partial data are stored in ``target`` + ``.part``, which is renamed once the checksum is
    correct. An existing ``target`` is kept if its checksum is correct and replaced otherwise.

    Args:
        url: address of the file.
        target: path to write.
        md5: expected checksum, 32 hexadecimal digits.

    Raises:
        ValueError: the checksum is wrong; the partial file is removed.
        OSError: no connection, a connection that broke, or too little disk space; the partial file
            is kept.
    """
    if target.is_file():
        found = file_md5(target)
        if found == md5:
            return
        logger.warning("%s: expected md5 %s, got %s; downloading it again", target, md5, found)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(target.suffix + ".part")
    _stream(url, part)
    found = file_md5(part)
    if found != md5:
        part.unlink()
        raise ValueError(
            f"{url}: expected a file with md5 {md5}, got {found}. {part} was removed; run again to "
            "download it again. If that does not help, the server has another file."
        )
    part.replace(target)


def file_md5(path: Path) -> str:
    """Return the MD5 checksum of a file as 32 hexadecimal digits."""
    digest = hashlib.md5(usedforsecurity=False)
    size = path.stat().st_size
    with path.open("rb") as file, _bar(f"checking {path.name}", size) as bar:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def extract(zip_path: Path, folder: Path) -> None:
    """Unpack a zip, skipping files that already exist with the right size.

    Args:
        zip_path: the archive.
        folder: target folder; created if missing.

    Raises:
        ValueError: not a zip, a broken one, or one with a member outside ``folder``; in the last
            case nothing is written.
        OSError: too little disk space.
    """
    try:
        with zipfile.ZipFile(zip_path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            places = [(member, folder / _inside(member.filename, zip_path)) for member in members]
            todo = [
                (member, place)
                for member, place in places
                if not (place.is_file() and place.stat().st_size == member.file_size)
            ]
            total = sum(member.file_size for member, _ in todo)
            folder.mkdir(parents=True, exist_ok=True)
            _check_room(folder, total, f"unpacking {zip_path.name}")
            with _bar(f"unpacking {zip_path.name}", total) as bar:
                for member, place in todo:
                    place.parent.mkdir(parents=True, exist_ok=True)
                    part = place.with_name(place.name + ".part")
                    with write_errors_named(place, part):
                        with archive.open(member) as source, part.open("wb") as file:
                            shutil.copyfileobj(source, file, _CHUNK)
                        part.replace(place)
                    bar.update(member.file_size)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(
            f"{zip_path}: expected a complete zip archive, got {error}. Remove it and run again."
        ) from None


def _inside(name: str, zip_path: Path) -> PurePosixPath:
    """Return ``name`` as a relative path that cannot leave the target folder.

    Existing symbolic links below the folder are followed: the user may keep an image folder on
    another disk.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name):
        raise ValueError(
            f"{zip_path}: expected members that stay inside the folder, got {name!r}. Nothing was "
            "unpacked; do not use this archive."
        )
    return path


def _stream(url: str, part: Path) -> None:
    """Append the missing rest of ``url`` to ``part``."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "vild"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:
            return  # nothing left to send; the checksum shows whether the file is complete
        raise OSError(
            f"{url}: expected a file, got HTTP {error.code} {error.reason}. Check the address, or "
            "download the file yourself; datasets/README.md says where to put it."
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise OSError(
            f"cannot reach {url} ({error}). Check the connection and run again; the partial file "
            "is kept."
        ) from error
    with response, part.open("r+b" if part.exists() else "wb") as file:
        begin = _first_byte(response, have)
        length = response.headers.get("Content-Length")
        total = None if length is None else begin + int(length)
        if total is not None:
            _check_room(part.parent, total - have, f"downloading {url}")
        file.truncate(begin)
        got = file.seek(begin)
        try:
            with _bar(part.stem, total, begin) as bar:
                while chunk := response.read(_CHUNK):
                    got += file.write(chunk)
                    bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
        except (OSError, http.client.HTTPException) as error:
            raise _broken_off(url, part, total, str(error)) from error
        if total is not None and got < total:
            raise _broken_off(url, part, total, "the connection was closed")


def _first_byte(response: Any, have: int) -> int:
    """Return the file offset at which the response begins: 0 if the server ignores ranges."""
    if response.status != http.client.PARTIAL_CONTENT:
        return 0
    span = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if span is None or int(span[1]) > have:
        raise OSError(
            f"{response.url}: expected the bytes from {have} on, got the Content-Range "
            f"{response.headers.get('Content-Range')!r}. Remove the .part file and run again."
        )
    return int(span[1])


def _broken_off(url: str, part: Path, total: int | None, why: str) -> OSError:
    got = part.stat().st_size
    return OSError(
        f"{url}: expected {'the whole file' if total is None else f'{total:,} bytes'}, got "
        f"{got:,} bytes ({why}). They are kept in {part}; run again to resume."
    )


def _check_room(folder: Path, needed: int, doing: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{doing}: expected {format_size(needed)} of free disk space in {folder}, got "
            f"{format_size(free)}. Free some space, or choose another data root."
        )


def _bar(title: str, total: int | None, initial: int = 0) -> tqdm:
    """Return a progress bar in bytes with the remaining time; disabled without a terminal."""
    return tqdm(desc=title, total=total, initial=initial, unit="B", unit_scale=True, disable=None)
