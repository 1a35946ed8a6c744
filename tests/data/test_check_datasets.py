"""The command datasets/check_datasets.py: output, exit code and downloads."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from vild.data import download as module
from vild.data.download import ARCHIVES, Archive, fetch

from ..forked import run
from .conftest import contents, expect_small, make_coco, make_lvis, write_custom
from .test_download import Server, make_zip, running

Main = Callable[[list[str]], int]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with running() as server:
        yield server


@pytest.fixture
def main(repository: Path) -> Main:
    """Return the command's main function, to be called in this process."""
    path = repository / "datasets" / "check_datasets.py"
    spec = importlib.util.spec_from_file_location("check_datasets", path)
    assert spec is not None
    assert spec.loader is not None
    command = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)
    return lambda args: command.main(args)


def squeezed(text: str) -> list[str]:
    """Return the lines with single spaces."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_as_a_process_of_its_own(
    repository: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    command = repository / "datasets" / "check_datasets.py"
    (tmp_path / "root").mkdir()
    fake = make_zip({"lvis_v1_train.json": b"{}"})
    server.files["/LVIS/lvis_v1_train.json.zip"] = fake
    write_custom(tmp_path)
    code, output = run([command, "--custom", "small.yaml", "--images", "all"], tmp_path)
    assert code == 0, output
    assert squeezed(output) == [
        "small (custom layout)",
        "./",
        "present images/",
        "present val.json",
        "val: 2 images, 6 annotations, 3 classes (1 c, 1 f, 1 r); 2 images opened",
        "objects: 4 of base classes, 2 of novel classes",
        "",
        "small: ok (errors: 0, warnings: 0)",
    ]

    args = ("--root", "root", "--download", "lvis", "--archive-base", server.url)
    code, output = run([command, *args], tmp_path)
    assert code == 1
    last = output.splitlines()[-1]
    assert last.startswith(f"error: {server.url}/LVIS/lvis_v1_train.json.zip: expected a file with")
    assert f"md5 4410d837f71203af226950447ef9d422, got {hashlib.md5(fake).hexdigest()}" in last
    assert files_below(tmp_path / "root") == []


@pytest.mark.parametrize("args", [[], ["--dataset", "all"]])
def test_nothing_there_is_told_entry_by_entry(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str]
) -> None:
    assert main(["--root", str(tmp_path), *args]) == 1
    lines = squeezed(capsys.readouterr().out)
    assert lines[:7] == [
        "lvis (Detectron2's layout)",
        f"{tmp_path}/",
        "coco/",
        "missing train2017/",
        "missing val2017/",
        "lvis/",
        "missing lvis_v1_train.json",
    ]
    assert lines[-1] == "lvis, coco: FAILED (errors: 8, warnings: 0)"
    assert files_below(tmp_path) == []  # nothing is downloaded unless requested


def test_both_official_data_sets_in_the_flat_layout(
    main: Main,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expect_small(monkeypatch)
    make_lvis(tmp_path, flat=True)
    make_coco(tmp_path, flat=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))  # the default root
    assert main([]) == 0
    lines = squeezed(capsys.readouterr().out)
    assert "coco (flat layout)" in lines
    assert "present lvis_v1_val.json" in lines
    opened = "3 images opened"
    assert f"train: 3 images, 9 annotations, 3 classes (1 c, 1 f, 1 r); {opened}" in lines
    assert f"train: 3 images, 9 annotations, 3 classes (3 r); {opened}" in lines  # COCO's: counted
    assert not any(line.startswith("objects: ") for line in lines)  # the novel classes are unknown
    assert lines[-1] == "lvis, coco: ok (errors: 0, warnings: 0)"


def test_warnings_are_shown_and_end_with_0(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = contents(["a.png"])
    data["annotations"][0]["bbox"] = [0, 0, 99, 9]
    data["annotations"][0]["area"] = None
    yaml_file = write_custom(tmp_path, data)
    assert main(["--custom", str(yaml_file), "--images", "none"]) == 0
    lines = squeezed(capsys.readouterr().out)
    json_file = tmp_path / "val.json"
    shown = [line for line in lines if line.startswith(("error: ", "warning: ", "note: "))]
    assert shown == [
        f"warning: {json_file}: expected boxes inside their image, to 1 pixel, got 1 that stick "
        "out: annotations[0] (id 101). Training clips them. If there are many: are they x, y, "
        "width, height in pixels?",
        f"note: {json_file}: expected areas, got 1 annotations without. Those of the boxes are "
        "used.",
    ]
    assert lines[-1] == "small: ok (errors: 0, warnings: 1)"  # notes are not counted


def test_notes_alone_are_shown_and_end_with_0(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = contents(["a.png"])
    for annotation in data["annotations"]:
        del annotation["segmentation"], annotation["id"]
    assert main(["--custom", str(write_custom(tmp_path, data))]) == 0
    lines = squeezed(capsys.readouterr().out)
    start = f"note: {tmp_path / 'val.json'}: expected"
    assert lines[-4:] == [
        f"{start} different annotation ids, got 3 missing or repeated. They are not used: "
        "annotations are numbered by their order.",
        f"{start} masks, got 3 objects without. They count for boxes alone.",
        "",
        "small: ok (errors: 0, warnings: 0)",
    ]


def test_a_train_split_without_base_objects_fails(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = contents(["a.png"])
    data["annotations"] = [a for a in data["annotations"] if a["category_id"] == 2]
    assert main(["--custom", str(write_custom(tmp_path, data, "train"))]) == 1
    assert squeezed(capsys.readouterr().out)[-4:] == [
        "objects: 0 of base classes, 1 of novel classes",
        f"error: {tmp_path / 'train.json'}: expected objects of base classes, got none. Nothing is "
        "left to train on.",
        "",
        "small: FAILED (errors: 1, warnings: 0)",
    ]


def test_a_custom_and_an_official_data_set_together(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--custom", str(write_custom(tmp_path)), "--dataset", "coco", "--root", str(tmp_path)]
    assert main(args) == 1
    assert capsys.readouterr().out.endswith("coco, small: FAILED (errors: 4, warnings: 0)\n")


@pytest.mark.parametrize("args", [["--keep-archives"], ["--archive-base", "http://127.0.0.1:9"]])
def test_options_of_the_download_alone_are_refused(main: Main, args: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert caught.value.code == 2


def serve_archives(
    server: Server, monkeypatch: pytest.MonkeyPatch, coco: Path | None = None
) -> None:
    """Serve small archives with the official names and folders, and adapt the checksums.

    Args:
        coco: folder to take COCO's files from; made up if missing.
    """
    members: dict[str, dict[str, bytes]] = {
        "train2017.zip": {"train2017/1.jpg": b"1", "train2017/2.jpg": b"2"},
        "val2017.zip": {"val2017/3.jpg": b"3"},
        "annotations_trainval2017.zip": {
            "annotations/instances_train2017.json": b"{}",
            "annotations/instances_val2017.json": b"{}",
        },
        "lvis_v1_train.json.zip": {"lvis_v1_train.json": b"{}"},
        "lvis_v1_val.json.zip": {"lvis_v1_val.json": b"{}"},
    }
    if coco is not None:
        for name, folder in (
            ("train2017.zip", "train2017"),
            ("val2017.zip", "val2017"),
            ("annotations_trainval2017.zip", "annotations"),
        ):
            members[name] = {
                str(file.relative_to(coco)): file.read_bytes() for file in (coco / folder).iterdir()
            }
    small = []
    for archive in ARCHIVES:
        data = make_zip(members[archive.name])
        server.files[urlsplit(archive.url).path] = data
        values = {
            **vars(archive),
            "md5": hashlib.md5(data).hexdigest(),
            "images": None if archive.images is None else len(members[archive.name]),
        }
        small.append(Archive(**values))
    monkeypatch.setattr(module, "ARCHIVES", tuple(small))


def files_below(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize("flat", [False, True])
def test_fetch_fills_the_layout_and_a_second_one_asks_for_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flat: bool
) -> None:
    serve_archives(server, monkeypatch)
    options: dict[str, Any] = {"flat": flat, "archive_base": server.url + "/", "progress": False}
    fetch("lvis", tmp_path, **options)
    images = ["train2017/1.jpg", "train2017/2.jpg", "val2017/3.jpg"]
    annotations = ["lvis_v1_train.json", "lvis_v1_val.json"]
    expected = (
        [f"annotations/{name}" for name in annotations] + images
        if flat
        else [f"coco/{name}" for name in images] + [f"lvis/{name}" for name in annotations]
    )
    assert files_below(tmp_path) == expected
    assert len(server.requests) == 4

    assert fetch("lvis", tmp_path, **options) == []
    assert len(server.requests) == 4
    # COCO has the same images
    (filled,) = fetch("coco", tmp_path, **options)
    assert filled == (tmp_path if flat else tmp_path / "coco")
    assert server.requests[4:] == [("/annotations/annotations_trainval2017.zip", None)]


def test_an_incomplete_folder_is_completed_and_archives_can_stay(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_archives(server, monkeypatch)
    fetch("coco", tmp_path, archive_base=server.url, keep_archives=True, progress=False)
    archives = sorted(path.name for path in tmp_path.glob("*.zip"))
    assert archives == ["annotations_trainval2017.zip", "train2017.zip", "val2017.zip"]
    (tmp_path / "coco" / "train2017" / "2.jpg").unlink()
    fetch("coco", tmp_path, archive_base=server.url, progress=False)
    assert (tmp_path / "coco" / "train2017" / "2.jpg").read_bytes() == b"2"
    assert len(server.requests) == 3  # unpacked again, not downloaded again


def test_an_archive_with_other_contents_is_named(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_archives(server, monkeypatch)
    data = make_zip({"readme.txt": b""})
    server.files["/LVIS/lvis_v1_val.json.zip"] = data
    archives = [
        Archive(**{**vars(a), "md5": hashlib.md5(data).hexdigest()})
        for a in module.ARCHIVES
        if a.name == "lvis_v1_val.json.zip"
    ]
    monkeypatch.setattr(module, "ARCHIVES", tuple(archives))
    with pytest.raises(ValueError, match=r"expected it to provide lvis_v1_val.json in .*/lvis"):
        fetch("lvis", tmp_path, archive_base=f"{server.url}/", progress=False)


def test_an_unknown_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a dataset among coco, lvis, got 'voc'"):
        fetch("voc", tmp_path)


def test_the_command_downloads_into_the_layout_in_use_and_checks(
    server: Server,
    main: Main,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expect_small(monkeypatch)
    make_coco(tmp_path / "made")
    serve_archives(server, monkeypatch, tmp_path / "made" / "coco")
    root = tmp_path / "root"
    (root / "val2017").mkdir(parents=True)
    args = ["--root", str(root), "--download", "coco", "--archive-base", server.url]
    assert main(args) == 0
    lines = squeezed(capsys.readouterr().out)
    assert lines[0] == "coco (flat layout)"
    assert lines[-1] == "coco: ok (errors: 0, warnings: 0)"
    assert list(root.glob("*.zip")) == []
    assert (root / "annotations" / "instances_val2017.json").is_file()
