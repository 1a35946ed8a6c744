"""Downloading and unpacking, against a local server that misbehaves on demand."""

from __future__ import annotations

import hashlib
import http.server
import re
import resource
import shutil
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from vild.data import download as module
from vild.data.download import ARCHIVES, Archive, download, extract, file_md5

DATA = bytes(range(256)) * 4096  # 1 MiB
MD5 = hashlib.md5(DATA).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files``; the attributes control how it misbehaves."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"/data.bin": DATA}
        self.ranges = True  # supports Range
        self.drop_after: int | None = None  # bytes of a body after which the connection is closed
        self.shift = 0  # bytes before the requested range that are sent again
        self.sends_length = True
        self.requests: list[tuple[str, str | None]] = []  # (path, Range)
        self.sent: list[int] = []  # size of every body in bytes

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        data = self.server.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        begin = 0
        if wanted is not None and self.server.ranges:
            match = re.fullmatch(r"bytes=(\d+)-", wanted)
            assert match is not None
            begin = int(match[1]) - self.server.shift
            if int(match[1]) >= len(data):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        if self.server.sends_length:
            self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        body = data[begin:][: self.server.drop_after]
        self.server.sent.append(len(body))
        with suppress(ConnectionError):  # some tests expect the client to hang up
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def running() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with running() as server:
        yield server


def get(server: Server, target: Path, md5: str = MD5) -> None:
    download(f"{server.url}/data.bin", target, md5)


