"""The predictor, which detects the classes of any vocabulary in images.

Image arrays are (H, W, 3) uint8 in BGR order, as in OpenCV and Detectron2's predictors.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata
from detectron2.modeling import build_model
from detectron2.structures import Instances
from PIL import Image
from torch import Tensor

from vild.checkpoint import load_weights
from vild.data import Vocabulary, clean_name, read_image
from vild.data.augmentations import ResizeShortestEdge
from vild.data.images import image_pixels
from vild.embeddings import TextEmbeddings
from vild.embeddings.cache import CachedTextEncoder
from vild.modeling import ViLDROIHeads, find_variant, with_text_embeddings
from vild.precision import autocast, resolve_precision

Words = Sequence[str] | str | os.PathLike[str] | Vocabulary | TextEmbeddings
Detections = dict[str, Instances]  # of one image, under "instances"
ImageInput = np.ndarray | Image.Image | str | os.PathLike[str]


class OpenVocabularyPredictor:
    """A trained detector for any vocabulary.

    Args:
        cfg: configuration; ``MODEL.WEIGHTS`` is the checkpoint, ``MODEL.VILD.TEACHER`` the teacher
            that embeds words. Without a GPU the detector runs on the CPU.
        vocabulary: see :meth:`set_vocabulary`; that of ``MODEL.VILD.TEXT_EMBEDDINGS`` by default.
        novel: see :meth:`set_vocabulary`.
        precision: see :func:`vild.precision.resolve_precision`.
        batch_size: maximum number of images per batch; only images of the same size are batched.
        cache: cache folder for text embeddings; see :class:`CachedTextEncoder`.

    Attributes:
        model: the detector.
        encoder: the text encoder, which embeds words.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        base_classes: names of the classes that the detector was trained on, if known from
            ``MODEL.VILD.TEXT_EMBEDDINGS``.

    Raises:
        ValueError: the configuration lacks ``MODEL.VILD``, the checkpoint is missing or of another
            model, the detector needs precomputed proposals, text embeddings are missing, there is
            no vocabulary, the precision is unknown, or as for :meth:`set_vocabulary`.
    """

    def __init__(
        self,
        cfg: CfgNode,
        vocabulary: Words | None = None,
        *,
        novel: Sequence[str] | str | None = None,
        precision: str = "fp32",
        batch_size: int = 8,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"expected a batch of 1 or more images, got {batch_size!r}")
        if cache is not None and not os.fspath(cache):
            raise ValueError("expected a folder as the cache, got an empty path")
        _check(cfg)
        cfg = cfg.clone()
        cfg.defrost()
        if not torch.cuda.is_available():
            cfg.MODEL.DEVICE = "cpu"
        self.batch_size = batch_size
        self.precision = resolve_precision(precision, cfg.MODEL.DEVICE)
        file = cfg.MODEL.VILD.TEXT_EMBEDDINGS
        if file and not Path(file).is_file():
            # otherwise every word would count as novel, which changes the scores
            raise ValueError(
                f"expected text embeddings at {file} (MODEL.VILD.TEXT_EMBEDDINGS), which say what "
                "the detector was trained on: no such file. Make them with "
                "tools/extract_text_embeddings.py, or set the key to '' if all words are novel"
            )
        known = TextEmbeddings.load(file) if file else None
        self.encoder = _encoder(cfg, known, cache)
        self.base_classes = _base_classes(known)
        text = self._embed(vocabulary, novel) if vocabulary is not None else known
        if text is None:
            raise ValueError(
                "expected words to detect, or MODEL.VILD.TEXT_EMBEDDINGS to name their "
                "embeddings, got neither"
            )
        self.model = _build(cfg, text)
        load_weights(self.model, cfg.MODEL.WEIGHTS)
        self.model.eval()
        self._cfg = cfg

    @property
    def vocabulary(self) -> Vocabulary:
        """Names and novel flags of the classes, indexed by ``pred_classes``."""
        return self.model.roi_heads.vocabulary

    @property
    def metadata(self) -> Metadata:
        """Metadata of the vocabulary for Detectron2's Visualizer."""
        return self.model.roi_heads.metadata

    def set_vocabulary(self, vocabulary: Words, novel: Sequence[str] | str | None = None) -> None:
        """Replace the vocabulary: names, text embeddings and novel flags change together.

        Args:
            vocabulary: a list of words; or a string or path for :meth:`vild.data.Vocabulary.load`
                (a dataset, a file or a comma-separated list); or a Vocabulary or TextEmbeddings.
                Only memory limits the number of classes.
            novel: which classes are novel. Defaults to the novel flags of the dataset, the json or
                the Vocabulary; of plain words, all are novel except :attr:`base_classes`, in any
                spelling with the same prompts.

        Raises:
            ValueError: there are no words, a word is repeated, a novel word is not in the
                vocabulary, a string looks like a missing file or dataset, or the teacher cannot be
                loaded. The vocabulary is then unchanged.
        """
        self.model.roi_heads.set_vocabulary(self._embed(vocabulary, novel))

    def _embed(self, vocabulary: Words, novel: Sequence[str] | str | None) -> TextEmbeddings:
        if isinstance(vocabulary, TextEmbeddings):
            if novel is not None:
                raise ValueError(
                    "expected words with novel classes, got TextEmbeddings, which have their own "
                    "novel flags: leave novel out"
                )
            return vocabulary
        return self.encoder.embed(read_words(vocabulary, novel, self.base_classes))

    # a string is an iterable of strings, too
    @overload
    def __call__(self, images: ImageInput) -> Detections: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, images: Iterable[ImageInput]) -> list[Detections]: ...

    def __call__(self, images: ImageInput | Iterable[ImageInput]) -> Detections | list[Detections]:
        """Detect the vocabulary's classes in one image or in several.

        Args:
            images: one image or an iterable of images of any sizes. An image is an array
                (H, W, 3) uint8 BGR, a Pillow image, or the path of a file.

        Returns:
            ``{"instances": Instances}`` like Detectron2's DefaultPredictor, and a list of these
            for several images. The Instances are on the CPU, best first, in pixels of the image:
            ``pred_boxes``, ``scores``, ``pred_classes`` (rows of :attr:`vocabulary`) and, if the
            detector has a mask head, ``pred_masks`` (N, H, W).

        Raises:
            ValueError: the input has another type, or a file cannot be read.
        """
        one = isinstance(images, np.ndarray | Image.Image | str | os.PathLike)
        if one or not isinstance(images, Iterable):
            return self._detect_all([self._prepare(images)])[0]
        return self._detect_all([self._prepare(image) for image in images])

    def _detect_all(self, inputs: list[dict[str, Any]]) -> list[Detections]:
        # Only images of the same size are batched: an image padded to the size of a larger one
        # would get detections that depend on its batch.
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, given in enumerate(inputs):
            groups.setdefault(tuple(given["image"].shape), []).append(index)
        found: dict[int, Detections] = {}
        for rows in groups.values():
            for start in range(0, len(rows), self.batch_size):
                batch = rows[start : start + self.batch_size]
                found.update(zip(batch, self._detect([inputs[i] for i in batch]), strict=True))
        return [found[index] for index in range(len(inputs))]

    def _detect(self, inputs: list[dict[str, Any]]) -> list[Detections]:
        with torch.inference_mode(), autocast(self.precision, self.model.device):
            outputs = self.model(inputs)
        return [{"instances": output["instances"].to("cpu")} for output in outputs]

    def _prepare(self, image: object) -> dict[str, Any]:
        rgb = _pixels(image)
        height, width = rgb.shape[:2]
        return {"image": prepare_image(self._cfg, rgb), "height": height, "width": width}


