"""The whole official model's recorded outputs, and its variables (tests/official_golden)."""

from __future__ import annotations

import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from vild.config import read_config
from vild.data import Vocabulary
from vild.embeddings import TextEmbeddings
from vild.modeling.official import OfficialModel, convert_variables, official_text

FOLDER = Path(__file__).parent / "official_golden"
CONFIGS = Path(__file__).parents[1] / "configs" / "LVIS" / "official"
MODELS = {"vanilla": "vild_r50", "double_branch": "vild_ensemble_r50"}
SIDE = 256


@cache
def recorded(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"model_{name}.npz") as file:
        return dict(file)


@cache
def variables(name: str) -> dict[str, np.ndarray]:
    """Every variable by its name; its values follow from the name (official_golden/README.md)."""
    arrays = recorded(name)
    found = {}
    for line in arrays["variables"].tolist():
        variable, sizes = line.split(" ", 1)
        shape = tuple(int(size) for size in sizes.strip("[]").split(","))
        text = arrays["text_embeddings_DxK"]
        found[variable] = value(variable, shape, text).astype(np.float32)
    return found


def value(name: str, shape: tuple[int, ...], text: np.ndarray) -> np.ndarray:
    seed = zlib.crc32(f"{name}:100".encode()) & 0x7FFFFFFF
    rng = np.random.RandomState(seed)
    if "class-predict/kernel" in name and "background" not in name:
        return text
    if "moving_mean" in name:
        return rng.randn(*shape) * 0.05
    if "moving_variance" in name:
        return rng.rand(*shape) * 0.5 + 0.75
    if "gamma" in name:
        return rng.rand(*shape) * 0.5 + 0.5
    if "beta" in name or "bias" in name:
        return rng.randn(*shape) * 0.05
    for layer, scale in (("rpn-class", 0.05), ("rpn-box", 0.01), ("box-predict", 0.02)):
        if layer in name:
            return rng.randn(*shape) * scale
    return rng.randn(*shape) * np.sqrt(2 / np.prod(shape[:-1]))


@cache
def converted(name: str) -> OfficialModel:
    return convert_variables(variables(name))


def text_of(name: str) -> TextEmbeddings:
    arrays = recorded(name)
    matrix = arrays["text_embeddings_DxK"]
    names = Vocabulary.from_names(f"class {n}" for n in range(matrix.shape[1]))
    return official_text(matrix, arrays["rare_mask"], names, 512)


def config(name: str, folder: Path, *changes: Any) -> CfgNode:
    """The shipped configuration with the sizes of the recorded run."""
    text = text_of(name)
    text.save(folder / "text.safetensors")
    cfg = read_config(CONFIGS / f"{MODELS[name]}.yaml")
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", "cpu", "INPUT.MAX_SIZE_TEST", SIDE),
            *("MODEL.VILD.TEXT_EMBEDDINGS", str(folder / "text.safetensors")),
            *("MODEL.ROI_HEADS.NUM_CLASSES", len(text.vocabulary)),
            *("MODEL.RPN.PRE_NMS_TOPK_TEST", 300, "MODEL.RPN.POST_NMS_TOPK_TEST", 100),
            *("TEST.DETECTIONS_PER_IMAGE", 50),
            *changes,
        ]
    )
    return cfg


def load(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Every parameter and buffer of ``model``, and none but those."""
    own = {name for name in model.state_dict() if not name.endswith("num_batches_tracked")}
    assert own == set(state)
    model.load_state_dict(state, strict=False)


def official_model(name: str, folder: Path, *changes: Any) -> nn.Module:
    model = build_model(config(name, folder, *changes)).eval()
    load(model, converted(name).state)
    return model


def image(name: str) -> Tensor:
    """(1, 3, 256, 256), normalised."""
    return torch.from_numpy(recorded(name)["image_nhwc"]).permute(0, 3, 1, 2).contiguous()
