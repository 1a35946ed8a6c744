"""What every tool that reads a data set asks for on its command line."""

from __future__ import annotations

import argparse
import logging
import math
import os
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from detectron2.data import DatasetCatalog

from vild.data.custom import register_custom
from vild.data.registry import register_builtin
from vild.data.shapes import register_made_shapes
from vild.data.vocabulary import split_words

logger = logging.getLogger(__name__)
_Number = TypeVar("_Number", int, float)


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
    """Return the words of ``--novel "a, b"``; for argparse's ``type``.

    Raises:
        argparse.ArgumentTypeError: see :func:`vild.data.vocabulary.split_words`.
    """
    try:
        return split_words(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def path(text: str) -> Path:
    """Convert text to a path; for argparse's ``type``.

    Raises:
        argparse.ArgumentTypeError: empty text, which would mean the current folder.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError(f"expected a path, got {text!r}")
    return Path(text)


def fraction(text: str) -> float:
    """Convert text to a number from 0 to 1; for argparse's ``type``.

    Raises:
        argparse.ArgumentTypeError: other text.
    """
    return _number(text, float, lambda number: 0 <= number <= 1, "a number from 0 to 1")


def positive_int(text: str) -> int:
    """Convert text to an integer of at least 1; for argparse's ``type``.

    Raises:
        argparse.ArgumentTypeError: other text.
    """
    return _number(text, int, lambda number: number >= 1, "an integer of at least 1")


def positive_float(text: str) -> float:
    """Convert text to a finite number above 0; for argparse's ``type``.

    Raises:
        argparse.ArgumentTypeError: other text.
    """
    return _number(text, float, lambda number: 0 < number < math.inf, "a number above 0")


def _number(
    text: str, convert: Callable[[str], _Number], is_valid: Callable[[_Number], bool], expected: str
) -> _Number:
    try:
        number = convert(text)
    except ValueError:
        number = None
    if number is None or not is_valid(number):  # no range holds for NaN
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return number


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


def require_split(name: str, what: str = "a registered split") -> None:
    """Refuse the name of a split that is not registered.

    Args:
        name: of the split.
        what: what the name was given for, for the error.

    Raises:
        ValueError: no such split; the message suggests names.
    """
    known = sorted(DatasetCatalog.list())
    if name in known:
        return
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else f"Registered: {known}."
    raise ValueError(
        f"expected {what}, got {name!r}, which is not registered. {hint} Splits of your own are "
        "registered by --dataset-yaml or MODEL.VILD.DATASETS"
    )


def find_split(name: str) -> list[dict[str, Any]]:
    """Return the records of a registered split, in Detectron2's format.

    Raises:
        ValueError: no split of this name; see :func:`require_split`.
    """
    require_split(name)
    return DatasetCatalog.get(name)
