"""The place that torchrun or srun has given this process; the only reading of their variables."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch

RESTARTED = "vild-restarted"  # scheme of a URL; see vild.engine.launching
# SLURM's numbers for what is no step of srun: batch scripts, interactive shells and the like
_NO_STEP = 0xFFFFFFF0


class Place(NamedTuple):
    """Where in a job a launcher has put this process.

    Attributes:
        rank: among all processes of the job.
        world_size: number of them.
        local_rank: among the processes of this machine.
        per_machine: number of these.
        machine: which machine this is, from 0.
        url: where the processes meet; None if the launcher does not say.
    """

    rank: int
    world_size: int
    local_rank: int
    per_machine: int
    machine: int
    url: str | None


def launched_place() -> Place | None:
    """Return the place that torchrun or srun gives; None where neither has started this process.

    A batch script or a shell on a cluster has SLURM's numbers, too: it is one process, whatever
    they say.
    """
    environ = os.environ
    if "TORCHELASTIC_RUN_ID" in environ:
        per_machine, world_size = int(environ["LOCAL_WORLD_SIZE"]), int(environ["WORLD_SIZE"])
        local, machine = int(environ["LOCAL_RANK"]), int(environ["GROUP_RANK"])
        # with several machines each counts its own restarts: torch's way is the only common one
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
    """Return the index of a process's GPU among those that it sees.

    Args:
        local_rank: of the process.
        per_machine: processes of its machine.

    Raises:
        ValueError: it sees several, but fewer than there are processes.
    """
    seen = torch.cuda.device_count()
    if seen == 1:  # of its own, as by srun's --gpus-per-task=1
        return 0
    if seen < per_machine:
        raise ValueError(
            f"expected a GPU for each of the {per_machine} processes of this machine, or one "
            f"visible to each, got {seen}: start fewer processes"
        )
    return local_rank
