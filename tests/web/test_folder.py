from __future__ import annotations

from pathlib import Path

from vild.web.folder import private_folder


def test_only_its_user_can_read_it_and_it_is_removed(tmp_path: Path) -> None:
    with private_folder(tmp_path / "new") as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert folder.parent == tmp_path / "new"
        (folder / "visitor.png").write_bytes(b"private")
    assert not list((tmp_path / "new").iterdir())


def test_folders_of_killed_servers_are_removed_others_stay(tmp_path: Path) -> None:
    (tmp_path / "vild-page-mine").mkdir()  # has no lock: not created by the server
    killed = tmp_path / "vild-page-killed"
    killed.mkdir()
    (killed / "lock").touch()  # not held by any process
    with private_folder(tmp_path) as running:
        assert not killed.exists()
        with private_folder(tmp_path) as second:
            assert running.is_dir()
            assert second != running
    assert [path.name for path in tmp_path.iterdir()] == ["vild-page-mine"]