def part_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def test_a_download_arrives_whole(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "data.bin"
    get(server, target)
    assert target.read_bytes() == DATA
    assert server.requests == [("/data.bin", None)]
    assert [path.name for path in target.parent.iterdir()] == ["data.bin"]


def test_a_complete_file_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "data.bin"
    target.write_bytes(DATA)
    get(server, target)
    assert server.requests == []


def test_a_wrong_file_of_that_name_is_replaced(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "data.bin"
    target.write_bytes(DATA[:-1])
    get(server, target)
    assert target.read_bytes() == DATA


def test_a_wrong_file_stays_if_nothing_better_comes(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "data.bin"
    target.write_bytes(b"mine")
    server.files["/data.bin"] = b"something else"
    with pytest.raises(ValueError, match="expected a file with md5"):
        get(server, target)
    assert target.read_bytes() == b"mine"


def test_a_dropped_connection_is_resumed_with_the_rest_only(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "data.bin"
    server.drop_after = 300_000
    with pytest.raises(
        OSError, match=r"expected 1,048,576 bytes, got 300,000 .* run again to resu"
    ):
        get(server, target)
    assert not target.exists()
    assert part_of(target).read_bytes() == DATA[:300_000]

    server.drop_after = None
    get(server, target)
    assert server.requests == [("/data.bin", None), ("/data.bin", "bytes=300000-")]
    assert server.sent == [300_000, len(DATA) - 300_000]
    assert target.read_bytes() == DATA
    assert not part_of(target).exists()


def test_two_drops_are_no_worse_than_one(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "data.bin"
    server.drop_after = 400_000
    for _ in range(2):
        with pytest.raises(OSError, match="run again to resume"):
            get(server, target)
    get(server, target)
    assert server.sent == [400_000, 400_000, len(DATA) - 800_000]
    assert target.read_bytes() == DATA


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "data.bin"
    server.ranges = False
    part_of(target).write_bytes(b"x" * (len(DATA) + 5))  # longer than the file, and wrong
    get(server, target)
    assert server.requests == [("/data.bin", f"bytes={len(DATA) + 5}-")]
    assert server.sent == [len(DATA)]
    assert target.read_bytes() == DATA


def test_a_range_that_begins_earlier_is_put_where_it_belongs(
    server: Server, tmp_path: Path
) -> None:
    target = tmp_path / "data.bin"
    part_of(target).write_bytes(DATA[:1000])
    server.shift = 10
    get(server, target)
    assert server.sent == [len(DATA) - 990]
    assert target.read_bytes() == DATA


def test_a_range_that_leaves_a_gap_is_refused(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "data.bin"
    part_of(target).write_bytes(DATA[:1000])
    server.shift = -10
    with pytest.raises(OSError, match="expected the bytes from 1000 on, got the Content-Range"):
        get(server, target)
    assert part_of(target).read_bytes() == DATA[:1000]


def test_a_complete_part_needs_no_byte_more(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "data.bin"
    part_of(target).write_bytes(DATA)
    get(server, target)  # the server answers 416
    assert server.requests == [("/data.bin", f"bytes={len(DATA)}-")]
    assert server.sent == []
    assert target.read_bytes() == DATA


def test_a_wrong_part_that_is_too_long_is_removed(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "data.bin"
    part_of(target).write_bytes(DATA + b"x")
    with pytest.raises(ValueError, match=f"expected a file with md5 {MD5}, got "):
        get(server, target)
    assert not part_of(target).exists()
    get(server, target)
    assert target.read_bytes() == DATA


def test_a_wrong_checksum_is_refused_and_nothing_stays(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "data.bin"
    with pytest.raises(ValueError, match=f"expected a file with md5 {'0' * 32}, got {MD5}"):
        get(server, target, "0" * 32)
    assert list(tmp_path.iterdir()) == []


def test_a_length_that_is_not_told_is_accepted(server: Server, tmp_path: Path) -> None:
    server.sends_length = False
    get(server, tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == DATA


def test_a_missing_file_is_named(server: Server, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"/gone.zip: expected a file, got HTTP 404 Not Found"):
        download(f"{server.url}/gone.zip", tmp_path / "gone.zip", MD5)
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_server_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    target = tmp_path / "data.bin"
    part_of(target).write_bytes(b"kept")
    with pytest.raises(OSError, match=r"cannot reach .*127.0.0.1:9/data.bin .* run again"):
        download("http://127.0.0.1:9/data.bin", target, MD5)
    assert part_of(target).read_bytes() == b"kept"


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_full_disk_is_noticed_before_the_first_byte(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "data.bin"
    part_of(target).write_bytes(DATA[:1000])
    free = len(DATA) - 1001  # one byte short of the rest
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free))
    with pytest.raises(OSError, match=r"expected .* of free disk space in .*Free some"):
        get(server, target)
    assert part_of(target).read_bytes() == DATA[:1000]
    free += 1
    get(server, target)


class Bar:
    """Stand-in for tqdm that sums the updates."""

    made: list[Bar]

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.seen = 0
        Bar.made.append(self)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def update(self, number: int) -> None:
        self.seen += number


def test_the_progress_bar_knows_the_whole_and_what_was_there(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Bar.made = []
    monkeypatch.setattr(module, "tqdm", Bar)
    target = tmp_path / "data.bin"
    part_of(target).write_bytes(DATA[:1000])
    download(f"{server.url}/data.bin", target, MD5)
    loading, checking = Bar.made
    assert (loading.options["desc"], checking.options["desc"]) == (
        "data.bin",
        "checking data.bin.part",
    )
    for bar, initial in ((loading, 1000), (checking, 0)):
        assert (bar.options["total"], bar.options["initial"]) == (len(DATA), initial)
        assert bar.seen + initial == len(DATA)
        assert bar.options["disable"] is None  # shown on terminals


def test_md5_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_md5(tmp_path / "a") == "900150983cd24fb0d6963f7d28e17f72"  # RFC 1321


def make_zip(members: dict[str, bytes]) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.fixture
def zip_path(tmp_path: Path) -> Path:
    path = tmp_path / "images.zip"
    path.write_bytes(make_zip({"val/": b"", "val/1.jpg": b"one", "val/2.jpg": b"two"}))
    return path


def test_a_zip_is_unpacked(zip_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "coco"
    extract(zip_path, folder)
    assert (folder / "val" / "1.jpg").read_bytes() == b"one"
    assert sorted(path.name for path in (folder / "val").iterdir()) == ["1.jpg", "2.jpg"]


def test_only_what_is_missing_is_unpacked(zip_path: Path, tmp_path: Path) -> None:
    extract(zip_path, tmp_path)
    (tmp_path / "val" / "1.jpg").write_bytes(b"ONE")  # the right size: not overwritten
    (tmp_path / "val" / "2.jpg").write_bytes(b"t")
    extract(zip_path, tmp_path)
    assert (tmp_path / "val" / "1.jpg").read_bytes() == b"ONE"
    assert (tmp_path / "val" / "2.jpg").read_bytes() == b"two"


def test_a_folder_of_images_may_be_a_link(zip_path: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "val").symlink_to(tmp_path / "disk")
    extract(zip_path, tmp_path / "coco")
    assert (tmp_path / "disk" / "2.jpg").read_bytes() == b"two"


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "..\\evil", "C:\\evil"])
def test_a_member_outside_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / "evil.zip"
    path.write_bytes(make_zip({"good": b"1", name: b"2"}))
    with pytest.raises(ValueError, match="expected members that stay inside the folder, got"):
        extract(path, tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["evil.zip"]


def test_no_zip_and_a_broken_zip_are_named(zip_path: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r"broken.zip: expected a complete zip archive, got"):
        extract(broken, tmp_path)
    broken.write_bytes(zip_path.read_bytes().replace(b"two", b"TWO"))  # the CRC differs
    with pytest.raises(ValueError, match="expected a complete zip archive, got Bad CRC"):
        extract(broken, tmp_path)
    assert not (tmp_path / "val" / "2.jpg").exists()


def test_unpacking_needs_room(
    zip_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 5))
    with pytest.raises(OSError, match=r"unpacking images.zip: expected 6 bytes of free disk space"):
        extract(zip_path, tmp_path)
    assert not (tmp_path / "val").exists()


def test_an_image_that_is_not_finished_is_not_counted(tmp_path: Path) -> None:
    archive = Archive("http://x/a.zip", "", 0.1, ("coco",), "coco", ".", ("val",), images=2)
    (tmp_path / "val").mkdir()
    for name in ("1.jpg", "2.jpg.part", "Thumbs.db"):
        (tmp_path / "val" / name).touch()
    assert not archive.is_unpacked(tmp_path)
    (tmp_path / "val" / "2.jpg").touch()
    assert archive.is_unpacked(tmp_path)


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Limit files to 300,000 bytes, to simulate a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_disk")
def test_a_disk_that_fills_up_keeps_what_has_arrived(server: Server, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"got 300,000 bytes .*File too large.*run again to resume"):
        get(server, tmp_path / "data.bin")
    assert part_of(tmp_path / "data.bin").stat().st_size == 300_000


@pytest.mark.usefixtures("small_disk")
def test_a_disk_that_fills_up_while_unpacking_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("large.json", bytes(400_000))
    with pytest.raises(OSError, match=r"File too large: '.*/large\.json'"):
        extract(tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "out" / "large.json").exists()


def test_the_table_of_archives() -> None:
    assert len({archive.md5 for archive in ARCHIVES}) == len(ARCHIVES) == 5
    for archive in ARCHIVES:
        assert re.fullmatch("[0-9a-f]{32}", archive.md5)
        assert urlsplit(archive.url).path.endswith(f"/{archive.name}")
    needed = {
        name: {a.name: a.folder for a in ARCHIVES if name in a.datasets}
        for name in ("lvis", "coco")
    }
    images = {"train2017.zip": "coco", "val2017.zip": "coco"}
    assert needed["coco"] == {**images, "annotations_trainval2017.zip": "coco"}
    assert needed["lvis"] == {
        **images,
        "lvis_v1_train.json.zip": "lvis",
        "lvis_v1_val.json.zip": "lvis",
    }


@pytest.mark.parametrize("keep", [False, True])
def test_an_archive_that_was_unpacked_is_removed(
    keep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between unpacking and removing must not leave gigabytes behind."""
    own = Archive("http://x/a.zip", "", 0.1, ("lvis",), "lvis", ".", ("val.json",))
    monkeypatch.setattr(module, "ARCHIVES", (own,))
    (tmp_path / "lvis").mkdir()
    (tmp_path / "lvis" / "val.json").touch()
    (tmp_path / "a.zip").write_bytes(b"left")
    module.fetch("lvis", tmp_path, keep_archives=keep)
    assert (tmp_path / "a.zip").exists() == keep