def _pixels(image: object) -> np.ndarray:
    """Return an image as (H, W, 3) uint8 RGB."""
    if isinstance(image, str | os.PathLike):
        if not os.fspath(image):
            raise ValueError("expected the path of an image, got an empty one")
        return read_image(image)
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise ValueError(
                f"expected an image with pixels, got one of {image.width} x {image.height}"
            )
        return image_pixels(image)
    if image is None:
        raise ValueError(
            "expected an image, got None, which is what cv2.imread returns for a file that is "
            "missing or cannot be read"
        )
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = getattr(image, "dtype", type(image).__name__)
        raise ValueError(f"expected images as arrays of uint8, Pillow images or paths, got {kind}")
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            f"expected images of shape (H, W, 3) in BGR order, got {image.shape}; "
            "cv2.cvtColor converts grey images and those with transparency"
        )
    return image[:, :, ::-1]


def prepare_image(cfg: CfgNode, image: np.ndarray) -> Tensor:
    """Preprocess an image for the model.

    Args:
        cfg: configuration; ``INPUT`` is used.
        image: (H, W, 3) uint8 RGB.

    Returns:
        (3, H', W') uint8, resized, with channels in the order of ``INPUT.FORMAT``.
    """
    sizes = (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST)
    pixels = image if cfg.INPUT.FORMAT == "RGB" else image[:, :, ::-1]
    pixels = np.ascontiguousarray(pixels)
    resize = ResizeShortestEdge(sizes, cfg.INPUT.MAX_SIZE_TEST).get_transform(pixels)
    return torch.from_numpy(np.ascontiguousarray(resize.apply_image(pixels).transpose(2, 0, 1)))


