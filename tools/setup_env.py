#!/usr/bin/env python3
"""Set up this checkout; with --run, then run its Python with the remaining arguments.

    python3 tools/setup_env.py
    python3 tools/setup_env.py --run -m pytest

Run by the Makefile. See installer/environment.py for which environment is used.
"""

import argparse
import logging
import os
import sys

MIN_PYTHON = (3, 10)


def main():
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(description="Set up this checkout.")
    parser.add_argument("--run", nargs=argparse.REMAINDER, help="arguments for its Python")
    args = parser.parse_args()
    # This file uses only old syntax, so that old interpreters reach this check.
    if sys.version_info[:2] < MIN_PYTHON:
        sys.stderr.write(
            "error: ViLD needs Python %d.%d or newer; %s is Python %d.%d. Name a newer one, for "
            "example: make setup PYTHON=python3.11\n"
            % (MIN_PYTHON + (sys.executable,) + sys.version_info[:2])
        )
        return 1
    from installer.environment import ROOT, prepare
    from installer.errors import SetupError

    logging.basicConfig(level=logging.INFO, format="[setup] %(message)s")
    try:
        python = prepare()
    except SetupError as error:
        sys.stderr.write("error: %s\n" % error)
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted; the partial environment was removed\n")
        return 130
    if args.run:
        os.chdir(str(ROOT))
        sys.stdout.flush()
        os.execv(str(python), [str(python)] + args.run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
