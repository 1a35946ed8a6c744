"""Independent worker processes, for extraction over shards.

They need no process group, so machines may start at any time, and a failed one blocks no other.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import multiprocessing

from vild_cli.ranks import launched_place

logger = logging.getLogger(__name__)


def run_workers(
    main: Callable[..., None], args: argparse.Namespace, extra: Sequence[Any] = ()
) -> None:
    """Run ``main(rank, world_size, device, *extra)`` in every process of this machine.

    Args:
        main: a module-level function (it is pickled).
        args: arguments of :func:`vild_cli.arguments.add_worker_arguments`.
        extra: further positional arguments.

    Raises:
        ValueError: the number of processes or machines is invalid, or a process failed.
    """
    place = launched_place()
    if place is not None:
        main(place.rank, place.world_size, _device(args.device, place.local_rank), *extra)
        return
    machines, machine = args.num_machines, args.machine_rank
    processes = args.num_processes
    if processes is None:
        processes = max(1, torch.cuda.device_count())
    if processes < 1 or not 0 <= machine < machines:
        raise ValueError(
            "expected --num-processes of 1 or more and --machine-rank from 0 to --num-machines - "
            f"1, got {processes} processes, machine {machine} of {machines}"
        )
    if processes == 1:
        main(machine, machines, _device(args.device, 0), *extra)
        return
    first, world_size = machine * processes, machines * processes
    try:
        multiprocessing.spawn(
            _worker,
            nprocs=processes,
            args=(main, first, world_size, args.device, tuple(extra)),
        )
    except multiprocessing.ProcessExitedException as error:
        raise ValueError(
            f"process {first + error.error_index} stopped ({error}); its message is above. "
            "Written shards are complete; rerun the command to resume."
        ) from None


def _worker(
    local: int,
    main: Callable[..., None],
    first: int,
    world_size: int,
    device: str | None,
    extra: tuple[Any, ...],
) -> None:
    logging.basicConfig(level=logging.INFO, format=f"[{first + local}] %(message)s")
    try:
        main(first + local, world_size, _device(device, local), *extra)
    except (ValueError, OSError) as error:  # for the user; anything else gets a traceback
        logger.error("error: %s", error)
        sys.exit(2)


def _device(asked: str | None, local: int) -> str:
    if asked and asked != "cuda":
        return asked
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{local % torch.cuda.device_count()}"
