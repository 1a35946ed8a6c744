#!/usr/bin/env python3
"""Install Detectron2 (and lvis) without a compiler, into the environment that runs this script.

`make setup` does this and more. Run this script if you manage the environment yourself: install
torch and torchvision first, then run `python tools/install_detectron2.py`, then
`pip install -e .`. An existing Detectron2 is reported and not changed.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from installer.errors import SetupError
from installer.install import install_patched_packages
from installer.pip import Pip


def main() -> int:
    """Run the command and return its exit code."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    pip = Pip(Path(sys.executable))
    try:
        pip.run("install", "--quiet", "setuptools>=77", "wheel", doing="installing setuptools")
        install_patched_packages(pip)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
