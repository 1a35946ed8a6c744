"""The web page in a separate process, and requests to it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import vild

from .. import small_shapes

CONFIG = small_shapes.CONFIGS / "shapes" / "vild_ensemble.yaml"
TOOL = small_shapes.CONFIGS.parent / "tools" / "web_demo.py"


@dataclass(frozen=True)
class ServedPage:
    address: str
    uploads: Path  # parent of its private folder
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def port(self) -> int:
        return int(self.address.rsplit(":", 1)[1])


@contextmanager
def served_page(folder: Path, opts: list[str], *arguments: str) -> Iterator[ServedPage]:
    """Serve a page with two words within the context."""
    pytest.importorskip("gradio")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(sys.executable, str(TOOL), "--config-file", str(CONFIG), "--port", str(port)),
        *("--words", "striped red star, plain blue heart", "--confidence-threshold", "0.05"),
        *(*arguments, *opts),
    ]
    environment = {
        **{"PATH": "/usr/bin:/bin", "HOME": str(folder), "VILD_CACHE": str(folder / "cache")},
        **{"GRADIO_TEMP_DIR": str(folder / "uploads"), "OMP_NUM_THREADS": "1"},
        "PYTHONPATH": str(Path(vild.__file__).parents[1]),
    }
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    page = ServedPage(f"http://127.0.0.1:{port}", folder / "uploads", running, folder / "log")
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(page.address, timeout=5).close()
                break
            except OSError:
                assert running.poll() is None, page.log.read_text()
                time.sleep(0.5)
        yield page
    finally:
        running.terminate()
        running.wait(30)


def status(address: str, data: bytes | None = None, **headers: str) -> int:
    """Send a request and return the status of the response."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(address, data, names)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
