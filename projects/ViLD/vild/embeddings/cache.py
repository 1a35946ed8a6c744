"""Text embeddings that are kept on disk: words that were embedded once are not embedded again.

One file holds the words of one teacher and one set of prompts. A word's entry depends on these, on
the word and on its synonyms alone, so that any vocabulary is put together from what is there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vild.data import Vocabulary
from vild.data.files import atomic_path
from vild.data.prompts import clean_name
from vild.embeddings.teacher import Teacher
from vild.embeddings.text import (
    TextEmbeddings,
    embed_vocabulary,
    recorded_templates,
    template_set,
)

logger = logging.getLogger(__name__)

FORMAT = "vild-text-cache-1"
# words kept in a file, 100 MB of CLIP's: a public demo would grow the cache without bound
MAX_WORDS = 50_000


def default_folder() -> Path:
    """``$VILD_CACHE``, or ``vild`` in the user's cache folder (``$XDG_CACHE_HOME``)."""
    if "VILD_CACHE" in os.environ:
        return Path(os.environ["VILD_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "vild"


class CachedTextEncoder:
    """Embeds vocabularies; the teacher is loaded once it is needed, and not before.

    Args:
        model: of the teacher, as :meth:`vild.embeddings.Teacher.load` takes it.
        pretrained: likewise.
        fingerprint: the teacher that is meant, where it is known; with it words that are on disk
            need no teacher at all. Another one that is loaded under the name is refused.
        temperature: of that teacher; goes with ``fingerprint``.
        templates: prompts; see :func:`vild.embeddings.text.template_set`.
        synonyms: average over a class's synonyms as well as over its prompts.
        folder: of the files; :func:`default_folder` by default. Each has the last ``MAX_WORDS``
            that were used when new ones came, or a whole vocabulary if that has more.
            One that cannot be written to costs time, not the result.
        device: of the teacher.
        batch_size: prompts at a time.

    Attributes:
        encoded: classes that the teacher has embedded so far.
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
        """Embeddings of K classes, as :func:`vild.embeddings.embed_vocabulary` makes them.

        Args:
            vocabulary: the classes.
            progress: show a progress bar for those that are new.

        Raises:
            ValueError: a teacher that cannot be loaded, or other weights than those meant.
        """
        file = self._file()
        known = self._read(file)
        keys = [self._key(own) for own in vocabulary.synonyms]
        new = [row for row, key in enumerate(keys) if key not in known]
        if new:
            known = {**known, **self._encode(vocabulary, new, keys, progress)}
            self._write(file, {key: known[key] for key in keys}, len(new))
        return TextEmbeddings(
            torch.stack([known[key] for key in keys]),
            vocabulary,
            self._temperature or self.teacher.temperature,
            f"{self.model}/{self.pretrained}" if self.pretrained else self.model,
            self._fingerprint or self.teacher.fingerprint,
            self._recorded,
            self.synonyms,
        )

    @property
    def teacher(self) -> Teacher:
        """The teacher; loaded at the first use.

        Raises:
            ValueError: see :meth:`embed`.
        """
        if self._teacher is None:
            self._teacher = Teacher.load(self.model, self.pretrained, self.device)
            found = self._teacher.fingerprint
            if self._fingerprint and found != self._fingerprint:
                self._teacher = None
                raise ValueError(
                    f"expected the teacher that the detector learned from (weights "
                    f"{self._fingerprint[:12]}), got {self.model} with weights {found[:12]}: set "
                    "MODEL.VILD.TEACHER to the model and the checkpoint that made its embeddings"
                )
        return self._teacher

    def _encode(
        self, vocabulary: Vocabulary, rows: Sequence[int], keys: Sequence[str], progress: bool
    ) -> dict[str, Tensor]:
        part = Vocabulary(
            tuple(vocabulary.names[row] for row in rows),
            tuple(vocabulary.synonyms[row] for row in rows),
            tuple(vocabulary.novel[row] for row in rows),
        )
        made = embed_vocabulary(
            self.teacher, part, self.templates, self.synonyms, self.batch_size, progress
        )
        self.encoded += len(rows)
        return {keys[row]: made.embeddings[i] for i, row in enumerate(rows)}

    def _key(self, synonyms: Sequence[str]) -> str:
        used = synonyms if self.synonyms else synonyms[:1]
        return json.dumps(list(map(clean_name, used)), ensure_ascii=False)

    def _file(self) -> Path:
        fingerprint = self._fingerprint or self.teacher.fingerprint
        prompts = hashlib.sha256(json.dumps(self._filled).encode()).hexdigest()
        return self.folder / f"text-{fingerprint[:16]}-{prompts[:16]}.safetensors"

    def _read(self, file: Path) -> dict[str, Tensor]:
        """Embeddings by key; nothing of a file that is missing or damaged."""
        if not file.is_file():
            return {}
        try:
            with safe_open(file, framework="pt") as opened:
                header = opened.metadata() or {}
                if header.get("format") != FORMAT:
                    raise ValueError(f"the format is {header.get('format')!r}")
                rows, keys = opened.get_tensor("embeddings"), json.loads(header["keys"])
            if rows.ndim != 2 or len(rows) != len(keys):
                raise ValueError(f"{len(keys)} words, embeddings of shape {tuple(rows.shape)}")
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            logger.warning("%s is damaged and made anew (%s)", file, error)
            return {}
        return dict(zip(keys, rows, strict=True))

    def _write(self, file: Path, used: Mapping[str, Tensor], new: int) -> None:
        """Keep the embeddings of a vocabulary, of which some are new, as the file's last ones."""
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # other processes may have added words since the file was read
            with FileLock(f"{file}.lock"):
                others = {k: row for k, row in self._read(file).items() if k not in used}
                kept = dict(list({**others, **used}.items())[-max(MAX_WORDS, len(used)) :])
                header = {"format": FORMAT, "keys": json.dumps(list(kept), ensure_ascii=False)}
                with atomic_path(file) as temporary:
                    save_file({"embeddings": torch.stack(list(kept.values()))}, temporary, header)
        except OSError as error:
            logger.warning("embeddings of %d words were not kept: %s", new, error)
