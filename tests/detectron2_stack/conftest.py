"""Detectron2's own launcher starts processes as it does for users."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from torch import multiprocessing


@pytest.fixture(scope="module", autouse=True)
def _processes_are_spawned(_processes_of_launch_are_forked: None) -> Iterator[None]:
    """Undo the forking of tests/conftest.py: the edits of the launcher depend on spawning."""
    forking = multiprocessing.spawn
    multiprocessing.spawn = sys.modules["torch.multiprocessing.spawn"].spawn
    yield
    multiprocessing.spawn = forking
