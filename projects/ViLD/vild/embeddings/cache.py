"""An on-disk cache of text embeddings.

Each file holds the words of one teacher and one set of prompts. A word's entry depends only on
these, on the word and on its synonyms, so any vocabulary can be assembled from entries. Each entry
has a checksum; damaged entries are computed again.

Shapes: K classes of a vocabulary, N words of a file, D embedding.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vild.data import Vocabulary
from vild.data.prompts import clean_name
from vild.embeddings.build import build_teacher
from vild.embeddings.teacher import Teacher
from vild.embeddings.text import (
    TextEmbeddings,
    embed_vocabulary,
    recorded_templates,
    template_set,
)
from vild.utils.files import atomic_path

logger = logging.getLogger(__name__)

FORMAT = "vild-text-cache-2"  # version 1 had no checksums
# words per file, 100 MB for CLIP: a public demo would grow the cache without bound
MAX_WORDS = 50_000


def default_folder() -> Path:
    """Return ``$VILD_CACHE``, or ``vild`` in the user's cache folder (``$XDG_CACHE_HOME``)."""
    if "VILD_CACHE" in os.environ:
        return Path(os.environ["VILD_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "vild"


class _Entries(NamedTuple):
    """Contents of a file.

    Attributes:
        row_of: row of each word.
        embeddings: (N, D) float32.
        checksums: (N,) int64, checksum of each word and its row.
    """

    row_of: dict[str, int]
    embeddings: Tensor
    checksums: Tensor

    @classmethod
    def empty(cls) -> _Entries:
        """Return entries without words."""
        return cls({}, torch.empty(0, 0), torch.empty(0, dtype=torch.int64))

    @classmethod
    def of(cls, keys: Sequence[str], embeddings: Tensor) -> _Entries:
        """Return words with their embeddings; repeated words are kept once."""
        row_of = dict(zip(keys, range(len(keys)), strict=True))
        rows = embeddings[list(row_of.values())]
        checksums = [_checksum(*entry) for entry in zip(row_of, rows.numpy(), strict=True)]
        return cls(dict(zip(row_of, range(len(rows)), strict=True)), rows, torch.tensor(checksums))

    def rows(self, keys: Sequence[str]) -> list[int | None]:
        """Return the row of each word; None if the word is missing or its entry is damaged."""
        matrix, checksums = self.embeddings.numpy(), self.checksums.tolist()
        found = [self.row_of.get(key) for key in keys]
        return [
            row if row is not None and _checksum(key, matrix[row]) == checksums[row] else None
            for key, row in zip(keys, found, strict=True)
        ]

    def followed_by(self, last: _Entries, limit: int) -> _Entries:
        """Append other entries, which replace those of equal words; keep the last ``limit``."""
        first = {key: row for key, row in self.row_of.items() if key not in last.row_of}
        keys = [*first, *last.row_of][-limit:]
        rows = list(first.values())
        embeddings, checksums = last.embeddings, last.checksums
        if rows:
            embeddings = torch.cat([self.embeddings[rows], embeddings])
            checksums = torch.cat([self.checksums[rows], checksums])
        row_of = dict(zip(keys, range(len(keys)), strict=True))
        return _Entries(row_of, embeddings[-limit:], checksums[-limit:])


def _checksum(key: str, row: npt.NDArray[np.float32]) -> int:
    return zlib.crc32(row.data, zlib.crc32(key.encode()))


class CachedTextEncoder:
    """Embeds vocabularies; the teacher is loaded only when it is needed.

    Args:
        model: the teacher's model, as for :meth:`vild.embeddings.build_teacher`.
        pretrained: the teacher's weights, likewise.
        fingerprint: fingerprint of the expected teacher, if known; cached words can then be used
            without loading a teacher. Loading a different one raises an error.
        temperature: temperature of that teacher; required with ``fingerprint``.
        templates: prompts; see :func:`vild.embeddings.text.template_set`.
        synonyms: average over a class's synonyms as well as over its prompts.
        folder: cache folder; :func:`default_folder` by default. Each file keeps the last
            ``MAX_WORDS`` words in use when new ones were added, or a whole larger vocabulary. If
            the folder is not writable, embeddings are computed but not kept.
        device: device of the teacher.
        batch_size: prompts per batch.

    Attributes:
        encoded: number of classes that the teacher has embedded so far.
    """

    def __init__(
        self,
        model: str,
        pretrained: str | None,
        *,
        fingerprint: str = "",
        temperature: float = 0.0,
        templates: str = "vild",
        synonyms: bool = True,
        folder: str | os.PathLike[str] | None = None,
        device: str | torch.device | None = None,
        batch_size: int = 256,
    ) -> None:
        self.model, self.pretrained, self.device = model, pretrained or None, device
        self.templates, self.synonyms, self.batch_size = templates, synonyms, batch_size
        self.folder = Path(folder) if folder is not None else default_folder()
        self.encoded = 0
        self._fingerprint, self._temperature = fingerprint, temperature
        self._filled = template_set(templates)
        self._recorded = recorded_templates(templates)
        self._teacher: Teacher | None = None

    def embed(self, vocabulary: Vocabulary, progress: bool = False) -> TextEmbeddings:
        """Embed K classes like :func:`vild.embeddings.embed_vocabulary`, using the cache.

        Args:
            vocabulary: the classes.
            progress: show a progress bar for classes that are not cached.

        Raises:
            ValueError: the teacher cannot be loaded, or its weights are not the expected ones.
        """
        file = self._file()
        kept = self._read(file)
        keys = [self._key(own) for own in vocabulary.synonyms]
        rows = kept.rows(keys)
        new = [place for place, row in enumerate(rows) if row is None]
        if damaged := sum(keys[place] in kept.row_of for place in new):
            logger.warning("%s: %d damaged entries are computed again", file, damaged)
        old = [place for place, row in enumerate(rows) if row is not None]
        embeddings = kept.embeddings[[row for row in rows if row is not None]]
        if new:
            made = self._encode(vocabulary, new, progress)
            known, embeddings = embeddings, made.new_empty(len(keys), made.shape[1])
            embeddings[new] = made
            if old:
                embeddings[old] = known
            self._write(file, _Entries.of(keys, embeddings), len(new))
        return TextEmbeddings(
            embeddings,
            vocabulary,
            self._temperature or self.teacher.temperature,
            f"{self.model}/{self.pretrained}" if self.pretrained else self.model,
            self._fingerprint or self.teacher.fingerprint,
            self._recorded,
            self.synonyms,
        )

    @property
    def teacher(self) -> Teacher:
        """The teacher, loaded on first use.

        Raises:
            ValueError: see :meth:`embed`.
        """
        if self._teacher is None:
            self._teacher = build_teacher(self.model, self.pretrained, self.device)
            found = self._teacher.fingerprint
            if self._fingerprint and found != self._fingerprint:
                self._teacher = None
                raise ValueError(
                    f"expected the teacher that the detector learned from (weights "
                    f"{self._fingerprint[:12]}), got {self.model} with weights {found[:12]}: set "
                    "MODEL.VILD.TEACHER to the model and the checkpoint that made its embeddings"
                )
        return self._teacher

    def _encode(self, vocabulary: Vocabulary, rows: Sequence[int], progress: bool) -> Tensor:
        """Compute embeddings (len(rows), D) of some classes."""
        part = Vocabulary(
            tuple(vocabulary.names[row] for row in rows),
            tuple(vocabulary.synonyms[row] for row in rows),
            tuple(vocabulary.novel[row] for row in rows),
        )
        made = embed_vocabulary(
            self.teacher, part, self.templates, self.synonyms, self.batch_size, progress
        )
        self.encoded += len(rows)
        return made.embeddings

    def _key(self, synonyms: Sequence[str]) -> str:
        used = synonyms if self.synonyms else synonyms[:1]
        return json.dumps(list(map(clean_name, used)), ensure_ascii=False)

    def _file(self) -> Path:
        fingerprint = self._fingerprint or self.teacher.fingerprint
        prompts = hashlib.sha256(json.dumps(self._filled).encode()).hexdigest()
        return self.folder / f"text-{fingerprint[:16]}-{prompts[:16]}.safetensors"

    def _read(self, file: Path) -> _Entries:
        """Read a file's entries; return none if it is missing or damaged as a whole."""
        if not file.is_file():
            return _Entries.empty()
        try:
            with safe_open(file, framework="pt") as opened:
                header = opened.metadata() or {}
                if header.get("format") != FORMAT:
                    raise ValueError(f"expected the format {FORMAT}, got {header.get('format')!r}")
                embeddings, checksums = map(opened.get_tensor, ("embeddings", "checksums"))
                keys = json.loads(header["keys"])
            shapes = {tuple(embeddings.shape[:1]), tuple(checksums.shape), (len(keys),)}
            types = embeddings.dtype, checksums.dtype
            if len(shapes) > 1 or embeddings.ndim != 2 or types != (torch.float32, torch.int64):
                raise ValueError(f"{len(keys)} words, embeddings {tuple(embeddings.shape)}")
            row_of = dict(zip(keys, range(len(keys)), strict=True))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            logger.warning("rebuilding %s: %s", file, error)
            return _Entries.empty()
        return _Entries(row_of, embeddings, checksums)

    def _write(self, file: Path, used: _Entries, new: int) -> None:
        """Write the entries of a vocabulary, some of them new, to the end of the file."""
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # other processes may have added words since the file was read
            with FileLock(f"{file}.lock"):
                kept = self._read(file).followed_by(used, max(MAX_WORDS, len(used.row_of)))
                keys = json.dumps(list(kept.row_of), ensure_ascii=False)
                tensors = {"embeddings": kept.embeddings, "checksums": kept.checksums}
                with atomic_path(file) as temporary:
                    save_file(
                        {name: tensor.contiguous() for name, tensor in tensors.items()},
                        temporary,
                        {"format": FORMAT, "keys": keys},
                    )
        except (OSError, SafetensorError, NotImplementedError) as error:  # no file locks
            logger.warning("embeddings of %d words were not kept: %s", new, error)
