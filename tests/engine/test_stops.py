"""Signals cause a checkpoint, a one-line message and the exit code 128 + signal number."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vild.engine import launch
from vild.engine.hooks import CheckpointAndStop, Evaluation, stop_signals_held


class Checkpointer:
    def __init__(self) -> None:
        self.names: list[str] = []

    def save(self, name: str, **_: Any) -> None:
        self.names.append(name)


@pytest.fixture
def stop() -> Iterator[CheckpointAndStop]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    hook = CheckpointAndStop(Checkpointer())  # type: ignore[arg-type]
    hook.trainer = type("T", (), {"iter": 7, "max_iter": 10})()
    hook.before_train()
    yield hook
    hook.after_train()
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def test_ctrl_c_writes_a_checkpoint(stop: CheckpointAndStop) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)  # as if from both terminal and launcher
    with pytest.raises(SystemExit) as ended:
        stop.after_step()
    assert ended.value.code == 130
    assert stop.checkpointer.names == ["model_0000007"]


@pytest.mark.parametrize("seconds", [0.2, 0.6])
def test_a_second_ctrl_c_ends_at_once(
    stop: CheckpointAndStop, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    os.kill(os.getpid(), signal.SIGINT)
    stop._at -= seconds
    os.kill(os.getpid(), signal.SIGINT)
    assert codes == ([130] if seconds > 0.5 else [])


def test_workers_of_a_loader_go_on(stop: CheckpointAndStop) -> None:
    process = os.fork()
    if not process:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGUSR1)
        os._exit(stop.received)
    assert os.waitpid(process, 0)[1] == 0


def test_processes_that_begin_while_signals_are_held_never_get_them() -> None:
    code = "import os, signal\nfor n in (2, 10, 15): os.kill(os.getpid(), n)\nprint('alive')"
    with stop_signals_held():
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "alive\n"


def interrupted() -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGINT)
    return {"bbox": {"AP": 1.0}}


def test_an_evaluation_is_left_at_once_and_a_checkpoint_follows(stop: CheckpointAndStop) -> None:
    evaluation = Evaluation(4, interrupted, stop)
    evaluation.trainer = stop.trainer
    evaluation.after_step()
    with pytest.raises(SystemExit) as ended:
        stop.after_step()
    assert ended.value.code == 130
    assert stop.checkpointer.names == ["model_0000007"]


def test_the_last_evaluation_is_left_without_a_checkpoint(stop: CheckpointAndStop) -> None:
    evaluation = Evaluation(0, interrupted, stop)
    evaluation.trainer = stop.trainer
    stop.trainer.iter = 10
    with pytest.raises(SystemExit) as ended:
        evaluation.after_train()
    assert ended.value.code == 130
    assert not stop.checkpointer.names


def test_nothing_is_evaluated_after_an_error_in_the_last_step(stop: CheckpointAndStop) -> None:
    evaluation = Evaluation(0, lambda: pytest.fail("evaluated"), stop)
    evaluation.trainer = stop.trainer
    stop.trainer.iter = 9
    evaluation.after_train()


def _interrupt(folder: str) -> None:
    Path(folder, str(os.getpid())).touch()
    os.kill(os.getppid(), signal.SIGINT)  # the launcher, which forwards it
    signal.pause()


@pytest.mark.exhaustive
def test_ctrl_c_ends_all_processes_of_a_job(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        launch(_interrupt, 2, args=(str(tmp_path),))
    assert ended.value.code == 130
