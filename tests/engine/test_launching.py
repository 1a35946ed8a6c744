from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from vild.engine import explained, launch, parse
from vild.engine.launching import _launched_by_another, _run


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
    _run(_write, str(tmp_path), "there")
    assert (tmp_path / "done").exists()
    assert not dist.is_initialized()


TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
TORCHRUN |= {"GROUP_RANK": "3", "WORLD_SIZE": "8"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "16", "SLURM_NNODES": "2", "SLURM_LOCALID": "5"}
SRUN |= {"SLURM_NODEID": "1"}


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        (TORCHRUN, (1, 2, 3, 8, "env://")),
        (TORCHRUN | {"GROUP_RANK": "0", "WORLD_SIZE": "2"}, (1, 2, 0, 2, "vild-restarted://")),
        (SRUN, (5, 8, 1, 16, None)),
        ({key: value for key, value in SRUN.items() if key != "SLURM_STEP_ID"}, None),
        (SRUN | {"SLURM_NTASKS": "1"}, None),
        ({}, None),
    ],
)
def test_places_that_other_launchers_give(
    environ: dict[str, str],
    place: tuple[int | str | None, ...] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for key in TORCHRUN | SRUN:
        monkeypatch.delenv(key, raising=False)
    for key, value in environ.items():
        monkeypatch.setenv(key, value)
    assert _launched_by_another() == place


@pytest.mark.parametrize(
    ("numbers", "complaint"),
    [
        ({"num_machines": 2, "machine_rank": 2}, "machine 2 of 2"),
        ({"num_machines": 0}, "machine 0 of 0"),
        ({"num_processes": -1}, "with -1 processes"),
        ({"num_machines": 2}, "expected --dist-url tcp.* for 2 machines, got auto"),
    ],
)
def test_impossible_numbers(numbers: dict[str, int], complaint: str) -> None:
    processes = numbers.pop("num_processes", 1)
    with pytest.raises(ValueError, match=complaint):
        launch(_fail, processes, **numbers)


def test_tasks_before_overrides() -> None:
    words = ["--eval-only", "--eval", "bbox", "segm", "MODEL.WEIGHTS", "a.pth"]
    args = parse(words)
    assert (args.eval, args.opts) == (("bbox", "segm"), ["MODEL.WEIGHTS", "a.pth"])
    args = parse(["--eval", "segm", "--out", "a.json", "--no-zero-shot"])
    assert (args.eval, args.out, args.zero_shot) == (("segm",), "a.json", False)
    args = parse(["--resume", "--resume-from", "model_0000001.pth"])
    assert (args.resume, args.resume_from, args.zero_shot, args.eval) == (
        True,
        "model_0000001.pth",
        None,
        None,
    )
    with pytest.raises(SystemExit):
        parse(["--eval", "boxes"])


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("say this"), "say this"),
        (MemoryError(), "out of memory.*IMS_PER_BATCH"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "out of memory.*IMS_PER_BATCH"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            "out of memory",
        ),
        (RuntimeError("[x.cc:1] Connection closed by peer [::1]:3"), "another process.*--resume"),
        (RuntimeError("shape '[2]' is invalid"), None),
        (TypeError("a defect"), None),
    ],
)
def test_errors_for_the_user(error: Exception, told: str | None) -> None:
    message = explained(error)
    assert (message is None) == (told is None)
    assert told is None or re.search(told, message or "")
