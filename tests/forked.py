"""Commands as processes of their own, forked from one that has imported the libraries.

``python SCRIPT ARGUMENTS`` spends four seconds of a core on imports. Here a server, started once,
imports the libraries (not ``vild``, so that its start-up is the command's own) and forks itself
for every command. Those that it starts by torch.multiprocessing.spawn are forked, too.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        *("torch", "torchvision", "detectron2.engine", "detectron2.modeling", "detectron2.data"),
        *("detectron2.evaluation", "detectron2.checkpoint", "detectron2.utils.visualizer"),
        *("open_clip", "lvis", "cv2", "matplotlib.pyplot", "torch.utils.tensorboard"),
    ]
)


class Forked:
    """The part of :class:`subprocess.Popen` that tests need; stderr goes to the output.

    Args:
        words: a script, or -m and a module, and arguments.
        cwd: its working directory.
        env: variables beside those of this process.
    """

    def __init__(self, words: Sequence[object], cwd: Path = ROOT, **env: str) -> None:
        file, self._output = tempfile.mkstemp(prefix="output-")
        os.close(file)
        arguments = ([str(word) for word in words], str(cwd), {**os.environ, **env}, self._output)
        self._process = _CONTEXT.Process(target=_run, args=arguments)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float = 300) -> str:
        """Wait for its end; returns all that it has printed."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            raise subprocess.TimeoutExpired("a forked command", timeout)
        output = Path(self._output).read_text(encoding="utf-8")
        Path(self._output).unlink()
        return output

    def kill(self) -> None:
        """Kill it and the processes that it has started."""
        os.killpg(self.pid, signal.SIGKILL)
        self._process.join()


def run(
    words: Sequence[object], cwd: Path = ROOT, timeout: float = 300, **env: str
) -> tuple[int | None, str]:
    """Run a command to its end; returns its exit code and its output."""
    process = Forked(words, cwd, **env)
    output = process.communicate(timeout)
    return process.returncode, output


def _run(words: list[str], cwd: str, env: dict[str, str], output: str) -> None:
    """Be ``python -W ignore WORDS``."""
    os.setsid()
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    warnings.simplefilter("ignore")
    sys.modules.pop("__mp_main__", None)
    forking = partial(torch.multiprocessing.start_processes, start_method="fork")
    torch.multiprocessing.spawn = forking
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        script = Path(words[0]).resolve()
        sys.path.insert(0, str(script.parent))
        runpy.run_path(str(script), run_name="__main__")
