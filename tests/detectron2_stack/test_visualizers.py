"""Images are drawn on today's numpy and matplotlib."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from detectron2.utils.video_visualizer import VideoVisualizer
from detectron2.utils.visualizer import ColorMode, Visualizer

IMAGE = np.full((60, 80, 3), 128, np.uint8)


def instances_with(**fields: object) -> Instances:
    instances = Instances((60, 80))
    for key, value in fields.items():
        instances.set(key, value)
    instances.scores = torch.tensor([0.9])
    instances.pred_classes = torch.tensor([0])
    return instances


@pytest.mark.parametrize("mode", [ColorMode.IMAGE, ColorMode.IMAGE_BW])
def test_panoptic_prediction_is_drawn(mode: ColorMode) -> None:
    metadata = MetadataCatalog.get("stack_panoptic").set(
        thing_classes=["cat"], stuff_classes=["sky"], stuff_colors=[(200, 0, 0)]
    )
    segmentation = torch.zeros(60, 80, dtype=torch.int32)  # id 0: no prediction
    segmentation[:20] = 1
    segmentation[30:50, 10:40] = 2
    segments = [
        {"id": 1, "isthing": False, "category_id": 0, "area": 1600},
        {"id": 2, "isthing": True, "category_id": 0, "score": 0.9},
    ]
    visualizer = Visualizer(IMAGE, metadata, instance_mode=mode)
    image = visualizer.draw_panoptic_seg_predictions(segmentation, segments)
    drawn = np.abs(image.get_image().astype(int) - IMAGE).sum(axis=2)
    assert drawn[:20].mean() > 10  # stuff
    assert drawn[30:50, 10:40].mean() > 10  # thing


def test_video_frames_keep_an_instance_s_colour() -> None:
    metadata = MetadataCatalog.get("stack_video").set(thing_classes=["cat"])
    visualizer = VideoVisualizer(metadata)
    colours = []
    for shift in (0, 1):
        box = torch.tensor([[10.0 + shift, 10, 40 + shift, 40]])
        visualizer.draw_instance_predictions(IMAGE, instances_with(pred_boxes=Boxes(box)))
        colours.append(visualizer._old_instances[0].color)
    assert colours[0] is not None
    assert np.array_equal(colours[0], colours[1])
