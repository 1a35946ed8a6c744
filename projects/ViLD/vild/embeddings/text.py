"""Text embeddings of a vocabulary: compute, save, load and import them.

Also the sets of prompt templates (:func:`template_set`); single prompts are filled in by
:mod:`vild.data.prompts`.

Shapes: K classes, D embedding. Always (K, D), row = class, float32, L2-normalised.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vild.data import Vocabulary, fill, vild_templates
from vild.data.prompts import SINGLE_TEMPLATE, check_templates, clean_name
from vild.embeddings.published import read_matrix
from vild.embeddings.teacher import Teacher
from vild.storage.safetensors_files import DIGEST, read_safetensors, write_safetensors
from vild.utils.files import read_text

logger = logging.getLogger(__name__)

FORMAT = "vild-text-embeddings-1"
TEMPLATE_SETS = ("single", "vild", "imagenet")
CLIP_TEMPERATURE = 0.01  # of OpenAI's models and of most published embeddings
UNIT_TOLERANCE = 1e-3  # maximum deviation of a stored row's norm from 1


@dataclass(frozen=True, eq=False)  # comparing tensors does not give a single truth value
class TextEmbeddings:
    """The classifier's rows and their origin.

    Attributes:
        embeddings: (K, D) float32, L2-normalised.
        vocabulary: K names, synonyms and novel flags.
        temperature: the teacher's temperature; cosines are divided by it.
        teacher: name of the teacher.
        fingerprint: :attr:`Teacher.fingerprint`; empty if unknown (imported files).
        templates: name of the prompt set, or the templates themselves, one per line.
        synonyms: whether embeddings were averaged over synonyms.

    Raises:
        ValueError: a number of rows other than the vocabulary's, non-finite values, rows without
            unit norm, or a temperature that is not positive.
    """

    embeddings: Tensor
    vocabulary: Vocabulary
    temperature: float
    teacher: str
    fingerprint: str = ""
    templates: str = ""
    synonyms: bool = False

    def __post_init__(self) -> None:
        shape = tuple(self.embeddings.shape)
        if len(shape) != 2 or shape[0] != len(self.vocabulary):
            raise ValueError(
                f"expected embeddings of shape ({len(self.vocabulary)}, D), one row per class of "
                f"the vocabulary, got {shape}"
            )
        if self.embeddings.dtype != torch.float32:
            raise ValueError(f"expected float32 embeddings, got {self.embeddings.dtype}")
        if not torch.isfinite(self.embeddings).all():
            bad = int((~torch.isfinite(self.embeddings).all(dim=1)).nonzero()[0])
            raise ValueError(f"the embedding of {self.vocabulary.names[bad]!r} is not finite")
        off = (self.embeddings.norm(dim=1) - 1).abs()
        if float(off.max()) > UNIT_TOLERANCE:
            bad = int(off.argmax())
            raise ValueError(
                f"expected rows of unit norm, got {float(self.embeddings[bad].norm()):.4f} for "
                f"{self.vocabulary.names[bad]!r}; normalise them first"
            )
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"expected a positive temperature, got {self.temperature}")

    @property
    def dimension(self) -> int:
        """D."""
        return int(self.embeddings.shape[1])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file atomically."""
        header = {
            "format": FORMAT,
            "vocabulary": self.vocabulary.to_json(),
            "temperature": repr(self.temperature),
            "teacher": self.teacher,
            "fingerprint": self.fingerprint,
            "templates": self.templates,
            "synonyms": json.dumps(self.synonyms),
        }
        write_safetensors(path, {"embeddings": self.embeddings.contiguous()}, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TextEmbeddings:
        """Read a file written by :meth:`save`.

        Raises:
            ValueError: the file is missing, damaged, or was not written by this class.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(
                f"expected text embeddings at {path}: no such file. Make them with "
                "tools/extract_text_embeddings.py"
            )
        tensors, header = read_safetensors(path)
        if header.get("format") != FORMAT or "embeddings" not in tensors:
            raise ValueError(
                f"{path}: expected the format {FORMAT!r}, got {header.get('format')!r}. "
                "Import published embeddings with tools/extract_text_embeddings.py --import"
            )
        if DIGEST not in header:
            logger.info("%s has no checksum: it was made by an earlier version", path)
        embeddings = tensors["embeddings"]
        try:
            return cls(
                embeddings,
                Vocabulary.from_json_text(header["vocabulary"], str(path)),
                float(header["temperature"]),
                header["teacher"],
                header["fingerprint"],
                header["templates"],
                json.loads(header["synonyms"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: expected text embeddings with their classes and teacher in the header: "
                f"{error}. Create the file again"
            ) from None

    def select(self, vocabulary: Vocabulary) -> TextEmbeddings:
        """Return the embeddings of some of the classes.

        Args:
            vocabulary: K' classes by name, in any spelling with the same prompts; the result has
                its novel flags and synonyms.

        Raises:
            ValueError: a class that has no embedding here.
        """
        row_of = {clean_name(name): row for row, name in enumerate(self.vocabulary.names)}
        missing = [name for name in vocabulary.names if clean_name(name) not in row_of]
        if missing:
            raise ValueError(
                f"expected an embedding of every class, got none of {missing[0]!r} among "
                f"{len(row_of)} ({', '.join(self.vocabulary.names[:3])}, ...)"
            )
        rows = [row_of[clean_name(name)] for name in vocabulary.names]
        return replace(self, embeddings=self.embeddings[rows], vocabulary=vocabulary)

    def check_classes(self, names: Sequence[str], where: str) -> None:
        """Raise unless a list of classes equals that of the embeddings.

        Args:
            names: the expected classes, in order.
            where: what expects them, for the error message.

        Raises:
            ValueError: names or their order differ; the message gives the first difference.
        """
        own = self.vocabulary.names
        if tuple(names) == own:
            return
        if len(names) != len(own):
            raise ValueError(f"{where} has {len(names)} classes, the text embeddings {len(own)}")
        row = next(i for i, (a, b) in enumerate(zip(names, own, strict=True)) if a != b)
        raise ValueError(
            f"{where} and the text embeddings differ: row {row} is {names[row]!r} in the former "
            f"and {own[row]!r} in the latter. Make the embeddings from the same class list."
        )


def template_set(source: str) -> tuple[str, ...]:
    """Return prompt templates.

    Args:
        source: ``single`` (one), ``vild`` (the 63 of ViLD's demo), ``imagenet`` (OpenAI's 80, from
            open_clip), the templates themselves, one per line, or a text file of them.

    Raises:
        ValueError: none of these, or a template without ``{}``.
    """
    if source == "single":
        return (SINGLE_TEMPLATE,)
    if source == "vild":
        return vild_templates()
    if source == "imagenet":  # from open_clip, where the templates are functions
        import open_clip

        return tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
    if "{}" in source:
        return _read_templates(source, "the templates")
    if not source or not os.path.exists(source):  # also False for names too long for a file
        raise ValueError(
            "expected the template set 'single', 'vild' or 'imagenet', a file with one template "
            f"per line, or a template with '{{}}'; got {source!r:.200}. If text embeddings refer "
            "to this file, they were made by an earlier version: make them again"
        )
    return _read_templates(read_text(source, "prompt templates, one per line,"), source)


def _read_templates(text: str, where: str) -> tuple[str, ...]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in lines:
        if re.fullmatch(r"([\"']).*\1,?|[-\[].*", line):
            raise ValueError(
                f"{where}: expected plain text, one template per line, got {line!r:.80}. Remove "
                "quotes, brackets and bullets"
            )
    return check_templates(lines, where)


def recorded_templates(source: str) -> str:
    """Return what text embeddings record for :func:`template_set`'s ``source``.

    Returns:
        the name of a named set, since its content never changes; otherwise the templates, one per
        line, so that the embeddings do not depend on a file.
    """
    return source if source in TEMPLATE_SETS else "\n".join(template_set(source))


def embed_vocabulary(
    teacher: Teacher,
    vocabulary: Vocabulary,
    templates: str = "vild",
    synonyms: bool = True,
    batch_size: int = 256,
    progress: bool = False,
) -> TextEmbeddings:
    """Embed every class: normalise the embedding of each prompt, then their mean (ViLD, app. D).

    Args:
        teacher: the text encoder.
        vocabulary: K classes.
        templates: see :func:`template_set`.
        synonyms: average over a class's synonyms as well as over its prompts.
        batch_size: prompts per batch.
        progress: show a progress bar.

    Raises:
        ValueError: see :func:`template_set`; or a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"expected a batch size of at least 1, got {batch_size}")
    filled = template_set(templates)
    prompts: list[str] = []
    counts = []
    for names in vocabulary.synonyms:
        own = [fill(t, name) for name in (names if synonyms else names[:1]) for t in filled]
        prompts += own
        counts.append(len(own))
    embedded = teacher.encode_text(prompts, batch_size, progress)
    means = torch.stack([rows.mean(dim=0) for rows in embedded.split(counts)])
    return TextEmbeddings(
        functional.normalize(means, dim=1),
        vocabulary,
        teacher.temperature,
        teacher.name,
        teacher.fingerprint,
        recorded_templates(templates),
        synonyms,
    )


