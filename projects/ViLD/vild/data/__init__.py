"""Datasets, splits, vocabularies and prompts. Importing it registers the built-in datasets."""

from vild.data.annotations import Category, read_annotations
from vild.data.command_line import register_from_arguments
from vild.data.custom_datasets import register_custom
from vild.data.images import UnreadableImageError, read_image
from vild.data.novel_classes import COCO_BASE, COCO_NOVEL, novel_flags
from vild.data.prompts import clean_name, fill, vild_templates
from vild.data.records import load_records
from vild.data.registry import (
    find_split,
    register_builtin,
    register_split,
    register_splits,
    require_split,
)
from vild.data.shapes import register_made_shapes, register_shapes
from vild.data.vocabulary import Vocabulary

__all__ = [
    "COCO_BASE",
    "COCO_NOVEL",
    "Category",
    "UnreadableImageError",
    "Vocabulary",
    "clean_name",
    "fill",
    "find_split",
    "load_records",
    "novel_flags",
    "read_annotations",
    "read_image",
    "register_builtin",
    "register_custom",
    "register_from_arguments",
    "register_made_shapes",
    "register_shapes",
    "register_split",
    "register_splits",
    "require_split",
    "vild_templates",
]

register_builtin()
register_made_shapes()
