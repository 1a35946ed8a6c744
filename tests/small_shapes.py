"""A few images of `shapes` with text embeddings and a store of the real teacher's regions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from vild import engine
from vild.config import read_config
from vild.data import Vocabulary, read_annotations, read_image, register_split
from vild.data.shapes import generate_shapes, shapes_vocabulary
from vild.embeddings import CropRule, OnlineEmbedder, build_teacher, embed_vocabulary
from vild.embeddings.store import KIND, embedding_source, fields, pack
from vild.proposals.store import FIELDS as PROPOSAL_FIELDS
from vild.storage import Field, SplitImages, StoreWriter, store_spec
from vild.storage.layout import write_json

CONFIGS = Path(__file__).parents[1] / "configs"
BASE = "small_shapes_base"  # training on base classes
SEEN = "small_shapes_seen"  # the same images, for evaluation on what training has seen
NOVEL = list(shapes_vocabulary(0).novel)
PER_OBJECT = 6  # regions of the store around each object


def make(folder: Path, count: int) -> None:
    """Write the images, text embeddings and the store, and register ``BASE`` and ``SEEN``."""
    generate_shapes(folder / "shapes", train_images=count, val_images=1, progress=False)
    register(folder)
    teacher = build_teacher("vild-shapes", device="cpu")
    text = embed_vocabulary(teacher, Vocabulary.from_dataset(BASE), templates="single")
    text.save(folder / "text.safetensors")
    embedder, rng = OnlineEmbedder(teacher, CropRule()), np.random.RandomState(0)
    records = {record["image_id"]: record for record in DatasetCatalog.get(BASE)}
    images = list(records)
    source = embedding_source(teacher.describe(), CropRule(), {"digest": ""}, 300, 256)
    boxes = {image: jittered(records[image]["annotations"], rng) for image in images}

    def proposals(image: int) -> dict[str, torch.Tensor]:
        return {"boxes": boxes[image], "objectness": torch.zeros(len(boxes[image]))}

    def regions(image: int) -> dict[str, torch.Tensor]:
        pixels = torch.from_numpy(read_image(records[image]["file_name"]).copy())
        return {**proposals(image), **pack(embedder.embed(pixels, boxes[image]), "float16")}

    write_store(folder / "proposals", "proposals", PROPOSAL_FIELDS, {}, images, proposals)
    own = fields(teacher.dimension, "float16")
    write_store(folder / "store", KIND, own, source, images, regions)


def write_store(
    folder: Path,
    kind: str,
    own_fields: dict[str, Field],
    source: dict[str, Any],
    images: list[int],
    arrays: Callable[[int], dict[str, torch.Tensor]],
) -> None:
    split = SplitImages.from_records(BASE, DatasetCatalog.get(BASE))
    writer = StoreWriter(folder, store_spec(kind, split, own_fields, source, 4), images)
    for number in writer.pending():
        with writer.shard(number) as builder:
            for image in builder.images:
                builder.add(image, 160, 160, arrays(image))
    writer.finish({})


def jittered(annotations: Sequence[dict[str, Any]], rng: np.random.RandomState) -> torch.Tensor:
    """Boxes (R, 4) near the objects; one where there is none."""
    found = [a["bbox"] for a in annotations] or [[40.0, 40.0, 40.0, 40.0]]
    x, y, w, h = np.repeat(np.array(found, float), PER_OBJECT, axis=0).T
    boxes = np.stack([x, y, x + w, y + h], axis=1)
    boxes += rng.uniform(-0.2, 0.2, boxes.shape) * np.stack([w, h, w, h], axis=1)
    return torch.from_numpy(boxes.clip(0, 160)).float()


def register(folder: Path, change: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Register the datasets, after a change of the annotations if one is given."""
    contents = json.loads((folder / "shapes/annotations/train.json").read_text(encoding="utf-8"))
    if change is not None:
        change(contents)
    write_json(folder / "all.json", contents)  # several processes may do so at once
    categories = read_annotations(folder / "all.json").categories
    rows = {category.id: row for row, category in enumerate(categories)}
    contents["annotations"] = [
        a for a in contents["annotations"] if not NOVEL[rows[a["category_id"]]]
    ]
    write_json(folder / "seen.json", contents)
    for name, file in ((BASE, "all.json"), (SEEN, "seen.json")):
        register_split(
            name,
            folder / file,
            folder / "shapes" / "train",
            categories,
            NOVEL,
            base_only=True,
            evaluator_type="lvis",
        )


def config(folder: Path, variant: str, **changes: Any) -> CfgNode:
    """The benchmark's own configuration of a variant, on these images."""
    cfg = read_config(CONFIGS / "shapes" / f"vild_{variant}.yaml")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.VILD.TEXT_EMBEDDINGS = str(folder / "text.safetensors")
    cfg.MODEL.VILD.DISTILL.STORE = str(folder / "store")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (BASE,), (SEEN,)
    cfg.OUTPUT_DIR = str(folder / "run")
    for key, value in changes.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


class Trainer(engine.Trainer):
    """The project's trainer, without evaluation on the way."""

    def build_hooks(self) -> list[Any]:
        return [h for h in super().build_hooks() if type(h).__name__ != "EvalHook"]
