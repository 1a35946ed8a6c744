"""What is behind a web page that detects words in pictures. No web library here.

A page is open to whoever reaches it: sizes are limited, what is given is never trusted, and every
failure is a message.
"""

from __future__ import annotations

import json
import logging
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.structures import Boxes, Instances
from PIL import Image

from vild.data import Vocabulary, read_image
from vild.data.images import UnreadableImageError
from vild.data.vocabulary import split_words
from vild.inference.drawing import MAX_SIDE, draw_detections
from vild.inference.named import named_detections
from vild.inference.predictor import OpenVocabularyPredictor

logger = logging.getLogger(__name__)

LOWEST_SCORE = 0.01  # detections below are not kept for other thresholds
_KEPT_FILES = 16  # json files that wait for their download


@dataclass(frozen=True)
class Limits:
    """What a page accepts.

    Attributes:
        upload_mb: largest file, in megabytes.
        megapixels: largest picture.
        words: most words at a time; new ones have to be embedded, prompt by prompt.
        detections: most that are shown.
    """

    upload_mb: int = 20
    megapixels: int = 50
    words: int = 1000
    detections: int = 100


@dataclass(frozen=True)
class Answer:
    """What the page shows.

    Attributes:
        message: how many objects there are and how long it took, or what is wrong.
        picture: (H, W, 3) uint8 RGB with the detections, or None.
        rows: a detection each: name, "novel" or "base", score, and x, y, width and height in
            pixels of the picture that was given.
        words: the vocabulary, each with "novel" or "base".
        file: the detections in COCO's results format with names, or None.
    """

    message: str
    picture: np.ndarray | None = None
    rows: tuple[tuple[str, str, float, float, float, float, float], ...] = ()
    words: tuple[tuple[str, str], ...] = ()
    file: str | None = None


@dataclass(frozen=True)
class _Detected:
    """A picture as it was worked on, and what was found in it; both of the same size."""

    pixels: np.ndarray
    instances: Instances
    scale: float  # of the picture that was given, to this one
    vocabulary: Vocabulary
    seconds: float


class PageDetector:
    """Answers a page, one visitor at a time.

    Args:
        predictor: its vocabulary changes with every visitor's words.
        limits: what is accepted.
    """

    def __init__(self, predictor: OpenVocabularyPredictor, limits: Limits | None = None) -> None:
        self.predictor, self.limits = predictor, limits or Limits()
        # one model with one vocabulary at a time, whatever the server does with its threads
        self._lock = threading.Lock()
        self._last: tuple[tuple[bytes, tuple[str, ...]], _Detected] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="vild-page-")
        self._files = 0

    def answer(self, file: str | None, text: str | None, threshold: float) -> Answer:
        """Detect words in a picture.

        Args:
            file: of the picture, or None.
            text: words; see :func:`vild.data.vocabulary.split_words`.
            threshold: lowest score.

        Returns:
            what to show; where something is wrong, a message.
        """
        try:
            if not file:
                return Answer("Drop a picture first.")
            words = self._read_words(text or "")
            with self._lock:
                return self._show(self._detect(Path(file), words), Path(file).name, threshold)
        except UnreadableImageError as error:
            # the visitor's name of the file is the last part; where the server keeps it is not told
            return Answer(f"error: {error}".replace(str(file), Path(str(file)).name))
        except ValueError as error:
            return Answer(f"error: {error}")
        except Exception:
            logger.exception("a visitor's picture or words could not be worked on")
            return Answer("error: the server failed at this picture; its log says why.")

    def _read_words(self, text: str) -> tuple[str, ...]:
        words = tuple(split_words(text))
        if not words:
            raise ValueError("expected words to look for, separated by commas, got none.")
        if len(words) > self.limits.words:
            raise ValueError(
                f"expected at most {self.limits.words} words on this page, got {len(words)}."
            )
        Vocabulary.from_names(words)  # says what is wrong with them before a picture is read
        return words

    def _detect(self, file: Path, words: tuple[str, ...]) -> _Detected:
        key = file.read_bytes(), words
        if self._last is not None and self._last[0] == key:
            return self._last[1]  # only the threshold has changed
        whole = read_image(file, max_pixels=self.limits.megapixels * 1_000_000)
        pixels = _at_most(whole, MAX_SIDE)
        if self._last is None or self._last[0][1] != words:
            self._last = None  # nothing says which words are set, should this picture fail
            self.predictor.set_vocabulary(words)
        begin = time.perf_counter()
        found = self.predictor(np.ascontiguousarray(pixels[:, :, ::-1]))
        seconds = time.perf_counter() - begin
        found = found[found.scores >= LOWEST_SCORE][: self.limits.detections]
        scale = pixels.shape[1] / whole.shape[1]
        detected = _Detected(pixels, found, scale, self.predictor.vocabulary, seconds)
        self._last = key, detected
        return detected

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
        # a folder each, so that the visitor's file has a plain name
        folder = Path(self._folder.name, str(self._files % _KEPT_FILES))
        self._files += 1
        folder.mkdir(exist_ok=True)
        file = folder / "detections.json"
        file.write_text(json.dumps(entries, ensure_ascii=False, indent=1), encoding="utf-8")
        return str(file)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _at_most(picture: np.ndarray, side: int) -> np.ndarray:
    """The picture, smaller where its long side has over ``side`` pixels.

    Masks of many objects at the size of a camera's picture would take gigabytes.
    """
    height, width = picture.shape[:2]
    if max(height, width) <= side:
        return picture
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
