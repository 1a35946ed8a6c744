"""Drawing of detections and ground truth, with distinct styles for novel and base classes.

Novel classes: warm colours (red to yellow), thick boxes, filled labels that begin with a star.
Base classes: cool colours (green to blue), thin boxes, dark labels.

Images are (H, W, 3) uint8 RGB. The output keeps the aspect ratio, with a long side of 800 to 1600
pixels, so that names stay legible on small images.
"""

from __future__ import annotations

import colorsys
import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from detectron2.structures import BoxMode, Instances
from PIL import Image, ImageDraw, ImageFont

from vild.data import Vocabulary
from vild.data.masks import decode_segmentation
from vild.reporting.labels import LabelPlace, place_labels

if TYPE_CHECKING:  # imports matplotlib, which takes longer than detection
    from detectron2.utils.visualizer import Visualizer

logger = logging.getLogger(__name__)

NOVEL_MARK = "★"
NOVEL_HUES, BASE_HUES = (-0.05, 0.14), (0.40, 0.63)  # in [0, 1]; negative: purplish reds
LIMIT = 100  # maximum number of detections to draw
MIN_SIDE, MAX_SIDE = 800, 1600  # long side of the output, in pixels
_MIN_SHORT_SIDE = 96  # of the output, unless the long side would become too long
_LONGEST_NAME = 32  # in characters; longer names are truncated
_MASK_ALPHA = 0.22
Colour = tuple[float, float, float]  # red, green and blue from 0 to 1
_GOLDEN = 0.618034  # golden ratio steps spread any number of classes over the hues


@dataclass(frozen=True)
class _Item:
    """One object to draw; ``segmentation``: polygons, an RLE or a mask, or None."""

    box: np.ndarray
    row: int
    label: str
    segmentation: Any


def class_colour(row: int, novel: bool) -> Colour:
    """Return the colour of a class, the same in every image.

    Args:
        row: index of the class.
        novel: selects the range of hues.

    Returns:
        Red, green and blue from 0 to 1.
    """
    low, high = NOVEL_HUES if novel else BASE_HUES
    hue = (low + (high - low) * (row * _GOLDEN % 1)) % 1
    return colorsys.hls_to_rgb(hue, 0.56, 1.0 if novel else 0.85)


def draw_detections(
    image: np.ndarray,
    instances: Instances,
    vocabulary: Vocabulary,
    *,
    threshold: float = 0.3,
    limit: int = LIMIT,
) -> np.ndarray:
    """Draw boxes, names with scores, and masks if present.

    A name is omitted if there is no room near its box; higher scores are placed first.

    Args:
        image: (H, W, 3) uint8 RGB; (H, W) and (H, W, 1) count as grey.
        instances: N detections on the CPU, of the image's size: ``pred_boxes``, ``scores``,
            ``pred_classes`` and optionally ``pred_masks`` (N, H, W) bool.
        vocabulary: names and novel flags of the classes.
        threshold: minimum score.
        limit: maximum number of detections; the best are drawn.

    Returns:
        RGB uint8 with the aspect ratio of the image; see the module docstring.

    Raises:
        ValueError: the detections have another image size, lack a field or contain a class outside
            the vocabulary; or the image has another shape or dtype.
    """
    image = _as_rgb(image)
    if tuple(instances.image_size) != image.shape[:2]:
        raise ValueError(
            f"expected detections in an image of height and width {image.shape[:2]}, got them "
            f"for {tuple(instances.image_size)}: rescale them, or pass the image they belong to"
        )
    missing = [n for n in ("pred_boxes", "scores", "pred_classes") if not instances.has(n)]
    if missing:
        raise ValueError(
            f"expected detections with the field {missing[0]}, got the fields "
            f"{sorted(instances.get_fields())}"
        )
    scores = instances.scores.detach().float().numpy()
    # stable: ties keep the order of the detections
    order = [int(i) for i in np.argsort(-scores, kind="stable") if scores[i] >= threshold][:limit]
    boxes = instances.pred_boxes.tensor.detach().float().numpy()
    rows = instances.pred_classes.tolist()
    masks = instances.pred_masks.bool().numpy() if instances.has("pred_masks") else None
    items = [
        _Item(
            boxes[i],
            rows[i],
            f"{_display_name(rows[i], vocabulary)} {scores[i]:.2f}",
            None if masks is None else masks[i],
        )
        for i in order
    ]
    return _draw(image, items, vocabulary)


