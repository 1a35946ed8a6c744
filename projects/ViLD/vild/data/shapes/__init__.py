"""``shapes``: a synthetic benchmark in LVIS format, generated in seconds from a seed."""

from vild.data.shapes.categories import ALL_COMPOSITIONS, shapes_vocabulary
from vild.data.shapes.dataset import (
    generate_shapes,
    pixel_digest,
    register_made_shapes,
    register_shapes,
)
from vild.data.shapes.scenes import draw_scene

__all__ = [
    "ALL_COMPOSITIONS",
    "draw_scene",
    "generate_shapes",
    "pixel_digest",
    "register_made_shapes",
    "register_shapes",
    "shapes_vocabulary",
]
