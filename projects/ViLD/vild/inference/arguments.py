"""Construction of the predictor from command line arguments."""

from __future__ import annotations

import argparse

from detectron2.config import CfgNode

from vild.inference.predictor import OpenVocabularyPredictor


def predictor_from_arguments(
    cfg: CfgNode, args: argparse.Namespace, precision: str = "fp32"
) -> OpenVocabularyPredictor:
    """Return the predictor, with the vocabulary of ``--vocabulary`` and ``--novel``.

    Raises:
        ValueError: ``--novel`` is given without a vocabulary; or as for
            :class:`OpenVocabularyPredictor`.
    """
    if args.novel is not None and args.vocabulary is None:
        raise ValueError("expected --vocabulary with --novel, got --novel alone")
    return OpenVocabularyPredictor(cfg, args.vocabulary, novel=args.novel, precision=precision)
