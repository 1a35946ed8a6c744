"""Installation of patched Detectron2, lvis and clip where no working version is installed."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from installer.packages import MENDED_PACKAGES
from installer.pip import Pip
from installer.probe import check_torch_pair, probe
from installer.wheels import build_wheel, is_outdated

logger = logging.getLogger("setup")


def install_patched_packages(pip: Pip) -> None:
    """Install Detectron2, lvis and clip if they are missing; do not change working versions.

    A ``detectron2`` that can be imported is reported and never changed.

    Raises:
        SetupError: torch is missing or unusable, or one of the packages can't be built.
    """
    found = probe(pip.python, "torch", "torchvision", *(p.module for p in MENDED_PACKAGES))
    check_torch_pair(found, f"the environment of {pip.python}")
    for package in MENDED_PACKAGES:
        state = found[package.module]
        outdated = bool(state) and is_outdated(package, Path(state.get("origin", "")))
        if state and "error" not in state and not outdated:
            logger.info(
                "%s %s found in %s: used as it is",
                package.name,
                state["version"],
                state["origin"],
            )
            continue
        if outdated:
            logger.info("%s was built by an older version of this script", package.name)
        elif state:
            logger.info("%s is installed but does not work (%s)", package.name, state["error"])
        logger.info("building %s %s from %s", package.name, package.version, package.source)
        with tempfile.TemporaryDirectory(prefix="vild-setup-") as folder:
            wheel = build_wheel(package, pip, Path(folder))
            doing = f"installing {package.name}"
            pip.run("install", "--quiet", str(wheel), doing=doing)
            if outdated:  # pip kept the old build, which has the same version
                pip.run(
                    "install",
                    "--quiet",
                    "--no-deps",
                    "--force-reinstall",
                    str(wheel),
                    doing=doing,
                )
    _warn_of_broken_detectron2(pip.python)


def _warn_of_broken_detectron2(python: Path) -> None:
    modeling = probe(python, "detectron2.modeling")["detectron2.modeling"]
    if modeling is None or "error" in modeling:
        logger.warning(
            "`import detectron2.modeling` fails with the detectron2 that was found (%s). It was "
            "not changed: repair it, or uninstall it and run the set-up again.",
            modeling["error"] if modeling else "the module does not exist",
        )
