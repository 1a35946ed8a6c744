"""A thin adapter to Detectron2's launcher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import detectron2.engine
import torch.distributed as dist


def launch(
    main: Callable[..., Any],
    num_processes: int,
    *,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: Sequence[Any] = (),
) -> None:
    """Run ``main(*args)`` in every process of a job, with a process group that is taken down.

    Detectron2's launcher leaves the group to the interpreter's end, where gloo's threads may still
    run: now and then a process that did its work then dies with SIGABRT.

    Args:
        main: function of a module (it is pickled).
        num_processes: on this machine; 0 or 1 on a single machine run in this very process.
        num_machines: machines of the job.
        machine_rank: which of them this is, from 0.
        dist_url: where they meet; ``auto`` is for one machine.
        args: positional arguments of ``main``.
    """
    detectron2.engine.launch(
        _run_and_leave,
        num_processes,
        num_machines=num_machines,
        machine_rank=machine_rank,
        dist_url=dist_url,
        args=(main, *args),
    )


def _run_and_leave(main: Callable[..., Any], *args: Any) -> None:
    main(*args)
    if dist.is_initialized():  # not after an error: the other processes may never come
        dist.destroy_process_group()
