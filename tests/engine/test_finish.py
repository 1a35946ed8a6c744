"""A finished training leaves complete files, whatever stopped an earlier attempt."""

from __future__ import annotations

import json
import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.utils.events import EventStorage
from detectron2.utils.logger import setup_logger

from vild.engine import Trainer, report_log_errors_once, resolve_seed
from vild.engine.writing import remove_cut_line

from .. import small_shapes

TWO_STEPS = {"SOLVER__IMS_PER_BATCH": 2, "SOLVER__MAX_ITER": 2, "SOLVER__CHECKPOINT_PERIOD": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("finish")
    small_shapes.make(made, 2)
    return made


def trainer(folder: Path, run: Path, **changes: Any) -> Trainer:
    run.mkdir(exist_ok=True)
    small_shapes.register(folder)
    changes = {**TWO_STEPS, "DATASETS__TEST": (), **changes}
    made = Trainer(small_shapes.config(folder, "vild", OUTPUT_DIR=str(run), **changes))
    made.resume_or_load()
    return made


def read(file: Path) -> dict[str, Any]:
    return torch.load(file, weights_only=False)


def test_the_final_weights_are_written_on_resume(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trainer(folder, run).train()
    final = run / "model_final.pth"
    expected = read(final)
    # killed between last and final checkpoint: the final one is missing, or of a shorter run
    for left in (None, run / "model_0000000.pth"):
        final.unlink()
        if left is not None:
            final.write_bytes(left.read_bytes())
        (run / "last_checkpoint").write_text("model_0000001.pth", encoding="utf-8")
        trainer(folder, run).train()
        found = read(final)
        assert found["iteration"] == found["trainer"]["iteration"] == 1
        assert all(torch.equal(value, found["model"][k]) for k, value in expected["model"].items())
        assert found["trainer"].keys() == expected["trainer"].keys()
        assert (run / "last_checkpoint").read_text(encoding="utf-8") == "model_final.pth"
    written = final.stat().st_mtime_ns
    trainer(folder, run).train()
    assert final.stat().st_mtime_ns == written

    with pytest.raises(ValueError, match=r"MAX_ITER of at least 2, the iterations of .* got 1"):
        trainer(folder, run, SOLVER__MAX_ITER=1)


def test_the_last_evaluation_is_repeated_on_resume(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    test = {"DATASETS__TEST": (small_shapes.SEEN,), "SOLVER__MAX_ITER": 1}
    trainer(folder, run, **test).train()
    metrics = run / f"{small_shapes.SEEN}_metrics.json"
    metrics.unlink()
    trainer(folder, run, **test).train()
    assert metrics.is_file()


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Limit the size of files, to simulate a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_and_the_training_resumes(
    folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    trainer(folder, run, SOLVER__MAX_ITER=1).train()
    (run / "model_final.pth").unlink()
    (run / "last_checkpoint").write_text("model_0000000.pth", encoding="utf-8")
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    with disk_of(100_000), pytest.raises(OSError, match=r"File too large: '.*model_0000001\.pth'"):
        trainer(folder, run).train()
    assert "the training ended: [Errno 27] File too large" in caplog.text
    assert "Traceback" not in caplog.text
    assert [f.name for f in run.glob("*.pth")] == ["model_0000000.pth"]
    assert not [f for f in run.glob(".*") if ".vild-" in f.name]
    assert (run / "last_checkpoint").read_text(encoding="utf-8") == "model_0000000.pth"

    trainer(folder, run).train()
    assert (run / "model_final.pth").is_file()


def test_a_full_disk_leaves_lines_of_metrics(folder: Path, tmp_path: Path) -> None:
    made, metrics = trainer(folder, tmp_path / "run"), tmp_path / "run" / "metrics.json"
    metrics.write_text('{"iteration": 0}\n' * 2000, encoding="utf-8")  # larger than other files
    for size, whole in ((metrics.stat().st_size + 10, False), (100_000, True)):
        with EventStorage(1) as storage, disk_of(size):
            storage.put_scalar("total_loss", 1.0)
            _, writer, _ = made.build_writers()
            if whole:
                writer.write()
            else:
                with pytest.raises(OSError, match=r"File too large: '.*/metrics\.json'"):
                    writer.write()
        assert metrics.read_text(encoding="utf-8").endswith("\n") == whole
    lines = metrics.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["iteration"] for line in lines[-2:]] == [0, 1]


def test_another_number_of_processes_is_named(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = trainer(folder, tmp_path / "run")
    state = made.state_dict()
    made.load_state_dict(state)
    del state["processes"]  # like an older checkpoint
    made.load_state_dict(state)
    assert "processes" not in caplog.text
    made.load_state_dict({**state, "processes": 8})
    assert "ran with 8 processes and resumes with 1" in caplog.text


@pytest.mark.parametrize(
    ("before", "after"), [("", ""), ("a\nb\n", "a\nb\n"), ("a\nb", "a\n"), ("a", "")]
)
def test_a_line_that_was_cut_off_is_removed(tmp_path: Path, before: str, after: str) -> None:
    file = tmp_path / "metrics.json"
    remove_cut_line(file)
    file.write_text(before, encoding="utf-8")
    remove_cut_line(file)
    assert file.read_text(encoding="utf-8") == after


def test_a_log_on_a_full_disk_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.txt").symlink_to("/dev/full")
    logger = setup_logger(str(tmp_path), name="vild")
    try:
        report_log_errors_once()
        for _ in range(3):
            logger.info("a message")
    finally:
        logger.handlers.clear()
        logger.propagate = True
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("log.txt cannot be written and ends here: [Errno 28] No space left on "
                         "device")  # fmt: skip


def test_a_damaged_seed_is_named(folder: Path, tmp_path: Path) -> None:
    cfg = small_shapes.config(folder, "vild", OUTPUT_DIR=str(tmp_path), SEED=-1)
    (tmp_path / "seed.txt").touch()
    with pytest.raises(ValueError, match=r"expected the seed of the training in .*seed\.txt"):
        resolve_seed(cfg, resume=True)
    resolve_seed(cfg, resume=False)
    assert int((tmp_path / "seed.txt").read_text(encoding="utf-8")) == cfg.SEED
