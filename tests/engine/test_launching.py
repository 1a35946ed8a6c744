from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from vild.engine import launch
from vild.engine.launching import _run_and_leave


def _write(folder: str, text: str) -> None:
    Path(folder, "done").write_text(text, encoding="utf-8")


def _fail() -> None:
    raise ValueError("a message for the user")


def test_one_process_runs_here(tmp_path: Path) -> None:
    launch(_write, 1, args=(str(tmp_path), "here"))
    assert (tmp_path / "done").read_text(encoding="utf-8") == "here"


def test_an_error_of_one_process_reaches_the_caller() -> None:
    with pytest.raises(ValueError, match="a message for the user"):
        launch(_fail, 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the launcher takes NCCL (gpu)")
def test_the_process_group_is_taken_down(tmp_path: Path) -> None:
    rendezvous = f"file://{tmp_path}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=0, world_size=1)
    _run_and_leave(_write, str(tmp_path), "there")
    assert (tmp_path / "done").exists()
    assert not dist.is_initialized()
