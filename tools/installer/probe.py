"""Inspection of an environment with that environment's interpreter."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from installer.errors import SetupError

# Runs in the inspected environment. Prints one JSON line; never raises.
_PROGRAM = r"""
import importlib, importlib.util, json, os, sys, warnings
from importlib import metadata

warnings.filterwarnings("ignore")

def look(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            return None
        return {"error": f"{type(error).__name__}: {error}"}
    except BaseException as error:
        return {"error": f"{type(error).__name__}: {error}"}
    origin = os.path.dirname(module.__file__ or "")
    version = str(getattr(module, "__version__", "unknown"))
    try:  # the metadata says more ("0.6+pure"), where it belongs to the module that was imported
        distribution = metadata.distribution(name)
        if os.path.realpath(distribution.locate_file(name)) == os.path.realpath(origin):
            version = distribution.version
    except metadata.PackageNotFoundError:
        pass
    return {"version": version, "origin": origin}

found = {name: look(name) for name in sys.argv[1:]}
if "torchvision" in found:
    pair = {}
    try:
        import torch
        pair["torch_cuda"] = torch.version.cuda
        # from its library, since a torchvision of another build does not import
        spec = importlib.util.find_spec("torchvision")
        folder = os.path.dirname(spec.origin)
        for name in sorted(os.listdir(folder)):
            if name.startswith("_C") and name.endswith((".so", ".pyd")):
                with open(os.path.join(folder, name), "rb") as file:
                    pair["torchvision_cuda"] = b"cudart" in file.read()
        import torchvision
        for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
            boxes = torch.zeros(1, 4, device=device)
            torchvision.ops.nms(boxes, boxes[:, 0], 0.5)
    except BaseException as error:
        pair["error"] = f"{type(error).__name__}: {error}"
    found["pair"] = pair
if found.get("lvis") and "origin" in found["lvis"]:
    import numpy
    with open(os.path.join(found["lvis"]["origin"], "eval.py")) as file:
        if "np.float)" in file.read() and not hasattr(numpy, "float"):
            found["lvis"] = {"error": "its evaluator uses np.float, gone from this numpy"}
print("\n" + json.dumps(found))
"""


def probe(python: Path, *modules: str) -> dict[str, Any]:
    """Import ``modules`` with ``python`` and report on each.

    Returns:
        Per module None (missing), ``{"version", "origin"}`` or ``{"error"}`` (does not import,
        or, for ``lvis``, can't evaluate on the installed numpy); with ``torchvision`` also a key
        ``"pair"``: whether either was built for CUDA, and an ``"error"`` if torchvision's
        operators do not run.

    Raises:
        SetupError: the interpreter does not run.
    """
    try:
        done = subprocess.run(
            [str(python), "-c", _PROGRAM, *modules], capture_output=True, text=True, timeout=300
        )
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        raise SetupError(f"{python} does not run ({type(error).__name__}: {error})") from None


def check_torch_pair(found: dict[str, Any], where: str) -> None:
    """Refuse a torch and a torchvision that were not built for each other.

    Args:
        found: result of :func:`probe` for ``torch`` and ``torchvision``.
        where: the environment, for the message.

    Raises:
        SetupError: torchvision's operators do not run; the message says if only one of the two was
            built for CUDA.
    """
    pair = found["pair"]
    if "error" not in pair:
        return
    advice = (
        "Install both from the same place, in one command (`pip install --force-reinstall torch "
        "torchvision`), or leave that environment and let `make setup` create a separate .venv."
    )
    cuda = [pair.get(f"{name}_cuda") for name in ("torch", "torchvision")]
    if "torchvision_cuda" in pair and bool(cuda[0]) != bool(cuda[1]):
        built = ["for CUDA" if with_cuda else "for the CPU only" for with_cuda in cuda]
        raise SetupError(
            f"torch and torchvision in {where} do not match: torch is built {built[0]}, "
            f"torchvision {built[1]}. {advice}"
        )
    raise SetupError(f"torchvision in {where} does not run ({pair['error']}). {advice}")
