"""A small custom dataset and a small detector, as files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from vild.config import read_config

from .. import small_shapes
from .pages import ServedPage, served_page

SIZES = [(60, 80), (90, 50), (70, 70), (48, 96), (64, 64), (80, 60), (50, 50)]


@dataclass
class SmallData:
    folder: Path
    split: str

    @property
    def arguments(self) -> list[str]:
        return ["--split", self.split, "--dataset-yaml", str(self.folder / "small.yaml")]

    def image(self, image: int) -> Path:
        return self.folder / "images" / f"{image}.png"

    def make_image(self, image: int) -> None:
        height, width = SIZES[image - 1]
        draw = np.random.default_rng(image)
        small = Image.fromarray(draw.integers(0, 255, (height // 8, width // 8, 3), np.uint8))
        small.resize((width, height)).save(self.image(image))


@pytest.fixture
def small(tmp_path: Path):  # type: ignore[no-untyped-def]
    data = SmallData(tmp_path, "small_val")
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for image, (height, width) in enumerate(SIZES, start=1):
        data.make_image(image)
        images.append({"id": image, "file_name": f"{image}.png", "height": height, "width": width})
        annotations.append(
            {
                "id": image,
                "image_id": image,
                "category_id": 1 + image % 2,
                "bbox": [5, 5, 30, 30],
                "area": 900,
                "iscrowd": 0,
            }
        )
    categories = [{"id": 1, "name": "crow"}, {"id": 2, "name": "owl"}]
    contents = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "small.json").write_text(json.dumps(contents), encoding="utf-8")
    (tmp_path / "small.yaml").write_text(
        "name: small\nval: {json: small.json, images: images}\nnovel: [owl]\n", encoding="utf-8"
    )
    yield data
    if data.split in DatasetCatalog.list():
        DatasetCatalog.remove(data.split)
        MetadataCatalog.remove(data.split)


@pytest.fixture(scope="session")
def page(opts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPage]:
    """Serve a page that limits uploads to 1 MB."""
    with served_page(tmp_path_factory.mktemp("page"), opts, "--max-upload-mb", "1") as page:
        yield page


@pytest.fixture
def detector(tmp_path: Path, repository: Path) -> Path:
    """Write the yaml and a random checkpoint of a detector small enough for tests."""
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"_BASE_: {repository / 'configs/Base-ViLD-R50-FPN.yaml'}\n"
        """
MODEL:
  WEIGHTS: WEIGHTS_FILE
  DEVICE: cpu
  BACKBONE: {FREEZE_AT: 0}
  RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64, NORM: GN}
  FPN: {OUT_CHANNELS: 32}
  ROI_HEADS: {NUM_CLASSES: 1}
  ROI_BOX_HEAD: {NUM_CONV: 0, NUM_FC: 1, FC_DIM: 32}
  MASK_ON: false
INPUT: {MIN_SIZE_TEST: 96}
SEED: 3
""".replace("WEIGHTS_FILE", str(tmp_path / "tiny.pth")),
        encoding="utf-8",
    )
    torch.manual_seed(3)
    cfg = read_config(path)
    cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    DetectionCheckpointer(build_model(cfg), str(tmp_path)).save("tiny")
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return a function that runs a tool's main() with arguments and returns its exit code."""

    def call(tool: ModuleType, *arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", [tool.__name__, *map(str, arguments)])
        try:
            return tool.main()
        except SystemExit as stop:
            return int(stop.code or 0)

    return call


@pytest.fixture(scope="session")
def opts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return options for text embeddings and a checkpoint of random weights."""
    folder = tmp_path_factory.mktemp("demo")
    small_shapes.make(folder, 3)
    torch.manual_seed(0)
    cfg = small_shapes.config(folder, "ensemble")
    DetectionCheckpointer(build_model(cfg), str(folder)).save("model")
    text = str(folder / "text.safetensors")
    return [
        *("--opts", "MODEL.WEIGHTS", str(folder / "model.pth")),
        *("MODEL.VILD.TEXT_EMBEDDINGS", text, "MODEL.RPN.POST_NMS_TOPK_TEST", "10"),
    ]