def import_embeddings(
    path: str | os.PathLike[str],
    vocabulary: Vocabulary,
    teacher: str,
    temperature: float = CLIP_TEMPERATURE,
    layout: str = "auto",
) -> TextEmbeddings:
    """Read a published matrix of text embeddings.

    Args:
        path: see :func:`vild.embeddings.published.read_matrix`; (K, D) or (D, K), any float type,
            rows normalised or not.
        vocabulary: its K classes, in its order.
        teacher: name of the model that computed it.
        temperature: temperature of that model.
        layout: ``kd``, ``dk``, or ``auto``: the side of length K is the classes.

    Raises:
        ValueError: the file is missing or not a matrix, neither or both sides have length K, or a
            row is zero or non-finite.
    """
    matrix = read_matrix(path)
    k = len(vocabulary)
    if layout == "auto":
        if matrix.shape == (k, k):
            raise ValueError(
                f"{path}: the shape {matrix.shape} fits both (K, D) and (D, K); choose one with "
                "--layout kd or dk"
            )
        layout = "dk" if matrix.shape[1] == k else "kd"
    if layout == "dk":
        matrix = matrix.T
    if matrix.shape[0] != k:
        shape = np.shape(matrix.T if layout == "dk" else matrix)
        raise ValueError(
            f"{path}: expected the shape ({k}, D) or (D, {k}) for {k} classes, got {shape}"
        )
    rows = unit_rows(matrix, lambda row: f"{path}: the row of {vocabulary.names[row]!r}")
    return TextEmbeddings(rows, vocabulary, temperature, teacher, templates="imported")


def unit_rows(matrix: np.ndarray, describe: Callable[[int], str]) -> Tensor:
    """Normalise the rows of a matrix.

    Args:
        matrix: (K, D) of any float type.
        describe: returns a row's description for the error message.

    Returns:
        (K, D) float32.

    Raises:
        ValueError: a row is zero or non-finite.
    """
    rows = torch.from_numpy(np.array(matrix, np.float32, order="C"))
    norms = rows.norm(dim=1)
    bad = ~(torch.isfinite(rows).all(dim=1) & (norms > 0))
    if bad.any():
        raise ValueError(f"{describe(int(bad.nonzero()[0]))} is zero or not finite")
    return rows / norms[:, None]
