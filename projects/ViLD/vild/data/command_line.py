"""Register and look up the datasets that command-line arguments name."""

from __future__ import annotations

import argparse
import logging
import os
from difflib import get_close_matches
from typing import Any

from detectron2.data import DatasetCatalog

from vild.data.custom import register_custom
from vild.data.registry import register_builtin
from vild.data.shapes import register_made_shapes

logger = logging.getLogger(__name__)


def register_from_arguments(args: argparse.Namespace) -> None:
    """Register the datasets given by :func:`vild_cli.arguments.add_data_arguments`.

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
    """Raise unless a split of this name is registered.

    Args:
        name: name of the split.
        what: what the name was given for, for the error message.

    Raises:
        ValueError: the split is not registered; the message suggests names.
    """
    known = sorted(DatasetCatalog.list())
    if name in known:
        return
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else f"Registered: {known}."
    raise ValueError(
        f"expected {what}, got {name!r}, which is not registered. {hint} Splits of your own are "
        "registered by --dataset-yaml or DATASETS.CUSTOM"
    )


def find_split(name: str) -> list[dict[str, Any]]:
    """Return the records of a registered split in Detectron2's format.

    Raises:
        ValueError: the split is not registered; see :func:`require_split`.
    """
    require_split(name)
    return DatasetCatalog.get(name)
