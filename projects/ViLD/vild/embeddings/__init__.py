"""The teacher and its embeddings. No other part of the package imports open_clip."""

from vild.embeddings.build import build_teacher
from vild.embeddings.crops import CROP_MODES, CropRule, crop_and_resize, enlarge_boxes, valid_boxes
from vild.embeddings.extraction import RegionCropper, extract_embeddings
from vild.embeddings.online import OnlineEmbedder
from vild.embeddings.open_clip_teacher import OpenClipTeacher
from vild.embeddings.store import EmbeddingStore, Regions
from vild.embeddings.teacher import Teacher
from vild.embeddings.text import (
    TextEmbeddings,
    embed_vocabulary,
    import_embeddings,
    template_set,
)

__all__ = [
    "CROP_MODES",
    "CropRule",
    "EmbeddingStore",
    "OnlineEmbedder",
    "OpenClipTeacher",
    "RegionCropper",
    "Regions",
    "Teacher",
    "TextEmbeddings",
    "build_teacher",
    "crop_and_resize",
    "embed_vocabulary",
    "enlarge_boxes",
    "extract_embeddings",
    "import_embeddings",
    "template_set",
    "valid_boxes",
]