def read_words(
    words: Sequence[str] | str | os.PathLike[str] | Vocabulary,
    novel: Sequence[str] | str | None,
    base: Collection[str] = (),
) -> Vocabulary:
    """Make a vocabulary from words, a file, a dataset, or another vocabulary.

    Args:
        words: see :meth:`OpenVocabularyPredictor.set_vocabulary`.
        novel: names of the novel classes; None uses the defaults described there.
        base: names of the classes that a detector was trained on.

    Raises:
        ValueError: as for :meth:`OpenVocabularyPredictor.set_vocabulary`.
    """
    if isinstance(words, Vocabulary):
        return words if novel is None else words.with_novel(novel)
    if isinstance(words, str | os.PathLike):
        classes = Vocabulary.load(words, novel)
    else:
        classes = Vocabulary.from_names(words, novel)
    if novel is None and all(classes.novel):  # the input has no novel flags
        known = set(map(clean_name, base))
        novel = [name for name in classes.names if clean_name(name) not in known]
        return classes.with_novel(novel)
    return classes


def _base_classes(known: TextEmbeddings | None) -> frozenset[str]:
    if known is None:
        return frozenset()
    classes = known.vocabulary
    pairs = zip(classes.names, classes.novel, strict=True)
    return frozenset(name for name, novel in pairs if not novel)


def _check(cfg: CfgNode) -> None:
    if not isinstance(cfg, CfgNode):
        raise ValueError(f"expected a configuration (CfgNode), got {type(cfg).__name__}")
    if "VILD" not in cfg.get("MODEL", {}):
        raise ValueError(
            "expected a configuration with MODEL.VILD, got one without: read it with "
            "vild.config.read_config"
        )
    variant = find_variant(cfg.MODEL.VILD.VARIANT)
    if variant.teacher_at_test or cfg.MODEL.LOAD_PROPOSALS:
        raise ValueError(
            "expected a detector that finds its regions itself, got the variant "
            f"{variant.name!r} with MODEL.LOAD_PROPOSALS: {cfg.MODEL.LOAD_PROPOSALS}: take a "
            "configuration of ViLD-text, ViLD or ViLD-ensemble"
        )
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("expected MODEL.WEIGHTS to name the checkpoint to detect with")


def _encoder(
    cfg: CfgNode, known: TextEmbeddings | None, cache: str | os.PathLike[str] | None
) -> CachedTextEncoder:
    """Make the text encoder of the configured teacher, with the prompts used in training."""
    # imported embeddings record neither the weights nor the prompts that made them
    is_ours = known is not None and bool(known.fingerprint)
    return CachedTextEncoder(
        cfg.MODEL.VILD.TEACHER.MODEL,
        cfg.MODEL.VILD.TEACHER.PRETRAINED,
        fingerprint=known.fingerprint if known is not None else "",
        temperature=known.temperature if known is not None else 0.0,
        templates=known.templates if known is not None and is_ours else "vild",
        folder=cache,
        device=cfg.MODEL.DEVICE,
    )


def _build(cfg: CfgNode, text: TextEmbeddings) -> torch.nn.Module:
    """Build the model with these classes."""
    with with_text_embeddings(text):
        model = build_model(cfg)
    if not isinstance(model.roi_heads, ViLDROIHeads):
        raise ValueError(
            f"expected a detector with ViLDROIHeads, got {type(model.roi_heads).__name__}: its "
            "classes are fixed"
        )
    return model
