"""The teacher and its embeddings. The only part that imports open_clip."""

from vild.embeddings.teacher import Teacher
from vild.embeddings.text import (
    TextEmbeddings,
    embed_vocabulary,
    import_embeddings,
    template_set,
)

__all__ = [
    "Teacher",
    "TextEmbeddings",
    "embed_vocabulary",
    "import_embeddings",
    "template_set",
]
