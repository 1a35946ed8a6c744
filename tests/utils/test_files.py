import codecs
import errno
import os
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vild.utils import files
from vild.utils.files import (
    atomic_path,
    read_text,
    remove_leftovers,
    require_writable_file,
    require_writable_folder,
)


@pytest.mark.parametrize(
    "content",
    [
        "é, 犬".encode(),
        codecs.BOM_UTF8 + "é, 犬".encode(),
        "é, 犬".encode("utf-16"),
        codecs.BOM_UTF16_BE + "é, 犬".encode("utf-16-be"),
        "é, 犬".encode("utf-32"),
    ],
)
def test_encodings_with_a_mark_are_read(tmp_path, content):
    (tmp_path / "words.txt").write_bytes(content)
    assert read_text(tmp_path / "words.txt", "a list of classes") == "é, 犬"


@pytest.mark.parametrize(
    "content", ["crème".encode("latin-1"), "cat".encode("utf-16-le"), b"\xff\xfe\x00", b"\x00\x01"]
)
def test_others_are_refused_by_name(tmp_path, content):
    (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"words\.txt: expected a list of classes in UTF-8"):
        read_text(tmp_path / "words.txt", "a list of classes")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"a list of classes at .*words\.txt: No such file"):
        read_text(tmp_path / "words.txt", "a list of classes")


def temporaries(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir() if ".vild-" in file.name]


def killed_while_writing(target: Path) -> str:
    """Return the name of the file left by a process killed in the middle of a write."""
    child = os.fork()
    if not child:
        try:
            with atomic_path(target) as temporary:
                temporary.write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (name,) = temporaries(target.parent)
    return name


def test_leftovers_of_dead_writers_are_removed_and_others_kept(tmp_path):
    left = tmp_path / killed_while_writing(tmp_path / "model_0000001.pth")
    host, process = left.name.split(".vild-")[1].split("-")[:2]
    elsewhere = left.with_name(left.name.replace(host, "0" * 8))
    alive = left.with_name(left.name.replace(f"-{process}-", f"-{os.getpid()}-"))
    foreign = tmp_path / ".cache.deadbeef0123.pth"
    for file in (elsewhere, alive, foreign):
        file.write_bytes(b"half")
    with atomic_path(tmp_path / "model_0000003.pth") as temporary:
        temporary.write_bytes(b"whole")
    assert not left.exists()
    assert all(file.exists() for file in (elsewhere, alive, foreign))

    yesterday = time.time() - 25 * 3600
    os.utime(elsewhere, (yesterday, yesterday))
    files._remove_stale_once.cache_clear()  # simulate another process
    with atomic_path(tmp_path / "model_0000003.pth") as temporary:
        temporary.write_bytes(b"whole")
    assert not elsewhere.exists()
    remove_leftovers(tmp_path / "model_0000001.pth")
    assert sorted(f.name for f in tmp_path.iterdir()) == [foreign.name, "model_0000003.pth"]


def test_leftovers_of_one_target_are_not_those_of_another(tmp_path):
    for name in ("part", "part.x", "par[t]"):
        killed = tmp_path / f".{name}.vild-00000000-1-00000000.json"
        killed.write_bytes(b"half")
    remove_leftovers(tmp_path / "part.json")
    assert len(temporaries(tmp_path)) == 2
    remove_leftovers(tmp_path / "par[t].json")
    assert temporaries(tmp_path) == [".part.x.vild-00000000-1-00000000.json"]
    remove_leftovers(tmp_path / "gone" / "part.json")


def write_bytes(path):
    path.write_bytes(bytes(200_000))


def write_torch(path):
    with path.open("wb") as file:
        torch.save({"a": torch.zeros(50_000)}, file)


def write_safetensors(path):
    save_file({"a": torch.zeros(50_000)}, path)


@pytest.mark.parametrize("write", [write_bytes, write_torch, write_safetensors])
def test_a_failed_write_names_the_file_and_keeps_the_old_one(tmp_path, write):
    target = tmp_path / "weights.bin"
    target.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with (
            pytest.raises(OSError, match=r"File too large: '.*/weights\.bin'"),
            atomic_path(target) as temporary,
        ):
            write(temporary)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert target.read_bytes() == b"old"
    assert not temporaries(tmp_path)


def test_a_full_disk_says_how_much_is_free(tmp_path):
    with (
        pytest.raises(OSError, match=r"No space left on device \(\d.*GB free\): '.*out\.json'"),
        atomic_path(tmp_path / "out.json"),
        Path("/dev/full").open("w", encoding="utf-8") as full,
    ):
        full.write("x")


def test_errors_about_other_files_stay_as_they_are(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r"input\.png"),
        atomic_path(tmp_path / "out.json"),
    ):
        (tmp_path / "input.png").read_bytes()


def test_outputs_that_cannot_be_written_are_found_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"old")
    require_writable_file(tmp_path / "file", "--out")
    require_writable_file(tmp_path / "new" / "file", "--out")
    require_writable_folder(tmp_path / "deep" / "folder", "--out-dir")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert not temporaries(tmp_path)
    assert not list((tmp_path / "deep" / "folder").iterdir())
    for path, reason in (
        (tmp_path / "new", "it is a folder"),
        (Path("/dev/null"), "it is not a regular file"),
        (tmp_path / "file" / "x", r"/file is a file"),
        (Path("/proc/nowhere/x"), "No such file or directory"),
        (tmp_path / ("x" * 250), "File name too long"),
    ):
        with pytest.raises(ValueError, match=f"--out to be a file that can be written.*{reason}"):
            require_writable_file(path, "--out")
    with pytest.raises(ValueError, match=r"--out-dir to be a folder that can .*/file is a file"):
        require_writable_folder(tmp_path / "file", "--out-dir")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"--out-dir to be .*\(No space left on device\)"):
        require_writable_folder(tmp_path, "--out-dir")
    assert not temporaries(tmp_path)


def test_files_of_libraries_get_the_mode_of_others(tmp_path):
    """safetensors creates private files, which others could not read in a shared folder."""
    (tmp_path / "plain").write_bytes(b"")
    with files.atomic_path(tmp_path / "new.safetensors") as temporary:
        save_file({"a": torch.zeros(2)}, temporary)
    modes = [path.stat().st_mode for path in sorted(tmp_path.iterdir())]
    assert modes[0] == modes[1]
