#!/usr/bin/env python
r"""Convert a checkpoint of the official ViLD (TensorFlow) to Detectron2.

python tools/convert_official_checkpoint.py resnet50_vild_ensemble.tar.gz \
    --classifier clip_synonym_prompt.npy --rare-masks lvis_rare_masks.npy \
    --out official/vild_ensemble_r50.pth --text-out embeddings/lvis_v1_official_text.safetensors

The checkpoint is the published archive, its unpacked folder, or the prefix of its files. Reading it
requires TensorFlow (`pip install -e '.[convert]'`), which nothing else in this project needs. Exit
code: 0, or 2 for an error.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vild_cli.arguments import add_data_arguments, tool_parser
from vild_cli.errors import one_line_errors

if TYPE_CHECKING:
    import numpy as np

ARCHIVES = (".tar.gz", ".tgz", ".tar")


@contextlib.contextmanager
def checkpoint_prefix(path: Path) -> Iterator[Path]:
    """Yield the prefix of the checkpoint's files, unpacked within the context.

    Args:
        path: an archive, a folder, or the prefix of ``<prefix>.index`` and ``<prefix>.data-...``.

    Raises:
        ValueError: the file does not exist, the archive is incomplete, or it does not contain
            exactly one checkpoint.
    """
    if path.name.endswith(ARCHIVES) and not path.is_file():
        raise ValueError(f"expected a checkpoint at {path}: no such file")
    if not path.name.endswith(ARCHIVES):
        yield _only_prefix(path) if path.is_dir() else _complete(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
        except (OSError, EOFError, tarfile.TarError) as error:
            raise ValueError(
                f"{path} is not a complete tar archive ({error}): download the published file again"
            ) from None
        yield _only_prefix(Path(folder), str(path))


def _only_prefix(folder: Path, where: str = "") -> Path:
    found = sorted(folder.rglob("*.index"))
    if len(found) != 1:
        names = sorted(f.name for f in folder.rglob("*") if f.is_file())
        shown = ", ".join(f.name for f in found) or ", ".join(names[:5]) or "no file"
        raise ValueError(
            f"expected one TensorFlow checkpoint (NAME.index with NAME.data-...) in "
            f"{where or folder}, got {shown}; give the prefix of one of them"
        )
    return _complete(found[0].with_suffix(""))


def _complete(prefix: Path) -> Path:
    index = prefix.with_name(f"{prefix.name}.index")
    if not index.is_file() or not list(prefix.parent.glob(f"{prefix.name}.data-*")):
        raise ValueError(
            f"expected a TensorFlow checkpoint at {prefix} ({index.name} and {prefix.name}.data-"
            "..., or a folder or .tar.gz with them): some of it is missing"
        )
    return prefix


def read_variables(prefix: Path) -> dict[str, np.ndarray]:
    """Read all variables of a TensorFlow checkpoint, by name.

    Args:
        prefix: prefix of its files.

    Raises:
        ValueError: TensorFlow is not installed, or the files are incomplete.
    """
    import numpy as np

    try:
        import tensorflow as tf
    except ImportError:
        raise ValueError(
            "reading a TensorFlow checkpoint needs TensorFlow, which is not installed: "
            "pip install -e '.[convert]', or tensorflow-cpu in another environment"
        ) from None
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        names = reader.get_variable_to_shape_map()
        return {name: np.asarray(reader.get_tensor(name)) for name in names}
    except (tf.errors.OpError, LookupError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{prefix} is not a complete TensorFlow checkpoint ({str(error).splitlines()[0]}): "
            "download or unpack it again"
        ) from None


def convert(args: argparse.Namespace) -> list[str]:
    """Convert the checkpoint and write the requested files.

    Returns:
        Lines that say what was written.

    Raises:
        ValueError: see the called functions. Nothing is written then.
    """
    import torch

    import vild
    from vild.data import Vocabulary, register_from_arguments
    from vild.modeling.official import convert_variables, official_text
    from vild.utils.files import atomic_path, read_npy

    register_from_arguments(args)
    vocabulary = Vocabulary.load(args.vocabulary)
    with checkpoint_prefix(args.checkpoint) as prefix:
        model = convert_variables(read_variables(prefix))
    matrix = read_npy(args.classifier, "an array") if args.classifier else model.text.T.numpy()
    mask = read_npy(args.rare_masks, "an array") if args.rare_masks else None
    text = official_text(matrix, mask, vocabulary, model.text.shape[1])
    made_by = {"converted_from": args.checkpoint.name, "vild": vild.__version__}
    # opened here because torch.save, given a path, hides the system's error
    with atomic_path(args.out) as temporary, temporary.open("wb") as out:
        torch.save({"model": model.state, **made_by}, out)
    text.save(args.text_out)
    lines = [
        f"wrote {args.out}: {len(model.state)} arrays of {model.variant}, R{model.depth}",
        f"wrote {args.text_out}: {len(vocabulary)} classes ({sum(text.vocabulary.novel)} novel) x "
        f"{text.dimension}",
        f"evaluate with {model.config}",
    ]
    if mask is not None:
        pairs = zip(text.vocabulary.novel, vocabulary.novel, strict=True)
        differ = sum(ours != theirs for ours, theirs in pairs)
        lines.insert(2, f"{differ} of its novel flags differ from those of {args.vocabulary}")
    if model.text.shape == text.embeddings.shape:
        off = float((model.text - text.embeddings).abs().max())
        lines.insert(2, f"the classifier in the checkpoint differs from it by at most {off:.1e}")
    return lines


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = tool_parser(__doc__)
    parser.add_argument("checkpoint", type=Path, help="archive, folder or prefix")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write (.pth)")
    parser.add_argument(
        "--text-out", type=Path, required=True, help="text embeddings to write (.safetensors)"
    )
    parser.add_argument(
        "--classifier",
        type=Path,
        metavar="NPY",
        help="clip_synonym_prompt.npy, (D, K); by default that of the checkpoint",
    )
    parser.add_argument(
        "--rare-masks",
        type=Path,
        metavar="NPY",
        help="lvis_rare_masks.npy; by default the vocabulary says which classes are novel",
    )
    parser.add_argument("--vocabulary", default="lvis_v1_val", help="the classes, in order")
    add_data_arguments(parser)
    return parser


@one_line_errors
def main() -> int:
    """Run the command and return its exit code."""
    args = build_parser().parse_args()
    if args.out.suffix != ".pth":
        raise ValueError(f"expected --out to end in .pth, got {args.out}")
    print("\n".join(convert(args)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
