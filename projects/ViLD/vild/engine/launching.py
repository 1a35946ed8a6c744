"""The launcher, which starts the processes of a job or joins those of torchrun or srun.

Compared with Detectron2's launcher, it chooses the backend by device, supports processes that see
only one GPU, reports errors in one line, forwards signals and destroys the process group.
The ranks and addresses that torchrun and srun assign are read in ``vild_cli/ranks.py``.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import active_children
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine.launch import _find_free_port
from detectron2.utils import comm
from torch import multiprocessing

from vild.engine.hooks import STOP_SIGNALS
from vild_cli.ranks import RESTARTED, Place, launched_place

logger = logging.getLogger(__name__)

EXIT_ERROR = 2  # the user has been shown a message
EXIT_CTRL_C = 128 + signal.SIGINT
# torch's messages for a rank that has exited or does not respond
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out",
         "timed out", "NCCL", "Socket Timeout")  # fmt: skip


def launch(
    main: Callable[..., Any],
    num_processes: int,
    *,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: Sequence[Any] = (),
    timeout: timedelta = timedelta(minutes=30),
    device: str = "cuda",
) -> None:
    """Run ``main(*args)`` in every process of a job.

    Under torchrun or srun this process is one of them, and the numbers given here are ignored.
    Otherwise the processes of this machine are started.

    Args:
        main: a module-level function (it is pickled).
        num_processes: processes on this machine; 0 or 1 on a single machine run in this process.
        num_machines: machines of the job.
        machine_rank: index of this machine, from 0.
        dist_url: rendezvous address, such as ``tcp://first-machine:29500`` (``--dist-url``);
            ``auto``, a free port of this machine, if the processes of one machine are started here.
        args: positional arguments of ``main``.
        timeout: for the rendezvous and for every collective operation.
        device: ``cpu`` selects gloo even if there are GPUs; otherwise NCCL is used if there is a
            GPU.

    Raises:
        ValueError: the numbers are invalid, the rendezvous at ``dist_url`` failed, or a process
            failed, which has printed its message.
        SystemExit: the processes were stopped by a signal, after a checkpoint.
    """
    on_gpus = device != "cpu" and torch.cuda.is_available()
    place = launched_place()
    if place is not None:
        url = place.url or dist_url
        if url == "auto":
            raise ValueError("expected dist_url tcp://FIRST_MACHINE:PORT under srun, got 'auto'")
        with _errors_of_a_process(dist_url):
            _join(place._replace(url=url), timeout, on_gpus, main, args)
        return
    if num_machines < 1 or not 0 <= machine_rank < num_machines or num_processes < 0:
        raise ValueError(
            "expected --machine-rank from 0 to --num-machines - 1, got machine "
            f"{machine_rank} of {num_machines} with {num_processes} processes"
        )
    if num_machines > 1 and dist_url == "auto":
        raise ValueError(
            f"expected dist_url tcp://FIRST_MACHINE:PORT for {num_machines} machines, got 'auto'"
        )
    if on_gpus and num_processes > torch.cuda.device_count():
        raise ValueError(
            f"expected at most {torch.cuda.device_count()} processes, one per GPU of this machine, "
            f"got --num-gpus {num_processes}"
        )
    processes = max(num_processes, 1)
    if processes * num_machines == 1:
        main(*args)
        return
    url = f"tcp://127.0.0.1:{_find_free_port()}" if dist_url == "auto" else dist_url
    job = (processes, num_machines, machine_rank, url, timeout, on_gpus, main, args)
    with _signals_passed_on(), _errors_of_a_process(dist_url):
        multiprocessing.spawn(_started, nprocs=processes, args=job)


def _started(
    local_rank: int, processes: int, machines: int, machine: int, url: str, *job: Any
) -> None:
    """Run as one of the processes started by :func:`launch`."""
    rank, world_size = machine * processes + local_rank, machines * processes
    _join(Place(rank, world_size, local_rank, processes, machine, url), *job)


def _join(
    place: Place,
    timeout: timedelta,
    on_gpus: bool,
    main: Callable[..., Any],
    args: Sequence[Any],
) -> None:
    """Join the process group and run ``main(*args)``, like Detectron2's worker."""
    gpu = gpu_of(place.local_rank, place.per_machine) if on_gpus else None
    dist.init_process_group(
        "nccl" if on_gpus else "gloo",
        init_method=place.url,
        world_size=place.world_size,
        rank=place.rank,
        timeout=timeout,
    )
    _group_by_machine(place)
    if gpu is not None:
        torch.cuda.set_device(gpu)
    comm.synchronize()  # like Detectron2: the first collective may take longer
    _run(main, *args)


