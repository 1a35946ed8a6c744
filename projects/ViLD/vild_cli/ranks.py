"""Ranks assigned by torchrun or srun; only this module reads their environment variables."""

from __future__ import annotations

import os
from typing import NamedTuple

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

    @property
    def machines(self) -> int:
        """Number of machines of the job."""
        return self.world_size // self.per_machine


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
