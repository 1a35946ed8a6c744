"""The detector behind the web page, without the user interface.

Anyone who can reach the page may use it: sizes are limited, input is not trusted, and every failure
becomes a message.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image, UnidentifiedImageError

from vild.data import Vocabulary, read_image
from vild.data.images import UnreadableImageError
from vild.data.vocabulary import split_words
from vild.embeddings import TextEmbeddings
from vild.inference.detection_files import named_detections
from vild.inference.predictor import OpenVocabularyPredictor, read_words
from vild.reporting.drawing import MAX_SIDE, draw_detections

logger = logging.getLogger(__name__)

VISITORS = 8  # maximum number of concurrent requests
# Pillow reads more formats, some of which are decoded on open, whatever their size
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
LOWEST_SCORE = 0.01  # detections below it are not kept for other thresholds
_KEPT_FILES = 64  # json files until gradio copies them; more than VISITORS
_DECODED_AT_ONCE = 2  # a decoder needs about 10 bytes per pixel
_WORDS_AT_ONCE = 64  # words per turn, before another visitor's words


@dataclass(frozen=True)
class Limits:
    """The limits of what a page accepts.

    Attributes:
        upload_mb: maximum file size in megabytes.
        megapixels: maximum image size.
        side: maximum side of an image in pixels. Resizing a strip millions of pixels long takes
            gigabytes, even if it has few pixels in total.
        words: maximum number of words; new words must be embedded, prompt by prompt.
        detections: maximum number of detections shown.
    """

    upload_mb: int = 20
    megapixels: int = 50
    side: int = 20_000
    words: int = 1000
    detections: int = 100


@dataclass(frozen=True)
class Answer:
    """The response shown on the page.

    Attributes:
        message: number of objects and the time taken, or an error.
        image: (H, W, 3) uint8 RGB with the detections, or None.
        rows: one per detection: name, "novel" or "base", score, and x, y, width and height in
            pixels of the uploaded image.
        words: the vocabulary, each word with "novel" or "base".
        file: the detections in COCO's results format with names, or None.
    """

    message: str
    image: np.ndarray | None = None
    rows: tuple[tuple[str, str, float, float, float, float, float], ...] = ()
    words: tuple[tuple[str, str], ...] = ()
    file: str | None = None


@dataclass(frozen=True)
class _Detected:
    """A resized image and its detections, both at the same size."""

    pixels: np.ndarray
    instances: Instances
    scale: float  # from the uploaded image to this one
    vocabulary: Vocabulary
    seconds: float


class PageDetector:
    """The detector of a page, shared by its visitors.

    Images are read and words embedded in each visitor's thread. Only drawing and the model, which
    has one vocabulary at a time, serve one visitor after another.

    Args:
        predictor: the predictor; its vocabulary changes with every visitor's words.
        folder: folder for the json files that visitors download; created if missing.
        limits: limits of the input.
    """

    def __init__(
        self,
        predictor: OpenVocabularyPredictor,
        folder: str | os.PathLike[str],
        limits: Limits | None = None,
    ) -> None:
        self.predictor, self.limits = predictor, limits or Limits()
        self._model = threading.Lock()
        self._decoding = threading.BoundedSemaphore(_DECODED_AT_ONCE)
        self._next, self._embedding = threading.Lock(), threading.Lock()
        self._text: TextEmbeddings | None = None  # the model's vocabulary, if known
        self._last: tuple[tuple[bytes, tuple[str, ...]], _Detected] | None = None
        self._folder, self._files = Path(folder), 0

    def answer(self, file: str | None, text: str | None, threshold: float) -> Answer:
        """Detect words in an image.

        Args:
            file: path of the image, or None.
            text: words; see :func:`vild.data.vocabulary.split_words`.
            threshold: minimum score.

        Returns:
            The response; on an error, only a message.
        """
        try:
            if not file:
                return Answer("Drop an image first.")
            words = self._read_words(text or "")
            threshold = _as_fraction(threshold)
            detected = self._detect(Path(file), words)
            with self._model:  # matplotlib is not thread-safe
                return self._show(detected, Path(file).name, threshold)
        except UnreadableImageError as error:
            # show the visitor's file name, do not reveal the server's path
            return Answer(f"error: {error}".replace(str(file), Path(str(file)).name))
        except ValueError as error:
            return Answer(f"error: {error}")
        except Exception:
            logger.exception("a visitor's image or words could not be processed")
            return Answer("error: the server failed to process this image; see its log.")

    def _read_words(self, text: str) -> Vocabulary:
        words = split_words(text)
        if not words:
            raise ValueError("expected words to detect, separated by commas, got none.")
        if len(words) > self.limits.words:
            raise ValueError(
                f"expected at most {self.limits.words} words on this page, got {len(words)}."
            )
        names = Vocabulary.from_names(words)  # refuse bad words before reading the image
        return read_words(names.names, None, self.predictor.base_classes)

    def _detect(self, file: Path, words: Vocabulary) -> _Detected:
        key = file.read_bytes(), words.names
        last = self._last
        if last is not None and last[0] == key:
            return last[1]  # at most the threshold has changed
        pixels, scale = self._read(file)
        text = self._text
        if text is None or text.vocabulary.names != words.names:
            text = self._embed(words)
        with self._model:
            if self._text is not text:
                self._text = None  # unknown if setting it fails
                self.predictor.set_vocabulary(text)
                self._text = text
            begin = time.perf_counter()
            found = self.predictor(np.ascontiguousarray(pixels[:, :, ::-1]))["instances"]
            seconds = time.perf_counter() - begin
            found = found[found.scores >= LOWEST_SCORE][: self.limits.detections]
            detected = _Detected(pixels, found, scale, words, seconds)
            self._last = key, detected
        return detected

    def _read(self, file: Path) -> tuple[np.ndarray, float]:
        """Return an image of at most ``MAX_SIDE`` pixels per side, and its scale."""
        _check_header(file, self.limits.side)
        with self._decoding:
            whole = read_image(file, max_pixels=self.limits.megapixels * 1_000_000)
            pixels = _at_most(whole, MAX_SIDE)
        return pixels, pixels.shape[1] / whole.shape[1]

    def _embed(self, words: Vocabulary) -> TextEmbeddings:
        """Embed words in chunks, taking turns with other visitors."""
        parts = []
        for start in range(0, len(words), _WORDS_AT_ONCE):
            rows = slice(start, start + _WORDS_AT_ONCE)
            part = Vocabulary(words.names[rows], words.synonyms[rows], words.novel[rows])
            # The waiting thread holds ``_next``, so this one cannot take a second turn before it:
            # a lock alone is not fair.
            with self._next:
                self._embedding.acquire()
            try:
                parts.append(self.predictor.encoder.embed(part))
            finally:
                self._embedding.release()
        rows_of_all = torch.cat([part.embeddings for part in parts])
        return replace(parts[0], embeddings=rows_of_all, vocabulary=words)

    def _show(self, detected: _Detected, name: str, threshold: float) -> Answer:
        found, vocabulary = detected.instances, detected.vocabulary
        found = found[found.scores >= threshold]
        drawn = draw_detections(detected.pixels, found, vocabulary, threshold=0.0)
        kinds = ["novel" if novel else "base" for novel in vocabulary.novel]
        original = Instances(
            found.image_size,
            pred_boxes=Boxes(found.pred_boxes.tensor / detected.scale),
            scores=found.scores,
            pred_classes=found.pred_classes,
        )
        entries = named_detections(1, original, vocabulary)
        rows = tuple(
            (e["category_name"], kinds[e["category_id"] - 1], round(e["score"], 3), *e["bbox"])
            for e in entries
        )
        return Answer(
            f"{name}: {_counted(len(rows), 'object')} in {detected.seconds:.2f} s, of "
            f"{_counted(len(vocabulary), 'word')}.",
            drawn,
            rows,
            tuple(zip(vocabulary.names, kinds, strict=True)),
            self._save(entries),
        )

    def _save(self, entries: list[dict[str, object]]) -> str:
        # one folder per request, so that the downloaded file has a plain name
        folder = self._folder / str(self._files % _KEPT_FILES)
        self._files += 1
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "detections.json"
        file.write_text(json.dumps(entries, ensure_ascii=False, indent=1), encoding="utf-8")
        return str(file)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _at_most(image: np.ndarray, side: int) -> np.ndarray:
    """Shrink an image whose long side exceeds ``side`` pixels.

    Masks of many objects at full camera resolution would take gigabytes.
    """
    height, width = image.shape[:2]
    if max(height, width) <= side:
        return image
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _check_header(file: Path, side: int) -> None:
    """Check the format and the declared size of an image before it is decoded.

    Raises:
        UnreadableImageError: the format is not accepted, or the image is too large.
    """
    Image.init()
    try:
        # AVIF needs a library; EPS is included because read_image explains why it is refused
        known = [kind for kind in (*IMAGE_FORMATS, "EPS") if kind in Image.OPEN]
        with Image.open(file, formats=known) as image:
            width, height = image.size
    except UnidentifiedImageError:
        if not file.stat().st_size:
            return  # as above
        raise UnreadableImageError(
            f"cannot read the image {file}: it is not an image format that this page reads "
            f"({', '.join(IMAGE_FORMATS)}). Convert it to PNG or JPEG."
        ) from None
    except Exception:  # as above
        return
    if max(width, height) > side:
        raise UnreadableImageError(
            f"cannot read the image {file}: expected sides of at most {side} pixels, got "
            f"{width} x {height}. Make it smaller."
        )


def _as_fraction(threshold: object) -> float:
    if not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise ValueError(f"expected a minimum score from 0 to 1, got {threshold!r:.40}.")
    return float(threshold)
