"""Ranks assigned by torchrun or srun; only this module reads their environment variables."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch

RESTARTED = "vild-restarted"  # scheme of a URL; see vild.engine.launching
# SLURM step ids from here on are not srun steps but batch scripts, interactive shells etc.
_NO_STEP = 0xFFFFFFF0


class Place(NamedTuple):
    """The place of this process in a job, as assigned by the launcher.

    Attributes:
        rank: global rank.
        world_size: number of processes in the job.
        local_rank: rank among the processes of this machine.
        per_machine: number of processes on this machine.
        machine: index of this machine, from 0.
        url: rendezvous address; None if the launcher does not set one.
    """

    rank: int
    world_size: int
    local_rank: int
    per_machine: int
    machine: int
    url: str | None


def launched_place() -> Place | None:
    """Return the place assigned by torchrun or srun; None if neither started this process.

    Batch scripts and shells on a cluster also have SLURM's variables, but are a single process.
    """
    environ = os.environ
    if "TORCHELASTIC_RUN_ID" in environ:
        per_machine, world_size = int(environ["LOCAL_WORLD_SIZE"]), int(environ["WORLD_SIZE"])
        local, machine = int(environ["LOCAL_RANK"]), int(environ["GROUP_RANK"])
        # each machine counts its own restarts, so several machines can only share env://
        scheme = "env" if world_size > per_machine else RESTARTED
        rank = int(environ["RANK"])
        return Place(rank, world_size, local, per_machine, machine, f"{scheme}://")
    if int(environ.get("SLURM_STEP_ID", _NO_STEP)) >= _NO_STEP:
        return None
    world_size = int(environ.get("SLURM_STEP_NUM_TASKS", environ.get("SLURM_NTASKS", 1)))
    if world_size == 1:
        return None
    machines = int(environ.get("SLURM_STEP_NUM_NODES", environ.get("SLURM_NNODES", 1)))
    rank, local = int(environ["SLURM_PROCID"]), int(environ["SLURM_LOCALID"])
    machine = int(environ["SLURM_NODEID"])
    return Place(rank, world_size, local, world_size // machines, machine, None)


def gpu_of(local_rank: int, per_machine: int) -> int:
    """Return the index of a process's GPU among the visible ones.

    Args:
        local_rank: local rank of the process.
        per_machine: processes on its machine.

    Raises:
        ValueError: several GPUs are visible, but fewer than there are processes.
    """
    seen = torch.cuda.device_count()
    if seen == 1:  # each process sees only its GPU, as with srun's --gpus-per-task=1
        return 0
    if seen < per_machine:
        raise ValueError(
            f"expected a GPU for each of the {per_machine} processes of this machine, or one "
            f"visible to each, got {seen}: start fewer processes"
        )
    return local_rank
