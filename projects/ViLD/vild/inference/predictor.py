"""Detects whatever is named in a picture.

Pictures are (H, W, 3) uint8 in BGR order, as OpenCV and Detectron2's predictors have them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import Tensor

from vild.data import Vocabulary
from vild.embeddings import TextEmbeddings
from vild.embeddings.cache import CachedTextEncoder
from vild.modeling import WITH_TEACHER, ViLDROIHeads, load_weights

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}
MAX_CLASSES = 20_000
Words = Sequence[str] | str | Vocabulary | TextEmbeddings


class OpenVocabularyPredictor:
    """A trained detector for any vocabulary.

    Args:
        cfg: configuration; ``MODEL.WEIGHTS`` names the checkpoint, ``MODEL.VILD.TEACHER`` the
            teacher that words are embedded by. Without a GPU it runs on the CPU.
        vocabulary: see :meth:`set_vocabulary`; that of ``MODEL.VILD.TEXT_EMBEDDINGS`` by default.
        novel: see there.
        precision: ``fp32`` or ``bf16`` (autocast).
        batch_size: most pictures at a time; only those of one size go together.
        cache: folder of the text embeddings; see :class:`CachedTextEncoder`.

    Attributes:
        model: the detector.
        encoder: embeds words.
        base_classes: names of the classes that the detector was trained on, where
            ``MODEL.VILD.TEXT_EMBEDDINGS`` says so.

    Raises:
        ValueError: a checkpoint that is missing or of another model, a detector that cannot do
            without precomputed proposals, no vocabulary, or see :meth:`set_vocabulary`.
    """

    def __init__(
        self,
        cfg: CfgNode,
        vocabulary: Words | None = None,
        *,
        novel: Sequence[str] | None = None,
        precision: str = "fp32",
        batch_size: int = 8,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"expected a precision of {sorted(PRECISIONS)}, got {precision!r}")
        if batch_size < 1:
            raise ValueError(f"expected a batch of 1 or more pictures, got {batch_size}")
        cfg = cfg.clone()
        cfg.defrost()
        _check(cfg)
        if not torch.cuda.is_available():
            cfg.MODEL.DEVICE = "cpu"
        self.batch_size, self._dtype = batch_size, PRECISIONS[precision]
        file = cfg.MODEL.VILD.TEXT_EMBEDDINGS
        known = TextEmbeddings.load(file) if file and Path(file).is_file() else None
        self.encoder = _encoder(cfg, known, cache)
        self.base_classes = _base_classes(known)
        if known is None and vocabulary is None:
            raise ValueError(
                f"expected words to detect, or MODEL.VILD.TEXT_EMBEDDINGS to name their "
                f"embeddings, got neither ({file or 'no file named'!r})"
            )
        text = self._embed(vocabulary, novel) if vocabulary is not None else known
        self.model = _build(cfg, text)
        load_weights(self.model, cfg.MODEL.WEIGHTS)
        self.model.eval()
        self._cfg = cfg

    @property
    def vocabulary(self) -> Vocabulary:
        """Names and novel flags of what ``pred_classes`` counts."""
        return self.model.roi_heads.vocabulary

    @property
    def metadata(self) -> Metadata:
        """The vocabulary as Detectron2's Visualizer wants it."""
        return self.model.roi_heads.metadata

    def set_vocabulary(self, vocabulary: Words, novel: Sequence[str] | None = None) -> None:
        """Detect other classes from now on: names, embeddings and novel flags change together.

        Args:
            vocabulary: 1 to 20,000 words; or what :meth:`vild.data.Vocabulary.load` reads (a data
                set, a file or a comma list); or classes, embedded or not.
            novel: which of them are novel. By default it is as the data set, the json or the
                classes say; of words, all but :attr:`base_classes`.

        Raises:
            ValueError: no words, too many, one twice, a novel word that is not among them, or a
                teacher that cannot be loaded. Nothing is changed then.
        """
        self.model.roi_heads.set_vocabulary(self._embed(vocabulary, novel))

    def _embed(self, vocabulary: Words, novel: Sequence[str] | None) -> TextEmbeddings:
        if isinstance(vocabulary, TextEmbeddings):
            if novel is not None:
                raise ValueError("expected novel classes within the text embeddings, or words")
            _check_size(len(vocabulary.vocabulary))
            return vocabulary
        classes = read_words(vocabulary, novel, self.base_classes)
        _check_size(len(classes))
        return self.encoder.embed(classes)

    @overload
    def __call__(self, pictures: np.ndarray) -> Instances: ...

    @overload
    def __call__(self, pictures: Sequence[np.ndarray]) -> list[Instances]: ...

    def __call__(self, pictures: np.ndarray | Sequence[np.ndarray]) -> Instances | list[Instances]:
        """Detect.

        Args:
            pictures: one of (H, W, 3) uint8 BGR, or several of any sizes.

        Returns:
            Instances on the CPU, best first, in pixels of the picture: ``pred_boxes``, ``scores``,
            ``pred_classes`` (rows of :attr:`vocabulary`) and, where the detector has them,
            ``pred_masks`` (N, H, W). One for one picture, a list for several.

        Raises:
            ValueError: a picture of another form.
        """
        if isinstance(pictures, np.ndarray):
            return self([pictures])[0]
        inputs = [self._prepare(picture) for picture in pictures]
        # Pictures of one size only go together: beside a larger one a picture would be padded, and
        # its detections would depend on its neighbours.
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, given in enumerate(inputs):
            groups.setdefault(tuple(given["image"].shape), []).append(index)
        found: dict[int, Instances] = {}
        for rows in groups.values():
            for start in range(0, len(rows), self.batch_size):
                batch = rows[start : start + self.batch_size]
                found.update(zip(batch, self._detect([inputs[i] for i in batch]), strict=True))
        return [found[index] for index in range(len(inputs))]

    def _detect(self, inputs: list[dict[str, Any]]) -> list[Instances]:
        with torch.inference_mode(), self._autocast():
            outputs = self.model(inputs)
        return [output["instances"].to("cpu") for output in outputs]

    def _autocast(self) -> AbstractContextManager[object]:
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self.model.device.type, self._dtype)

    def _prepare(self, picture: np.ndarray) -> dict[str, Any]:
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8:
            kind = getattr(picture, "dtype", type(picture).__name__)
            raise ValueError(f"expected pictures as arrays of uint8, got {kind}")
        if picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise ValueError(
                f"expected pictures of shape (H, W, 3) in BGR order, got {picture.shape}; "
                "cv2.cvtColor makes them of grey ones and of those with transparency"
            )
        height, width = picture.shape[:2]
        image = prepare_picture(self._cfg, picture[:, :, ::-1])
        return {"image": image, "height": height, "width": width}


