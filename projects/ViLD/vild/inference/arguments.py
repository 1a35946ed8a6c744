"""What every tool that detects words asks for on its command line."""

from __future__ import annotations

import argparse

from detectron2.config import CfgNode

from vild.data import comma_list
from vild.inference.predictor import OpenVocabularyPredictor


def add_vocabulary_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--vocabulary`` and ``--novel``."""
    parser.add_argument(
        "--vocabulary",
        help="lvis, coco, a registered data set, a file (.json, .txt, .yaml, .csv or "
        ".safetensors) or a comma list; the configuration's own by default",
    )
    parser.add_argument("--novel", type=comma_list, help="comma list of the novel classes")


def predictor_from_arguments(
    cfg: CfgNode, args: argparse.Namespace, precision: str = "fp32"
) -> OpenVocabularyPredictor:
    """The detector with the vocabulary that :func:`add_vocabulary_arguments` asked for.

    Raises:
        ValueError: novel classes without a vocabulary; see :class:`OpenVocabularyPredictor`.
    """
    if args.novel is not None and args.vocabulary is None:
        raise ValueError("expected --vocabulary beside --novel")
    return OpenVocabularyPredictor(cfg, args.vocabulary, novel=args.novel, precision=precision)
