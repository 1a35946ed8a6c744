from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from vild.engine import explained, launch
from vild.engine.launching import _run, gpu_of
from vild.engine.workers import run_workers
from vild_cli.arguments import add_worker_arguments
from vild_cli.ranks import launched_place
from vild_cli.training import parse


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


def test_the_process_group_is_taken_down(tmp_path: Path) -> None:
    rendezvous = f"file://{tmp_path}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=0, world_size=1)
    _run(_write, str(tmp_path), "there")
    assert (tmp_path / "done").exists()
    assert not dist.is_initialized()


TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
TORCHRUN |= {"GROUP_RANK": "3", "WORLD_SIZE": "8", "RANK": "7"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "16", "SLURM_NNODES": "2", "SLURM_LOCALID": "5"}
SRUN |= {"SLURM_NODEID": "1", "SLURM_PROCID": "13"}
STEP = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2"}
# a batch script is one process, but SLURM's numbers are those of the whole allocation
SBATCH = {key: value for key, value in SRUN.items() if key != "SLURM_STEP_ID"}
SBATCH |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}

PLACES = [
    (TORCHRUN, (7, 8, 1, 2, 3, "env://")),
    (TORCHRUN | {"GROUP_RANK": "0", "WORLD_SIZE": "2"}, (7, 2, 1, 2, 0, "vild-restarted://")),
    (SRUN, (13, 16, 5, 8, 1, None)),
    (SRUN | STEP | {"SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, (3, 4, 1, 2, 1, None)),
    (SBATCH, None),
    (SBATCH | {"SLURM_STEP_ID": "4294967291"}, None),  # batch scripts in newer SLURMs
    (SRUN | {"SLURM_NTASKS": "1"}, None),
    ({}, None),
]


@pytest.fixture
def environ(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in TORCHRUN | SRUN | STEP:
        monkeypatch.delenv(key, raising=False)
    for key, value in request.param.items():
        monkeypatch.setenv(key, value)


@pytest.mark.parametrize(("environ", "place"), PLACES, indirect=["environ"])
def test_places_that_other_launchers_give(
    environ: None, place: tuple[int | str | None, ...] | None
) -> None:
    """Training and extraction must agree, or part of the work is skipped with exit code 0."""
    assert launched_place() == place
    parser = argparse.ArgumentParser()
    add_worker_arguments(parser)
    seen = []
    run_workers(
        lambda rank, world_size, device: seen.append((rank, world_size)),
        parser.parse_args(["--num-processes", "1", "--device", "cpu"]),
    )
    assert seen == [(0, 1) if place is None else place[:2]]


@pytest.mark.parametrize(
    ("visible", "local_rank", "gpu"),
    [(8, 5, 5), (1, 5, 0), (9, 7, 7), (1, 0, 0), (3, 2, None), (0, 2, None)],
)
def test_the_gpu_of_a_process(
    visible: int, local_rank: int, gpu: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With srun's --gpus-per-task=1 each process sees one GPU, whatever its rank."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    if gpu is None:
        with pytest.raises(ValueError, match=f"each of the 8 processes.*got {visible}: start"):
            gpu_of(local_rank, 8)
    else:
        assert gpu_of(local_rank, 8) == gpu


@pytest.mark.parametrize(
    ("device", "gpus", "expected"), [("cpu", 8, "gloo"), ("cuda", 8, "nccl"), ("cuda", 0, "gloo")]
)
def test_processes_speak_as_their_device_wants(
    device: str, gpus: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL does not support CPU tensors, whether the machine has GPUs or not."""
    for key in TORCHRUN | SRUN | STEP:
        monkeypatch.delenv(key, raising=False)
    begun = []

    class _Reached(Exception):
        pass

    def begin(backend: str, **_: object) -> None:
        begun.append(backend)
        raise _Reached

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(dist, "init_process_group", begin)
    monkeypatch.setattr(
        "torch.multiprocessing.spawn", lambda function, nprocs, args: function(0, *args)
    )
    with pytest.raises(_Reached):
        launch(_fail, 2, device=device)
    assert begun == [expected]


@pytest.mark.parametrize(
    ("numbers", "complaint"),
    [
        ({"num_machines": 2, "machine_rank": 2}, "machine 2 of 2"),
        ({"num_machines": 0}, "machine 0 of 0"),
        ({"num_processes": -1}, "with -1 processes"),
        ({"num_machines": 2}, "expected dist_url tcp.* for 2 machines, got 'auto'"),
    ],
)
def test_impossible_numbers(numbers: dict[str, int], complaint: str) -> None:
    processes = numbers.pop("num_processes", 1)
    with pytest.raises(ValueError, match=complaint):
        launch(_fail, processes, **numbers)


@pytest.mark.parametrize(
    ("environ", "options", "machines"),
    [
        ({}, ("--num-machines", "2"), 2),
        (SBATCH, ("--num-machines", "3", "--machine-rank", "1"), 3),
        (SRUN, (), 2),
        ({}, (), None),
        ({}, ("--num-gpus", "8"), None),
        ({}, ("--num-machines", "2", "--dist-url", "tcp://first:29500"), None),
        (SRUN, ("--dist-url", "tcp://first:29500"), None),
        (SRUN | {"SLURM_NNODES": "1"}, (), None),
        (TORCHRUN, ("--num-machines", "2"), None),
    ],
    indirect=["environ"],
)
def test_several_machines_need_a_common_address(
    environ: None,
    options: tuple[str, ...],
    machines: int | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With Detectron2's default every other machine would wait for itself, for 30 minutes."""
    if machines is None:
        parse(options)
        return
    with pytest.raises(SystemExit):
        parse(options)
    message = f"error: expected --dist-url tcp://FIRST_MACHINE:PORT, the same on all {machines} mac"
    assert message in capsys.readouterr().err


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
