"""What every tool that reads a data set asks for on its command line."""

from __future__ import annotations

import argparse
import logging
import os
from typing import Any

from detectron2.data import DatasetCatalog

from vild.data.custom import register_custom
from vild.data.registry import register_builtin
from vild.data.shapes import register_made_shapes
from vild.data.vocabulary import split_words

logger = logging.getLogger(__name__)


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--data-root`` and ``--dataset-yaml``."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data-root", help="folder of the data sets; $DETECTRON2_DATASETS or datasets by default"
    )
    group.add_argument(
        "--dataset-yaml",
        action="append",
        default=[],
        help="register this data set of your own first (see datasets/README.md)",
    )


def comma_list(text: str) -> list[str]:
    """The words of ``--novel "a, b"``; for argparse's ``type``."""
    return split_words(text)


def positive_int(text: str) -> int:
    """A whole number from 1; for argparse's ``type``."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return value


def fraction(text: str) -> float:
    """A number from 0 to 1; for argparse's ``type``."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:  # NaN as well
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def register_from_arguments(args: argparse.Namespace) -> None:
    """Register what the arguments of :func:`add_data_arguments` name.

    Raises:
        ValueError: see :func:`vild.data.register_custom`.
    """
    if args.data_root:
        os.environ["DETECTRON2_DATASETS"] = str(args.data_root)
        register_builtin()
        register_made_shapes()
    for file in args.dataset_yaml:
        logger.info("registered %s", ", ".join(register_custom(file)))


def find_split(name: str) -> list[dict[str, Any]]:
    """The records of a registered split, in Detectron2's format.

    Raises:
        ValueError: no split of the name; the message lists them.
    """
    known = DatasetCatalog.list()
    if name not in known:
        raise ValueError(f"expected a registered split, got {name!r}; there are {sorted(known)}")
    return DatasetCatalog.get(name)
