"""Register the datasets that command-line arguments name."""

from __future__ import annotations

import argparse
import logging
import os

from vild.data.custom_datasets import register_custom
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
