"""Helpers that several benchmarks share."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch


def choose_device(name: str | None) -> str:
    """Return the requested device, by default a GPU if there is one."""
    return name or ("cuda" if torch.cuda.is_available() else "cpu")


def describe_machine(device: str) -> str:
    """Return the processor or GPU, the number of threads and torch's version."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def synchronise() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def alternate(rounds: int, jobs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median seconds of each job, run alternately after a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            synchronise()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