def draw_ground_truth(
    image: np.ndarray, record: Mapping[str, Any], vocabulary: Vocabulary
) -> np.ndarray:
    """Draw the annotations of a record in Detectron2's format.

    Args:
        image: (H, W, 3) uint8 RGB; (H, W) and (H, W, 1) count as grey.
        record: ``annotations`` with ``bbox``, ``bbox_mode``, ``category_id`` (row of the
            vocabulary) and optionally ``segmentation`` (polygons or an RLE) and ``iscrowd``.
        vocabulary: names and novel flags of the classes.

    Returns:
        As for :func:`draw_detections`.

    Raises:
        ValueError: the record has another image size, or contains a class outside the vocabulary;
            or the image has another shape or dtype.
    """
    image = _as_rgb(image)
    height, width = image.shape[:2]
    size = (record.get("height", height), record.get("width", width))
    if size != (height, width):
        raise ValueError(
            f"expected an image of height and width {size} as the record says, got "
            f"{(height, width)}: the annotations belong to another version of the image"
        )
    items = []
    for annotation in record.get("annotations", ()):
        row = annotation["category_id"]
        box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
        label = _display_name(row, vocabulary) + (" (crowd)" if annotation.get("iscrowd") else "")
        items.append(_Item(np.array(box, float), row, label, annotation.get("segmentation")))
    return _draw(image, items, vocabulary)


def side_by_side(left: np.ndarray, right: np.ndarray, titles: Sequence[str]) -> np.ndarray:
    """Combine two images side by side, with a caption above each.

    Args:
        left: RGB uint8, (H, W, 3).
        right: RGB uint8; aligned at the top if its height differs.
        titles: the two captions, truncated to the width of their images.

    Returns:
        RGB uint8.

    Raises:
        ValueError: the number of captions is not two.
    """
    if len(titles) != 2:
        raise ValueError(f"expected two captions, got {len(titles)}: {list(titles)}")
    images = (_as_rgb(left), _as_rgb(right))
    size = min(28, max(13, max(p.shape[1] for p in images) // 42))
    font, bar, gap = _font(size), size * 2, max(4, size // 2)
    width = sum(p.shape[1] for p in images) + gap
    sheet = Image.new("RGB", (width, bar + max(p.shape[0] for p in images)), "white")
    draw = ImageDraw.Draw(sheet)
    x = 0
    for image, title in zip(images, titles, strict=True):
        fitting = title
        while fitting and draw.textlength(fitting, font=font) > image.shape[1] - 2 * gap:
            fitting = fitting[:-2].rstrip() + "…" if len(fitting) > 2 else ""
        draw.text((x + gap, bar / 2), fitting, fill=(25, 25, 25), font=font, anchor="lm")
        sheet.paste(Image.fromarray(image), (x, bar))
        x += image.shape[1] + gap
    return np.array(sheet)


@functools.lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    from matplotlib import font_manager

    # shipped with matplotlib, so it is always available, and it has the star
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)


def _as_rgb(image: np.ndarray) -> np.ndarray:
    if image.dtype == np.uint8 and image.size:
        if image.ndim == 2:
            image = image[..., None]
        if image.ndim == 3 and image.shape[2] in (1, 3):
            return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))
    raise ValueError(f"expected an image as (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")


def _display_name(row: int, vocabulary: Vocabulary) -> str:
    if not 0 <= row < len(vocabulary):
        raise ValueError(
            f"expected a class below {len(vocabulary)}, got {row}: the vocabulary is not that "
            "of these objects"
        )
    name = vocabulary.names[row]
    if len(name) > _LONGEST_NAME:
        name = name[: _LONGEST_NAME - 1].rstrip() + "…"
    return f"{NOVEL_MARK} {name}" if vocabulary.novel[row] else name


def _scale_of(height: int, width: int) -> float:
    """Return the scale factor from image to output."""
    long, short = max(height, width), min(height, width)
    scale = min(max(1.0, MIN_SIDE / long, _MIN_SHORT_SIDE / short), MAX_SIDE / long)
    return max(scale, 1 / short)  # an extremely narrow image keeps at least one pixel


