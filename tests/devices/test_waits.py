"""How often a GPU's host waits: each time the GPU runs dry. The numbers are those of today."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage

from vild.embeddings import CROP_MODES, crop_and_resize

from ..making import mapped_image, text_embeddings, tiny_model
from .simulated import SimulatedCuda, simulated_cuda


def most(device: SimulatedCuda, ours: int, detectron2: int) -> None:
    """Require at most so many waits of each package."""
    found = device.number_of_waits()
    assert found["ours"] <= ours, [wait for wait in device.waits if wait.package == "ours"]
    assert found["detectron2"] <= detectron2, found
    assert not found["other"], found


@pytest.mark.parametrize(("classes", "ours"), [(3, 12), (1203, 14)])
@pytest.mark.parametrize("variant", ["vild", "ensemble"])
def test_detection(variant: str, classes: int, ours: int, tmp_path: Path) -> None:
    """Detectron2's are those of version 0.6: levels of regions, the RPN, boxes without an area."""
    text = text_embeddings(classes, novel=["class 1"])
    with simulated_cuda() as device, torch.no_grad():
        model = tiny_model(tmp_path, variant, text, "MODEL.DEVICE", "cuda").eval()
        for images in (1, 2):
            device.waits.clear()
            found = model([mapped_image(seed=seed) for seed in range(images)])
            assert len(found[-1]["instances"]) == 20
            # the levels of all images are searched at once
            most(device, ours * images, 12 + 14 * images)


@pytest.mark.parametrize("variant", ["vild", "ensemble"])
def test_training(variant: str, tmp_path: Path) -> None:
    text = text_embeddings(3, novel=["class 1"])
    with simulated_cuda() as device:
        model = tiny_model(tmp_path, variant, text, "MODEL.DEVICE", "cuda").train()
        device.waits.clear()
        with EventStorage():
            model([mapped_image(3, 5), mapped_image(2, 3, seed=1)])
        most(device, ours=4, detectron2=72)


@pytest.mark.parametrize("mode", CROP_MODES)
def test_crops(mode: str) -> None:
    """Of all regions together, in one chunk."""
    boxes = torch.tensor([[3.0, 4, 50, 60], [5, 10, 80, 43], [30.2, 20.7, 41, 33]])
    statistics = torch.full((3,), 0.5), torch.full((3,), 0.25)
    with simulated_cuda() as device:
        image = mapped_image()["image"].permute(1, 2, 0).cuda()
        device.waits.clear()
        crop_and_resize(image, boxes, 32, mode, normalise=statistics)
        most(device, ours=8, detectron2=0)
