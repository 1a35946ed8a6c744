"""ViLD: open-vocabulary object detection via vision and language knowledge distillation.

Importing the package registers its datasets and model parts with Detectron2. Data flows one way:
data → proposals → embeddings → modeling → evaluation → inference.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

try:
    import detectron2  # noqa: F401
except ImportError as error:
    raise ImportError(
        "expected Detectron2, which vild needs and which is not on the package index: run `make "
        "setup` in a checkout of this project, run `python tools/install_detectron2.py` in an "
        "environment of your own, or install an official build of Detectron2"
    ) from error

import vild.data  # registers the datasets
import vild.modeling  # noqa: F401  (registers the model parts)

__all__ = [
    "EmbeddingStore",
    "OpenVocabularyPredictor",
    "TextEmbeddings",
    "Vocabulary",
    "add_vild_config",
]

if TYPE_CHECKING:
    from vild.config import add_vild_config
    from vild.data import Vocabulary
    from vild.embeddings import EmbeddingStore, TextEmbeddings
    from vild.inference import OpenVocabularyPredictor
else:
    from importlib import import_module

    _MODULES = {
        "EmbeddingStore": "vild.embeddings",
        "OpenVocabularyPredictor": "vild.inference",
        "TextEmbeddings": "vild.embeddings",
        "Vocabulary": "vild.data",
        "add_vild_config": "vild.config",
    }

    def __getattr__(name: str) -> object:
        """Import a public name at its first use, because the predictor's module is large."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