def _group_by_machine(place: Place) -> None:
    """Create the process groups behind ``comm.get_local_rank``."""
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(place.per_machine)
        return
    # Detectron2 v0.6 does this inside its worker
    for first in range(0, place.world_size, place.per_machine):
        group = dist.new_group(list(range(first, first + place.per_machine)))
        if first == place.machine * place.per_machine:
            comm._LOCAL_PROCESS_GROUP = group


def _run(main: Callable[..., Any], *args: Any) -> None:
    """Run one of several processes, which reports its own errors."""
    rank = dist.get_rank()
    try:
        main(*args)
    except KeyboardInterrupt:
        os._exit(EXIT_CTRL_C)  # torch's launcher would take it for success
    except Exception as error:
        message = explained(error)
        if message is None:
            raise
        _tell(rank, message)
    # not after an error: the other ranks may never arrive
    dist.destroy_process_group()
    if multiprocessing.parent_process() is not None:
        _leave()


def _leave() -> None:
    """Exit a finished process without the interpreter's shutdown.

    During shutdown, threads of torch's libraries sometimes abort the process (SIGABRT, on busy
    machines), which would make the whole job fail.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def explained(error: Exception) -> str | None:
    """Return a message for the user, or None if the error needs a traceback."""
    if isinstance(error, ValueError | OSError | FloatingPointError):
        return str(error)
    # torch has no exception type for this on the CPU
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
        return (
            f"out of memory ({str(error).splitlines()[0] if str(error) else 'no details'}). "
            "Lower SOLVER.IMS_PER_BATCH or the size of the images (INPUT.*)"
        )
    if isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST):
        return (
            "another process of the job ended or does not respond "
            f"({str(error).splitlines()[0]:.200}). Look for its message; --resume continues "
            "from the last checkpoint"
        )
    return None


def _tell(rank: int, message: str) -> None:
    sys.stderr.write(f"error: process {rank}: {message}\n")
    sys.stderr.flush()
    # skips the interpreter's shutdown, where the process group would wait for lost ranks
    os._exit(EXIT_ERROR)


def _meet_again(url: str, timeout: timedelta, **_: Any) -> Iterator[tuple[dist.Store, int, int]]:
    """Join the job like env://, with separate keys for every restart.

    torchrun's store outlives the processes. Restarted processes would otherwise find the addresses
    of the previous ones and wait for them.
    """
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    for store, rank, world_size in dist.rendezvous("env://", timeout=timeout):
        yield dist.PrefixStore(f"restart_{restart}", store), rank, world_size


dist.register_rendezvous_handler(RESTARTED, _meet_again)


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


@contextmanager
def _signals_passed_on() -> Iterator[None]:
    """Forward signals to the processes of the job, for which this process only waits.

    Raises:
        SystemExit: after a signal, with 128 + its number.
    """
    received = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for child in active_children():
            if child.pid is not None:
                os.kill(child.pid, number)

    before = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        yield
    except Exception:
        if not received:
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        sys.exit(128 + received[0])


@contextmanager
def _errors_of_a_process(url: str) -> Iterator[None]:
    try:
        yield
    except multiprocessing.ProcessExitedException as error:
        if error.exit_code > 128:
            sys.exit(error.exit_code)
        raise ValueError(f"a process of this machine stopped ({error}); see above") from None
    except multiprocessing.ProcessRaisedException as error:
        if "init_process_group" not in str(error):
            raise
        raise ValueError(_no_meeting(url, str(error).strip().splitlines()[-1])) from None
    except dist.DistError as error:
        raise ValueError(_no_meeting(url, str(error).splitlines()[0])) from None


def _no_meeting(url: str, why: str) -> str:
    return (
        f"the processes of the job could not connect at {url}: {why:.300}. Check that every machine"
        " has the same --dist-url, --num-machines and --num-gpus, that each --machine-rank is used "
        "once, and that the port of machine 0 is free and reachable"
    )
