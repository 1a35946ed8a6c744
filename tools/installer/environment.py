"""Selection and creation of the Python environment of this checkout.

Three cases, in this order:

1. The active environment has this checkout and all requirements: it is used as it is.
2. It has torch and torchvision, or a Detectron2: ``.venv`` is layered on top of it. ``.venv`` sees
   its packages, and missing ones are installed into ``.venv``; the other is never written to.
3. Otherwise ``.venv`` is isolated and everything is installed into it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import shutil
import site
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from installer.errors import SetupError
from installer.install import install_patched_packages
from installer.pip import Pip
from installer.probe import check_torch_pair, probe

logger = logging.getLogger("setup")

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
MIN_FREE_GB = 8  # torch's CUDA build takes 5.4 GB, and pip needs room to unpack it

# Modules that the project's commands import; a complete environment has all of them.
REQUIRED = (
    *("torch", "torchvision", "detectron2", "lvis", "fvcore", "iopath", "pycocotools", "open_clip"),
    *("ftfy", "regex", "safetensors", "cv2", "tqdm", "matplotlib", "tensorboard", "vild"),
    *("clip", "pytest", "xdist", "ruff", "mypy", "codespell_lib"),
)
_STAMP = "vild-setup.json"
_LAYER = "vild-layer.pth"


def prepare(venv: Path = VENV) -> Path:
    """Make sure that a complete environment exists.

    Returns:
        Its Python interpreter.

    Raises:
        SetupError: the environment can't be created; a partial one is removed.
    """
    active = Path(sys.prefix).resolve() != venv.resolve()
    if active and _is_complete(Path(sys.executable)) and _belongs_to_checkout(Path(sys.executable)):
        logger.info("using the active environment %s as it is", sys.prefix)
        return Path(sys.executable)
    with _lock(venv.with_name(f"{venv.name}.lock")):
        return _prepare_venv(venv)


def _prepare_venv(venv: Path) -> Path:
    python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = _read_stamp(venv)
    if stamp == {"finished": False}:
        logger.info("the last set-up did not finish: starting again")
        shutil.rmtree(venv)
    if stamp and stamp["finished"]:
        gone = [folder for folder in stamp["layered_on"] if not Path(folder).is_dir()]
        if gone:
            raise SetupError(
                f"{venv} is layered on an environment that no longer exists ({gone[0]}). Remove it "
                f"(rm -r {venv}) and run the command again."
            )
        if stamp["inputs"] == _inputs_digest() and _is_complete(python):
            logger.info("%s is complete: nothing to install", venv)
            return python

    made_here = not venv.exists()
    try:
        if made_here:
            _create(venv)
        elif not _runs(python):
            raise SetupError(
                f"{venv} exists but its Python does not run: it is incomplete or broken. Remove "
                f"it (rm -r {venv}) and run the command again."
            )
        _fill(python)
        _write_stamp(
            venv, {"finished": True, "inputs": _inputs_digest(), "layered_on": _layer(venv)}
        )
    except BaseException:  # also Ctrl-C: remove a partial environment
        if made_here:
            shutil.rmtree(venv, ignore_errors=True)
        raise
    return python


def _create(venv: Path) -> None:
    below = _packages_below()
    logger.info("creating %s%s", venv, f" on top of {sys.prefix}" if below else "")
    # the base interpreter, so that a .venv created from another one does not depend on it
    base = Path(getattr(sys, "_base_executable", None) or sys.executable)
    # pip is installed later: without ensurepip (Debian), venv would fail half-way
    command = [str(base), "-m", "venv", "--without-pip", str(venv)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SetupError(
            f"{base} could not create a virtual environment: {(done.stderr or done.stdout).strip()}"
        )
    _write_stamp(venv, {"finished": False})
    if below:
        lines = "".join(f"import site; site.addsitedir({folder!r})\n" for folder in below)
        (_site_packages(venv) / _LAYER).write_text(lines, encoding="utf-8")


def _fill(python: Path) -> None:
    present = probe(python, "torch", "torchvision", "numpy")
    torch_specs = ("torch>=2.4", "torchvision>=0.19")
    if present["torch"] and present["torchvision"]:
        check_torch_pair(present, f"the environment of {python}")
        torch_specs = ()
    elif shutil.disk_usage(ROOT).free < MIN_FREE_GB * 1e9:
        raise SetupError(
            f"the set-up needs about {MIN_FREE_GB} GB of free disk, mostly for torch's CUDA build; "
            f"{shutil.disk_usage(ROOT).free / 1e9:.1f} GB are free at {ROOT}."
        )
    pip = Pip(python)
    if _runs(python, "-m", "pip", "--version") or _runs(python, "-m", "ensurepip"):
        pip.run("install", "--quiet", "pip>=24", doing="updating pip")
    else:  # Debian's Python has no ensurepip: its pip, of any version, installs one
        outside = Pip(python, (sys.executable, "-m", "pip"))
        target = _site_packages(python.parent.parent)
        outside.run(
            "install",
            "--quiet",
            "--target",
            str(target),
            "pip>=24",
            doing="installing pip into .venv",
        )
    # setuptools builds the wheels below; torch limits its version, so install both in one call
    pip.run(
        "install",
        "setuptools>=77",
        "wheel",
        *torch_specs,
        doing="installing torch, torchvision and setuptools",
    )
    if not torch_specs:
        # Keep packages that were built against each other: from here on, pip must choose versions
        # compatible with the installed torch, torchvision and numpy.
        pip.constraints = python.parent.parent / "vild-constraints.txt"
        pip.constraints.write_text(
            "".join(
                f"{name}=={present[name]['version']}\n"
                for name in ("torch", "torchvision", "numpy")
                if present[name]
            ),
            encoding="utf-8",
        )
    install_patched_packages(pip)
    pip.run(
        "install",
        "--no-build-isolation",
        "--editable",
        f"{ROOT}[dev]",
        doing="installing the project and its dependencies",
    )
    # not vild, which imports Detectron2: an existing Detectron2 is the user's responsibility
    modules = [name for name in REQUIRED if name != "vild"]
    state = probe(python, *modules)
    faults = [
        f"{name} ({state[name]['error'] if state[name] else 'not installed'})"
        for name in modules
        if not state[name] or "error" in state[name]
    ]
    if faults:
        raise SetupError(
            f"the set-up finished, but these modules cannot be imported: {'; '.join(faults)}"
        )
    logger.info("%s", ", ".join(f"{name} {state[name]['version']}" for name in REQUIRED[:8]))


def _packages_below() -> list[str]:
    """Return the site folders of the active environment if it should be layered, else none."""
    if Path(sys.prefix).resolve() == VENV.resolve():
        return []
    on_path = {os.path.abspath(p) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p}

    def has(name: str) -> bool:
        spec = importlib.util.find_spec(name)
        # packages on PYTHONPATH are visible to .venv without layering
        return bool(spec and spec.origin) and str(Path(spec.origin).parents[1]) not in on_path

    if not (has("torch") and has("torchvision")) and not has("detectron2"):
        return []
    folders = [
        *site.getsitepackages(),
        *([site.getusersitepackages()] if site.ENABLE_USER_SITE else []),
    ]
    return [folder for folder in folders if os.path.isdir(folder)]


def _is_complete(python: Path) -> bool:
    """Return whether every required module is found (without importing it, which takes seconds)."""
    program = (
        "import importlib.util, sys; "
        "sys.exit(any(importlib.util.find_spec(name) is None for name in sys.argv[1:]))"
    )
    return _runs(python, "-c", program, *REQUIRED)


def _belongs_to_checkout(python: Path) -> bool:
    program = "import importlib.util; print(importlib.util.find_spec('vild').origin)"
    done = subprocess.run([str(python), "-c", program], capture_output=True, text=True)
    return done.returncode == 0 and ROOT in Path(done.stdout.strip()).resolve().parents


def _runs(python: Path, *args: str) -> bool:
    try:
        command = [str(python), *(args or ("-c", ""))]
        return subprocess.run(command, capture_output=True, cwd=ROOT).returncode == 0
    except OSError:
        return False


def _inputs_digest() -> str:
    """Return a digest of the files that determine what is installed."""
    digest = hashlib.sha256()
    files = [
        ROOT / "setup.py",
        ROOT / "pyproject.toml",
        *sorted(Path(__file__).parent.glob("*.py")),
    ]
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _site_packages(venv: Path) -> Path:
    return next(iter([*venv.glob("lib/python3*/site-packages"), venv / "Lib" / "site-packages"]))


def _layer(venv: Path) -> list[str]:
    file = _site_packages(venv) / _LAYER
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [line.split("addsitedir(", 1)[1].rstrip(")").strip("'\"") for line in lines]


def _read_stamp(venv: Path) -> dict | None:
    try:
        return json.loads((venv / _STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write_stamp(venv: Path, stamp: dict) -> None:
    temporary = venv / f"{_STAMP}.tmp"
    temporary.write_text(json.dumps(stamp), encoding="utf-8")
    os.replace(temporary, venv / _STAMP)


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Allow only one set-up of this checkout at a time."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with file.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            logger.info("another set-up of this checkout is running: waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
