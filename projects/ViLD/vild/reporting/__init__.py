"""What people look at: drawn detections, tables and curves of runs, HTML pages."""

from vild.reporting.drawing import draw_detections, draw_ground_truth, side_by_side
from vild.reporting.image_writer import ImageWriter
from vild.reporting.results import instances_from_results, read_results_by_image

__all__ = [
    "ImageWriter",
    "draw_detections",
    "draw_ground_truth",
    "instances_from_results",
    "read_results_by_image",
    "side_by_side",
]
