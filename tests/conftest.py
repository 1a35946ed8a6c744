"""Fixtures and the list of versions that every test log begins with."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing

from . import forked  # noqa: F401 (what the server of forked processes imports)

# Two tests side by side must not take four threads on two cores, nor the processes they start.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"

# Nothing here may reach out: code that would load weights from a hub has to fail at once.
os.environ["HF_HUB_OFFLINE"] = "1"

# what makes Chromium stay offline and start as root in a container
_CHROMIUM = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
_VERSIONS = (
    *("torch", "torchvision", "detectron2", "fvcore", "iopath", "lvis", "pycocotools"),
    *("open_clip_torch", "clip-anytorch", "ftfy", "regex", "safetensors"),
    *("opencv-python-headless", "numpy", "Pillow", "matplotlib", "tensorboard", "tqdm"),
    *("setuptools", "pip", "pytest", "pytest-xdist", "ruff", "mypy", "codespell", "vild"),
)


def pytest_report_header() -> list[str]:
    import detectron2

    found = []
    for name in _VERSIONS:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} (no metadata)")
    origin = Path(detectron2.__file__).parent
    return [
        f"python {platform.python_version()} at {sys.executable}",
        f"versions: {', '.join(found)}",
        f"detectron2 from {origin}; CUDA: {torch.version.cuda}, GPUs: {torch.cuda.device_count()}",
    ]


@pytest.fixture(scope="session", autouse=True)
def _processes_of_launch_are_forked() -> None:
    """From a server that has imported the libraries, which takes four seconds of a core each."""
    forking = partial(multiprocessing.start_processes, start_method="forkserver")
    multiprocessing.spawn = forking


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium of the system, headless, driven by Playwright."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, args=list(_CHROMIUM))
        yield browser
        browser.close()
