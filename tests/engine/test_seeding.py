"""The seed of a training and of its resumption."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import get_cfg

from vild.engine import resolve_seed


def seed(folder: Path, resume: bool, configured: int = -1) -> int:
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.SEED = str(folder), configured
    resolve_seed(cfg, resume)
    return int(cfg.SEED)


def test_a_seed_is_drawn_kept_and_taken_up_again(tmp_path: Path) -> None:
    first = seed(tmp_path / "run", resume=True)  # nothing to resume yet
    assert first >= 0
    assert [seed(tmp_path / "run", resume=True) for _ in range(3)] == [first] * 3
    others = {seed(tmp_path / "run", resume=False) for _ in range(3)}
    assert first not in others
    assert len(others) == 3


def test_a_configured_seed_stays(tmp_path: Path) -> None:
    assert seed(tmp_path, resume=True, configured=5) == 5
    assert not list(tmp_path.iterdir())
