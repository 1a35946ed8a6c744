#!/usr/bin/env python
r"""Compute the text embeddings of a vocabulary, which are the rows of the classifier.

python tools/extract_text_embeddings.py --vocabulary lvis_v1_val --out lvis.safetensors
python tools/extract_text_embeddings.py --vocabulary "red kite, osprey" --out birds.safetensors
python tools/extract_text_embeddings.py --vocabulary shapes_val --model vild-shapes \
    --out shapes.safetensors
python tools/extract_text_embeddings.py --vocabulary lvis_v1_val --import lvis_clip.npy \
    --out lvis.safetensors
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vild_cli.arguments import (
    add_data_arguments,
    add_vocabulary_arguments,
    positive_int,
    tool_parser,
)
from vild_cli.errors import one_line_errors

if TYPE_CHECKING:
    from vild.embeddings import TextEmbeddings

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = tool_parser(__doc__)
    add_vocabulary_arguments(parser, required=True)
    add_data_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    encoder = parser.add_argument_group("encoder")
    encoder.add_argument("--model", default="ViT-B-32", help="open_clip model, or vild-shapes")
    encoder.add_argument("--pretrained", default="openai", help="open_clip tag or checkpoint file")
    encoder.add_argument(
        "--templates",
        default="vild",
        help="prompts: single, vild (63), imagenet (80) or a file",
    )
    encoder.add_argument(
        "--synonyms",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="average over the synonyms of a class",
    )
    encoder.add_argument("--batch-size", type=positive_int, default=256)
    encoder.add_argument("--device", help="a GPU by default, if there is one")
    encoder.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16"))
    published = parser.add_argument_group("published embeddings")
    published.add_argument(
        "--import",
        dest="import_file",
        metavar="FILE",
        help="(K, D) or (D, K) as .npy, .npz, .pth, .pt or .safetensors",
    )
    published.add_argument(
        "--import-classes",
        metavar="VOCABULARY",
        help="classes of its K rows, if these differ from --vocabulary or its order; by default "
        "the names in FILE, if any",
    )
    published.add_argument("--layout", default="auto", choices=("auto", "kd", "dk"))
    published.add_argument("--temperature", type=float, default=0.01)
    return parser


def run(args: argparse.Namespace) -> TextEmbeddings:
    """Compute or import the requested text embeddings.

    Raises:
        ValueError: see the called functions.
    """
    from vild.data import Vocabulary, register_from_arguments
    from vild.embeddings import build_teacher, embed_vocabulary, import_embeddings, template_set
    from vild.embeddings.published import stored_names

    register_from_arguments(args)
    vocabulary = Vocabulary.load(args.vocabulary, args.novel)
    if args.import_file:
        teacher_name = f"{args.model}/{args.pretrained}"
        rows = vocabulary
        if args.import_classes:
            rows = Vocabulary.load(args.import_classes)
        elif names := stored_names(args.import_file):
            logger.info("the classes of the rows are read from %s", args.import_file)
            rows = Vocabulary.from_names(names)
        return import_embeddings(
            args.import_file, rows, teacher_name, args.temperature, args.layout
        ).select(vocabulary)
    template_set(args.templates)  # report invalid templates before loading the teacher
    teacher = build_teacher(args.model, args.pretrained, args.device, args.precision)
    return embed_vocabulary(
        teacher, vocabulary, args.templates, args.synonyms, args.batch_size, progress=True
    )


@one_line_errors
def main() -> int:
    """Run the command and return its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = build_parser().parse_args()
    import vild
    from vild.utils.files import require_writable_file

    start = time.perf_counter()
    require_writable_file(args.out, "--out")
    embeddings = run(args)
    embeddings.save(args.out)
    classes, dimension = embeddings.embeddings.shape
    templates = embeddings.templates
    if "{}" in templates:
        templates = f"{len(templates.splitlines())} custom"
    print(
        f"wrote {args.out}: {classes} classes ({sum(embeddings.vocabulary.novel)} novel) x "
        f"{dimension}, teacher {embeddings.teacher}, temperature {embeddings.temperature:.4f}, "
        f"templates {templates}; {time.perf_counter() - start:.1f} s, "
        f"vild {vild.__version__}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
