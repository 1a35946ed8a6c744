"""Argument types, and groups of options that several tools share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from vild_cli.words import split_words

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_Number = TypeVar("_Number", int, float)


def tool_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help begins with a tool's docstring, keeping its line breaks."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--data-root`` and ``--dataset-yaml``."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data-root", help="folder of the datasets; by default $DETECTRON2_DATASETS, or ./datasets"
    )
    group.add_argument(
        "--dataset-yaml",
        action="append",
        default=[],
        help="yaml of a custom dataset to register first; may be repeated (datasets/README.md)",
    )


def add_precision_argument(parser: argparse._ActionsContainer, default: str) -> None:
    """Add ``--precision``; see :func:`vild.precision.resolve_precision`."""
    parser.add_argument(
        "--precision",
        default=default,
        choices=PRECISIONS,
        help="auto: bf16 on GPUs and processors that support it (Ampere and later; AVX512-BF16 "
        f"or AMX), otherwise fp32; {default} by default",
    )


def add_vocabulary_arguments(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """Add ``--vocabulary`` and ``--novel``."""
    default = "" if required else "; by default that of the configuration"
    parser.add_argument(
        "--vocabulary",
        required=required,
        help="lvis, coco, a registered dataset, a file (.json, .txt with one class per line, "
        f".yaml, .csv or .safetensors) or a comma-separated list{default}",
    )
    parser.add_argument(
        "--novel",
        type=comma_separated,
        help="comma-separated list of the novel classes; overrides those of the vocabulary",
    )


def add_store_arguments(parser: argparse.ArgumentParser, images_per_shard: int) -> None:
    """Add ``--retry-failed``, ``--images-per-shard`` and ``--threads``."""
    parser.add_argument("--retry-failed", action="store_true", help="try failed images again")
    parser.add_argument("--images-per-shard", type=positive_int, default=images_per_shard)
    parser.add_argument(
        "--threads", type=positive_int, default=2, help="image-loading threads per process"
    )


def add_worker_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--num-processes``, ``--num-machines``, ``--machine-rank`` and ``--device``."""
    group = parser.add_argument_group(
        "processes",
        "Each image is processed once, by one process of one machine. Machines only have to "
        "share the folder. Under torchrun or srun, the launcher's ranks are used.",
    )
    group.add_argument(
        "--num-processes",
        type=positive_int,
        help="processes on this machine; one per GPU by default",
    )
    group.add_argument("--num-machines", type=positive_int, default=1)
    group.add_argument("--machine-rank", type=int, default=0, help="index of this machine, from 0")
    group.add_argument("--device", help="a GPU by default, if there is one")


def comma_separated(text: str) -> list[str]:
    """Return the words of ``--novel "a, b"``; for argparse's ``type``.

    Raises:
        argparse.ArgumentTypeError: see :func:`vild_cli.words.split_words`.
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
        argparse.ArgumentTypeError: any other text.
    """
    return _number(text, float, lambda number: 0 <= number <= 1, "a number from 0 to 1")


def positive_int(text: str) -> int:
    """Convert text to an integer of at least 1; for argparse's ``type``.

    Raises:
        argparse.ArgumentTypeError: any other text.
    """
    return _number(text, int, lambda number: number >= 1, "an integer of at least 1")


def positive_float(text: str) -> float:
    """Convert text to a finite number above 0; for argparse's ``type``.

    Raises:
        argparse.ArgumentTypeError: any other text.
    """
    return _number(text, float, lambda number: 0 < number < math.inf, "a number above 0")


def _number(
    text: str, convert: Callable[[str], _Number], is_valid: Callable[[_Number], bool], expected: str
) -> _Number:
    try:
        number = convert(text)
    except ValueError:
        number = None
    if number is None or not is_valid(number):  # NaN is in no range
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return number
