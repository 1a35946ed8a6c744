"""A converted checkpoint in train_net.py, tools/demo.py and OpenVocabularyPredictor."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.transforms import ResizeTransform

from vild.data.shapes import generate_shapes
from vild.inference import OpenVocabularyPredictor
from vild.modeling.official import resize

from . import forked
from .making import text_embeddings
from .official import CONFIGS, config, converted

pytestmark = pytest.mark.slow
LOGGER = logging.getLogger(__name__)  # the figures: pytest --log-cli-level info
SETTINGS = {
    "MODEL.ROI_HEADS.NUM_CLASSES": "60",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "20",
    "TEST.DETECTIONS_PER_IMAGE": "5",
    "INPUT.MAX_SIZE_TEST": "256",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images, the converted checkpoint, and embeddings of the images' classes."""
    made = tmp_path_factory.mktemp("official")
    generate_shapes(made / "shapes", train_images=1, val_images=2, progress=False)
    torch.save({"model": converted("double_branch").state}, made / "model.pth")
    names = MetadataCatalog.get("shapes_val").thing_classes
    text_embeddings(names, 512, temperature=0.01).save(made / "text.safetensors")
    return made


def run(folder: Path, tool: str, *args: str) -> None:
    command = [tool, *args, *(word for pair in SETTINGS.items() for word in pair)]
    command += ["MODEL.WEIGHTS", str(folder / "model.pth")]
    command += ["MODEL.VILD.TEXT_EMBEDDINGS", str(folder / "text.safetensors")]
    code, output = forked.run(command, DETECTRON2_DATASETS=str(folder))
    assert code == 0, output[-3000:]


def test_evaluation(folder: Path) -> None:
    file = str(CONFIGS / "vild_ensemble_r50.yaml")
    args = ["--config-file", file, "--eval-only", "--out", str(folder / "found.json")]
    output = ["DATASETS.TEST", "('shapes_val',)", "OUTPUT_DIR", str(folder / "run")]
    run(folder, "projects/ViLD/train_net.py", *args, *output)
    found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    assert len(found) == 10
    for entry in found:
        x, y, width, height = entry["bbox"]
        assert min(x, y) >= 0
        assert max(x + width, y + height) <= 160.01


def test_demo(folder: Path) -> None:
    file, images = str(CONFIGS / "vild_ensemble_r50.yaml"), str(folder / "shapes" / "val")
    args = ["--config-file", file, "--input", images, "--results", str(folder / "demo.json")]
    run(folder, "tools/demo.py", *args, "--confidence-threshold", "0", "--opts")
    assert len(json.loads((folder / "demo.json").read_text(encoding="utf-8"))) == 10


def test_predictor(folder: Path, tmp_path: Path) -> None:
    cfg = config("double_branch", tmp_path, "MODEL.WEIGHTS", str(folder / "model.pth"))
    predictor = OpenVocabularyPredictor(cfg)
    image = cv2.imread(str(folder / "shapes" / "val" / "000001.png"))
    found = predictor(image[:120])["instances"]
    assert found.image_size == found.pred_masks.shape[1:] == (120, 160)
    as_tensor = torch.from_numpy(image[:120, :, ::-1].copy()).permute(2, 0, 1)
    with torch.no_grad():
        alone = predictor.model([{"image": as_tensor, "height": 120, "width": 160}])[0]["instances"]
    torch.testing.assert_close(found.pred_boxes.tensor, alone.pred_boxes.tensor)

    predictor.set_vocabulary(text_embeddings(["owl", "kite"], 512, temperature=0.01))
    assert predictor.vocabulary.names == ("owl", "kite")
    assert set(predictor(image)["instances"].pred_classes.tolist()) <= {0, 1}


def test_pillows_resizing_is_not_equal(folder: Path) -> None:
    """Detectron2's loader resizes by Pillow: half a pixel away, and rounded to whole levels."""
    image = cv2.imread(str(folder / "shapes" / "val" / "000001.png"))
    theirs = ResizeTransform(160, 160, 1024, 1024).apply_image(image).astype(np.float32)
    ours = resize(torch.from_numpy(image).float().permute(2, 0, 1), 1024, 1024)
    off = np.abs(ours.permute(1, 2, 0).numpy() - theirs)
    LOGGER.info("mean %.1f, largest %.0f of 255 grey levels", off.mean(), off.max())
    assert off.mean() > 1