def _draw(pixels: np.ndarray, items: Sequence[_Item], vocabulary: Vocabulary) -> np.ndarray:
    """Draw objects; the first ones are on top, and their names are placed first."""
    from detectron2.utils.visualizer import Visualizer

    height, width = pixels.shape[:2]
    scale = _scale_of(height, width)
    canvas = Visualizer(pixels, scale=scale)
    image = canvas.output.ax.images[0]
    image.set_interpolation("bicubic" if scale > 1 else "antialiased")
    # large objects first, so that they do not cover small ones
    areas = [np.prod(np.maximum(item.box[2:] - item.box[:2], 0)) for item in items]
    for index in sorted(range(len(items)), key=lambda i: (-areas[i], -i)):
        item = items[index]
        colour = class_colour(item.row, vocabulary.novel[item.row])
        _draw_mask(canvas, item.segmentation, colour)
        _draw_box(canvas, item.box, colour, vocabulary.novel[item.row])
    _draw_labels(canvas, items, vocabulary)
    # Detectron2 returns a view of matplotlib's buffer
    return np.ascontiguousarray(canvas.output.get_image())


def _draw_mask(canvas: Visualizer, segmentation: Any, colour: Colour) -> None:
    if segmentation is None:
        return
    if isinstance(segmentation, list):
        for polygon in segmentation:
            points = np.asarray(polygon, float).reshape(-1, 2)
            canvas.draw_polygon(points, color=colour, alpha=_MASK_ALPHA)
        return
    if isinstance(segmentation, Mapping):
        segmentation = decode_segmentation(segmentation, canvas.output.height, canvas.output.width)
    # newer Detectron2 versions omit the smallest parts by default
    canvas.draw_binary_mask(segmentation, color=colour, alpha=_MASK_ALPHA, area_threshold=0)


def _points(pixels: float, canvas: Visualizer) -> float:
    """Convert output pixels to points, matplotlib's unit."""
    return pixels * 72 / float(canvas.output.dpi)


def _font_pixels(canvas: Visualizer) -> float:
    output = canvas.output
    side = float(np.sqrt(output.width * output.height)) * output.scale
    return min(22.0, max(12.0, side / 50))


def _draw_box(canvas: Visualizer, box: np.ndarray, colour: Colour, novel: bool) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    pixels = _font_pixels(canvas) / (4 if novel else 7)
    # visible even on a background of the same colour
    rim = withStroke(linewidth=_points(pixels + 2, canvas), foreground=(0, 0, 0, 0.35))
    canvas.output.ax.add_patch(
        Rectangle(
            (box[0], box[1]),
            box[2] - box[0],
            box[3] - box[1],
            fill=False,
            edgecolor=colour,
            linewidth=_points(pixels, canvas),
            path_effects=[rim],
        )
    )


def _draw_labels(canvas: Visualizer, items: Sequence[_Item], vocabulary: Vocabulary) -> None:
    output, size = canvas.output, _font_pixels(canvas)
    renderer, pad = output.canvas.get_renderer(), size * 0.18
    texts = []
    for item in items:
        novel = vocabulary.novel[item.row]
        colour = class_colour(item.row, novel)
        texts.append(
            output.ax.text(
                0,
                0,
                item.label,
                size=_points(size, canvas),
                family="DejaVu Sans",
                weight="bold" if novel else "normal",
                color="black" if novel else tuple(0.55 + 0.45 * c for c in colour),
                va="top",
                ha="left",
                zorder=10,
                parse_math=False,  # $ is a plain character in names
                bbox={
                    "boxstyle": f"square,pad={pad / size}",
                    "facecolor": (*colour, 0.92) if novel else (0.05, 0.08, 0.12, 0.82),
                    "edgecolor": "none",
                },
            )
        )
    extents = [text.get_window_extent(renderer) for text in texts]
    sizes = np.array([[e.width + 2 * pad, e.height + 2 * pad] for e in extents])
    boxes = np.array([item.box for item in items]) * output.scale
    canvas_wh = (int(output.width * output.scale), int(output.height * output.scale))
    places = place_labels(boxes, sizes, canvas_wh)
    for text, item, place in zip(texts, items, places, strict=True):
        if place is None:
            text.remove()
            continue
        text.set_position(((place.x + pad) / output.scale, (place.y + pad) / output.scale))
        _draw_leader(canvas, place, class_colour(item.row, vocabulary.novel[item.row]))
    if None in places:
        logger.debug("%d of %d names did not fit", places.count(None), len(places))


def _draw_leader(canvas: Visualizer, place: LabelPlace, colour: Colour) -> None:
    from matplotlib.lines import Line2D

    if place.leader is None:
        return
    xs, ys = (np.array(ends) / canvas.output.scale for ends in zip(*place.leader, strict=True))
    line = Line2D(xs, ys, color=colour, linewidth=_points(1.5, canvas), zorder=9)
    canvas.output.ax.add_line(line)