def prepare_picture(cfg: CfgNode, picture: np.ndarray) -> Tensor:
    """What a detector sees of a picture.

    Args:
        cfg: ``INPUT`` of it.
        picture: (H, W, 3) uint8 RGB.

    Returns:
        (3, H', W') uint8, resized, channels as ``INPUT.FORMAT`` says.
    """
    sizes = (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST)
    pixels = picture if cfg.INPUT.FORMAT == "RGB" else picture[:, :, ::-1]
    pixels = np.ascontiguousarray(pixels)
    resize = T.ResizeShortestEdge(sizes, cfg.INPUT.MAX_SIZE_TEST).get_transform(pixels)
    return torch.from_numpy(np.ascontiguousarray(resize.apply_image(pixels).transpose(2, 0, 1)))


def read_words(
    words: Sequence[str] | str | Vocabulary,
    novel: Sequence[str] | None,
    base: Collection[str] = (),
) -> Vocabulary:
    """Classes from words, a file, a data set, or classes.

    Args:
        words: see :meth:`OpenVocabularyPredictor.set_vocabulary`.
        novel: names of the novel ones; None: see there.
        base: names of classes that a detector was trained on.

    Raises:
        ValueError: see there.
    """
    if isinstance(words, Vocabulary):
        return words if novel is None else _with_novel(words, novel)
    if isinstance(words, str):
        classes = Vocabulary.load(words, novel)
    else:
        classes = Vocabulary.from_names(words, novel)
    if novel is None and all(classes.novel):  # nothing is said of any of them
        return _with_novel(classes, [name for name in classes.names if name not in base])
    return classes


def _with_novel(classes: Vocabulary, novel: Sequence[str]) -> Vocabulary:
    flags = Vocabulary.from_names(classes.names, novel).novel
    return Vocabulary(classes.names, classes.synonyms, flags)


def _base_classes(known: TextEmbeddings | None) -> frozenset[str]:
    if known is None:
        return frozenset()
    classes = known.vocabulary
    pairs = zip(classes.names, classes.novel, strict=True)
    return frozenset(name for name, novel in pairs if not novel)


def _check(cfg: CfgNode) -> None:
    variant = cfg.MODEL.VILD.VARIANT
    if variant in WITH_TEACHER or cfg.MODEL.LOAD_PROPOSALS:
        raise ValueError(
            f"expected a detector that finds its regions itself, got the variant {variant!r} with "
            f"MODEL.LOAD_PROPOSALS: {cfg.MODEL.LOAD_PROPOSALS}: take a configuration of "
            "ViLD-text, ViLD or ViLD-ensemble"
        )
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("expected MODEL.WEIGHTS to name the checkpoint to detect with")


def _check_size(classes: int) -> None:
    if classes > MAX_CLASSES:
        raise ValueError(f"expected at most {MAX_CLASSES} words at a time, got {classes}")


def _encoder(
    cfg: CfgNode, known: TextEmbeddings | None, cache: str | os.PathLike[str] | None
) -> CachedTextEncoder:
    """Of the configuration's teacher; words get the prompts that training had."""
    model, pretrained = cfg.MODEL.VILD.TEACHER
    # embeddings that were imported say neither which weights nor which prompts made them
    is_ours = known is not None and bool(known.fingerprint)
    return CachedTextEncoder(
        *(model, pretrained),
        fingerprint=known.fingerprint if known is not None else "",
        temperature=known.temperature if known is not None else 0.0,
        templates=known.templates if known is not None and is_ours else "vild",
        folder=cache,
        device=cfg.MODEL.DEVICE,
    )


def _build(cfg: CfgNode, text: TextEmbeddings | None) -> torch.nn.Module:
    """The model with these classes; its configuration names a file, so there has to be one."""
    assert text is not None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "text.safetensors")
        text.save(file)
        cfg.MODEL.VILD.TEXT_EMBEDDINGS = str(file)
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(text.vocabulary)
        model = build_model(cfg)
    if not isinstance(model.roi_heads, ViLDROIHeads):
        raise ValueError(
            f"expected a detector with ViLDROIHeads, got {type(model.roi_heads).__name__}: its "
            "classes are fixed"
        )
    return model
