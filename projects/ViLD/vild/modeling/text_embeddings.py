"""The text embeddings with which a model is built: those of the configuration, or given ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from detectron2.config import CfgNode

from vild.embeddings import TextEmbeddings

# set by with_text_embeddings only
_text_embeddings_override: ContextVar[TextEmbeddings | None] = ContextVar(
    "text embeddings in place of the configuration's", default=None
)


@contextmanager
def with_text_embeddings(text_embeddings: TextEmbeddings) -> Iterator[None]:
    """Build models in this context with these text embeddings instead of the configuration's.

    Detectron2's ``build_model`` passes only the configuration to the RoI heads. The embeddings are
    therefore kept in a context variable, which :func:`load_text_embeddings` reads; other threads
    and code after the ``with`` block do not see them.
    """
    token = _text_embeddings_override.set(text_embeddings)
    try:
        yield
    finally:
        _text_embeddings_override.reset(token)


def load_text_embeddings(cfg: CfgNode) -> TextEmbeddings:
    """Load the text embeddings named by ``MODEL.VILD.TEXT_EMBEDDINGS``.

    Within :func:`with_text_embeddings`, return the embeddings given there, whatever their number.

    Raises:
        ValueError: the option is empty; the file is missing, damaged or of another type; or its
            number of classes differs from ``MODEL.ROI_HEADS.NUM_CLASSES``.
    """
    override = _text_embeddings_override.get()
    if override is not None:
        return override
    file = cfg.MODEL.VILD.TEXT_EMBEDDINGS
    if not file:
        raise ValueError(
            "expected the path of a text embeddings file in MODEL.VILD.TEXT_EMBEDDINGS, got an "
            "empty string. Create it with tools/extract_text_embeddings.py --vocabulary DATASET "
            "--out FILE"
        )
    text_embeddings = TextEmbeddings.load(file)
    expected = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    found = len(text_embeddings.vocabulary)
    if found != expected:
        raise ValueError(
            f"expected text embeddings of MODEL.ROI_HEADS.NUM_CLASSES: {expected} classes, got "
            f"{found} in {file}: change that number or MODEL.VILD.TEXT_EMBEDDINGS"
        )
    return text_embeddings
