"""A wrapper of the pip client that turns its failures into one sentence each."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

from installer.errors import SetupError

# pip's output -> explanation for the user; the first match is used
_FAILURES = (
    (
        ("DO NOT MATCH THE HASHES", "Expected sha256"),
        "the downloaded file is not the one that was checked (its sha256 differs). Nothing of it "
        "was installed. If a mirror or a proxy changes files, use another one; otherwise report "
        "this to the project.",
    ),
    (
        ("No space left on device",),
        "the disk is full. Free some space (the full set-up needs about 8 GB) and run it again.",
    ),
    (
        (
            ": connection error:",
            "Max retries exceeded",
            "NewConnectionError",
            "ReadTimeoutError",
            "ProxyError",
        ),
        "no package index could be reached. Check the network, and pip's settings "
        "(`pip config list`, the variables PIP_INDEX_URL, PIP_NO_INDEX and HTTPS_PROXY), then run "
        "it again.",
    ),
    (
        ("ResolutionImpossible", "conflicting dependencies"),
        "the environment has versions that conflict with what the project needs (pip "
        "names them above; torch >= 2.4 and numpy >= 1.26 are needed). Update them, or leave that "
        "environment and let `make setup` create a separate .venv.",
    ),
    (
        ("No matching distribution found", "Could not find a version that satisfies"),
        "the package index that pip uses has no suitable version (the line above names it). "
        "Check `pip config list` and PIP_INDEX_URL; a Python newer than torch supports has the "
        "same effect.",
    ),
)


# From this version on, pip refuses to download a distribution whose metadata contains a direct URL,
# as pb1-detectron2 does in an unused extra. The download is pinned by checksum and its metadata is
# replaced before installation, so an older pip in a separate folder does the download.
_REFUSES_URLS = (26, 3)
_DOWNLOADER = "pip==26.2.1"


class Pip:
    """pip working on one environment.

    Args:
        python: interpreter of the target environment.
        command: command that starts pip; ``python -m pip`` by default.
    """

    def __init__(self, python: Path, command: tuple[str, ...] | None = None) -> None:
        self.python = python
        self.constraints: Path | None = None  # constraints for every installation
        self._command = command or (str(python), "-m", "pip")

    def run(self, *args: str, doing: str) -> None:
        """Run pip with ``args``; its progress goes to the terminal.

        Raises:
            SetupError: pip failed; the message begins with ``doing`` and says what to do.
        """
        with tempfile.TemporaryDirectory(prefix="vild-pip-") as folder:
            log = Path(folder, "pip.log")
            options = ("--disable-pip-version-check", "--log", str(log))
            # "user = true" in a pip.conf would install outside the environment
            environ = {**os.environ, "PIP_USER": "0", "PIP_ROOT_USER_ACTION": "ignore"}
            if args[0] == "install" and self.constraints:
                args = (*args, "--constraint", str(self.constraints))
            code = subprocess.run([*self._command, *options, *args], env=environ).returncode
            if code == 0:
                return
            text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        for marks, meaning in _FAILURES:
            if any(mark in text for mark in marks):
                raise SetupError(f"{doing}: {meaning}")
        raise SetupError(f"{doing}: pip failed with exit code {code}; see its message above.")

    def for_downloads(self, work_dir: Path) -> Pip:
        """Return this client, or one in ``work_dir`` of a version that can do the downloads."""
        done = subprocess.run([*self._command, "--version"], capture_output=True, text=True)
        version = tuple(int(number) for number in re.findall(r"\d+", done.stdout)[:2])
        if version < _REFUSES_URLS:
            return self
        target = work_dir / "downloader"
        self.run(
            "install",
            "--quiet",
            "--target",
            str(target),
            _DOWNLOADER,
            doing=f"fetching {_DOWNLOADER}",
        )
        return Pip(self.python, (str(self.python), str(target / "pip")))
