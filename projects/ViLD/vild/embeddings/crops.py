"""Crop regions of an image to square inputs of the teacher (ViLD, sec. 3.2).

Shapes: R boxes, S side of a crop in pixels, H and W size of the image, B boxes of one chunk.
Boxes are (R, 4) xyxy, absolute, in pixels of the original image. Images are (H, W, 3) uint8, RGB.

A crop equals open_clip's preprocessing of PIL's crop of the same box, before normalisation, to
within 2/255. Implementations of ViLD differ in how a crop becomes a square. The modes are, with
open_clip's names for them:

- ``stretch`` (squash): resized to S × S, ignoring the aspect ratio;
- ``pad`` (longest): the long side resized to S, centred on black;
- ``clip`` (shortest): the short side resized to S, the long one centre-cropped. CLIP's default.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

CROP_MODES = ("stretch", "pad", "clip")
INTERPOLATIONS = {"bicubic": 2, "bilinear": 1}  # radius of each kernel in pixels

# Memory of one chunk of `_resize_batched` in bytes. A box that needs more is processed alone.
_CHUNK_BYTES = 256 * 2**20
# "clip" on a CPU: from this ratio of long to short side on, only the kept part of the crop is
# resized. At 16 and S = 224 the whole takes 2.4 MB and 4 ms; 600 × 2 pixels would become
# 67200 × 224.
_ELONGATED = 16


@dataclass(frozen=True)
class CropRule:
    """How a region becomes the teacher's input; recorded in every store.

    Attributes:
        mode: ``stretch``, ``pad`` or ``clip``; see :func:`crop_and_resize`.
        scales: sizes of the crops relative to the box. The unit-norm embeddings of a region's
            crops are added, and the sum is normalised (ViLD, sec. 3.2: 1 and 1.5).

    Raises:
        ValueError: unknown mode, no scale, or one that is not a positive number.
    """

    mode: str = "stretch"
    scales: tuple[float, ...] = (1.0, 1.5)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(float(scale) for scale in self.scales))
        if self.mode not in CROP_MODES:
            raise ValueError(f"expected a crop mode of {CROP_MODES}, got {self.mode!r}")
        if not self.scales or not all(0 < scale < float("inf") for scale in self.scales):
            raise ValueError(f"expected positive crop scales, got {self.scales}")

    def to_json(self) -> dict[str, Any]:
        """Return the rule as plain json."""
        return {"mode": self.mode, "scales": list(self.scales)}


class _Layout(NamedTuple):
    """How R crops become squares: int64 (R, 2) each, column 0 vertical and column 1 horizontal."""

    start: Tensor  # first pixel of the crop in the image
    extent: Tensor  # size of the crop in pixels, > 0
    length: Tensor  # size in pixels that the extent is resized to, > 0
    offset: Tensor  # position in `length` where the square begins; negative: padding before it

    @property
    def vertical_first(self) -> Tensor:
        """(R,) bool, Pillow 13's order of the two passes; it matters, as each result is rounded."""
        shrinkage = self.extent - self.length
        return (shrinkage[:, 0] > 0) & (shrinkage[:, 0] > 2 * shrinkage[:, 1])


def enlarge_boxes(boxes: Tensor, scale: float, image_size: tuple[int, int]) -> Tensor:
    """Enlarge boxes around their centres and clip them to the image.

    ViLD adds the embeddings at 1× and at 1.5×, which adds 0.25 of width and height on each side.

    Args:
        boxes: (R, 4) xyxy; not modified.
        scale: factor for width and height, > 0.
        image_size: (height, width) of the image in pixels.

    Returns:
        (R, 4) float32, always a new tensor, on the boxes' device.

    Raises:
        ValueError: boxes of another shape, or a scale that is not a positive number.
    """
    boxes = _as_boxes(boxes).to(torch.float32)
    if not 0 < scale < float("inf"):
        raise ValueError(f"expected a scale > 0, such as 1.5, got {scale}")
    growth = (boxes[:, 2:] - boxes[:, :2]) * ((scale - 1) / 2)
    return _clip(torch.cat([boxes[:, :2] - growth, boxes[:, 2:] + growth], dim=1), image_size)


def valid_boxes(boxes: Tensor | npt.NDArray[Any], image_size: tuple[int, int]) -> Tensor:
    """Return which boxes :func:`crop_and_resize` accepts.

    Args:
        boxes: (R, 4) xyxy.
        image_size: (height, width) of the image in pixels.

    Returns:
        (R,) bool on the boxes' device: finite, x1 < x2, y1 < y2 and partly inside the image.

    Raises:
        ValueError: boxes of another shape.
    """
    boxes = _as_boxes(boxes)
    height, width = image_size
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    inside = (x1 < width) & (y1 < height) & (x2 > 0) & (y2 > 0)
    return torch.isfinite(boxes).all(dim=1) & (x1 < x2) & (y1 < y2) & inside


def crop_and_resize(
    image: npt.NDArray[np.uint8] | Tensor,
    boxes: Tensor | npt.NDArray[Any],
    size: int,
    mode: str = "stretch",
    device: str | torch.device | None = None,
    out: Tensor | None = None,
    normalise: tuple[Tensor, Tensor] | None = None,
    interpolation: str = "bicubic",
) -> Tensor:
    """Crop boxes from an image and resize each to a square, as open_clip and PIL do.

    Corners are rounded to whole pixels (halves to even, as in ``PIL.Image.crop``) and clipped to
    the image; a side that rounds to zero becomes one pixel. Resizing is antialiased.
    The result takes 12 · R · S² bytes: 180 MB for 300 boxes at 224.

    Args:
        image: (H, W, 3) uint8 RGB; may be read-only or non-contiguous.
        boxes: (R, 4) xyxy in pixels of the image; R may be 0. See :func:`valid_boxes`.
        size: S.
        mode: one of ``CROP_MODES``; see the module docstring. Very elongated boxes keep a row of
            pixels in ``pad``, where open_clip fails.
        device: where to compute; by default the image's device, which is the CPU for arrays.
        out: contiguous (R, 3, S, S) float32 output on that device. On the CPU allocating memory
            takes as long as resizing, so loops should reuse it.
        normalise: (mean, standard deviation) of the teacher's training images, (3,) each: the
            result is (crop - mean) / deviation, in the same pass over the memory. None: no
            normalisation. Keep them on the device (:attr:`vild.embeddings.Teacher.statistics`) to
            avoid transfers.
        interpolation: ``bicubic`` or ``bilinear``, as in the teacher's training
            (:attr:`vild.embeddings.Teacher.interpolation`).

    Returns:
        (R, 3, S, S) float32 in [0, 1], row r for box r, unless ``normalise`` is given.

    Raises:
        ValueError: invalid image, mode, size, interpolation or ``out``, boxes of another shape, or
            a box that :func:`valid_boxes` rejects.
    """
    rgb = _as_image(image)
    if mode not in CROP_MODES:
        raise ValueError(f"expected a crop mode of {', '.join(CROP_MODES)}, got {mode!r}")
    if interpolation not in INTERPOLATIONS:
        raise ValueError(
            f"expected an interpolation of {', '.join(INTERPOLATIONS)}, got {interpolation!r}"
        )
    if size < 1:
        raise ValueError(f"expected a size of at least 1 pixel, such as 224, got {size}")
    # Exact and on the CPU: halves must be rounded as in PIL, and the sizes control the computation.
    exact = _as_boxes(boxes).to("cpu", torch.float64)
    height, width, _ = rgb.shape
    if not (valid := valid_boxes(exact, (height, width))).all():
        row = int(valid.logical_not().nonzero()[0])
        raise ValueError(
            f"expected finite boxes x1 y1 x2 y2 with x1 < x2 and y1 < y2 that overlap the image, "
            f"{width} pixels wide and {height} high; box {row} of {len(exact)} is "
            f"({', '.join(f'{corner:g}' for corner in exact[row].tolist())}). Remove such rows: "
            f"valid_boxes(boxes, ({height}, {width})) marks the valid ones"
        )
    layout = _lay_out(exact, (height, width), size, mode)
    target = rgb.device if device is None else torch.device(device)
    shape = (len(exact), 3, size, size)
    if out is None:
        out = torch.empty(shape, device=target)
    elif out.shape != shape or out.dtype != torch.float32 or not out.is_contiguous():
        raise ValueError(
            f"expected `out` to be contiguous {shape} float32, got {tuple(out.shape)} {out.dtype}"
        )
    rgb = to_device(rgb, target)
    scaling = None
    if normalise:
        mean, std = (values.to(target, torch.float32)[:, None, None] for values in normalise)
        scaling = std, -mean / std
    if target.type == "cpu":
        divisor, shift = scaling or (torch.ones(3, 1, 1), torch.zeros(3, 1, 1))
        _resize_each(rgb, layout, out, interpolation, divisor.numpy(), shift.numpy())
    else:
        _resize_batched(rgb, layout, out, interpolation)
        if scaling:
            out.div_(scaling[0]).add_(scaling[1])
    return out


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device, using pinned memory for a GPU.

    A copy from pageable memory would wait for all earlier work of the GPU, such as the batch being
    encoded.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _in_one_transfer(tensors: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """Copy CPU tensors to a device as one block of bytes.

    Wider dtypes come first, since addresses must be multiples of the item size.
    """
    if device.type == "cpu":
        return tensors
    blocks = [tensor.contiguous().flatten().view(torch.uint8) for tensor in tensors]
    copied = to_device(torch.cat(blocks), device).split([len(block) for block in blocks])
    return [c.view(t.dtype).view(t.shape) for c, t in zip(copied, tensors, strict=True)]


def _as_image(image: npt.NDArray[np.uint8] | Tensor) -> Tensor:
    """Return a (H, W, 3) uint8 tensor that shares the image's memory if torch supports it."""
    shape = tuple(getattr(image, "shape", ()))
    dtype = str(getattr(image, "dtype", type(image).__name__)).removeprefix("torch.")
    if len(shape) != 3 or shape[2] != 3 or 0 in shape or dtype != "uint8":
        raise ValueError(
            f"expected an image of shape (height, width, 3) and uint8, RGB, got {shape} and "
            f"{dtype}. Use, for example, numpy.asarray(PIL.Image.open(path).convert('RGB'))"
        )
    if isinstance(image, Tensor):
        return image.detach()
    # torch warns about read-only arrays and does not support negative strides (flipped BGR)
    shareable = image.flags.writeable and min(image.strides) >= 0
    return torch.from_numpy(image if shareable else image.copy(order="C"))


def _as_boxes(boxes: Tensor | npt.NDArray[Any]) -> Tensor:
    # copy arrays: they are small, and torch warns about read-only ones
    boxes = boxes if isinstance(boxes, Tensor) else torch.from_numpy(np.array(boxes))
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        shape = tuple(boxes.shape)
        raise ValueError(f"expected boxes of shape (R, 4), got {shape}; for no boxes, (0, 4)")
    return boxes.detach()


def _clip(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    height, width = image_size
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height] * 2))


def _lay_out(boxes: Tensor, image_size: tuple[int, int], size: int, mode: str) -> _Layout:
    """Round valid boxes (float64, CPU) to pixels; compute open_clip's side lengths and offsets."""
    inside = _clip(boxes, image_size)[:, [1, 0, 3, 2]]
    start, stop = inside.round()[:, :2], inside.round()[:, 2:]
    nothing = stop <= start
    middle = ((inside[:, :2] + inside[:, 2:]) / 2).floor()
    start = torch.where(nothing, middle.minimum(middle.new_tensor(image_size) - 1), start)
    extent = torch.where(nothing, 1.0, stop - start)
    if mode == "clip":
        # torchvision's Resize truncates, its CenterCrop rounds halves to even
        length = (size * extent / extent.amin(dim=1, keepdim=True)).floor()
        offset = ((length - size) / 2).round()
    elif mode == "pad":
        # open_clip's ResizeKeepRatio rounds, its CenterCropOrPad puts the odd pixel last
        ratio = extent.amax(dim=1, keepdim=True) / size
        length = (extent / ratio).round().clamp(min=1)
        offset = -((size - length) / 2).floor()
    else:
        length, offset = torch.full_like(extent, size), torch.zeros_like(extent)
    return _Layout(*(values.long() for values in (start, extent, length, offset)))


def _resize_each(
    image: Tensor,
    layout: _Layout,
    out: Tensor,
    interpolation: str,
    divisor: npt.NDArray[np.float32],
    shift: npt.NDArray[np.float32],
) -> None:
    """Fill (R, 3, S, S) on the CPU, box by box, with torch's uint8 kernel.

    The values written are value / divisor + shift, (3, 1, 1) each.

    numpy does the rest, because torch would split every copy among threads and wait for them: on a
    busy machine this took 50 times as long as the resizing.
    """
    crops, size = out.numpy(), out.shape[-1]
    elongated = layout.length.amax(dim=1) >= _ELONGATED * size  # only "clip" exceeds the size
    pixels, shifted = image.numpy(), bool(shift.any())
    table = torch.cat([*layout, layout.vertical_first[:, None]], dim=1).tolist()
    if (layout.length < size).any():  # only "pad" leaves parts of a square unfilled
        crops[:] = shift
    for row in (~elongated).nonzero().flatten().tolist():
        y, x, height, width, tall, wide, top, left, vertical = table[row]
        crop = torch.from_numpy(np.ascontiguousarray(pixels[y : y + height, x : x + width]))
        crop = crop.permute(2, 0, 1)[None]
        if vertical:  # in a single call torch would start horizontally
            crop = functional.interpolate(crop, (tall, width), mode=interpolation, antialias=True)
        crop = functional.interpolate(crop, (tall, wide), mode=interpolation, antialias=True)
        kept = crop[0, :, max(top, 0) :, max(left, 0) :][:, :size, :size].numpy()
        square = crops[row, :, max(-top, 0) :, max(-left, 0) :]
        square = square[:, : kept.shape[1], : kept.shape[2]]
        np.divide(kept, divisor * 255, out=square)
        if shifted:  # while it is in the cache
            square += shift
    if elongated.any():
        rest = _Layout(*(values[elongated] for values in layout))
        squares = torch.empty(int(elongated.sum()), 3, size, size)
        _resize_batched(image, rest, squares, interpolation)
        out[elongated] = torch.from_numpy(squares.numpy() / divisor + shift)


def _resize_batched(
    image: Tensor, layout: _Layout, out: Tensor, interpolation: str = "bicubic"
) -> None:
    """Fill (R, 3, S, S) on any device: batches of boxes, as two matrix products with PIL's weights.

    Only crop pixels that affect the square are used. As in PIL, each product is rounded to
    [0, 255].
    """
    size, radius = out.shape[-1], INTERPOLATIONS[interpolation]
    scale = layout.extent / layout.length.double()  # (R, 2), crop pixels per output pixel
    reach = scale.clamp(min=1)  # antialiasing: the kernel grows with downscaling
    index = layout.offset[:, :, None] + torch.arange(size)  # (R, 2, S)
    outside = (index < 0) | (index >= layout.length[:, :, None])
    centre = (index + 0.5) * scale[:, :, None]
    # the window: crop pixels within the kernel's radius of the outermost output pixels
    first = (centre.masked_fill(outside, torch.inf).amin(2) - radius * reach).floor().clamp(min=0)
    last = (centre.masked_fill(outside, -torch.inf).amax(2) + radius * reach).ceil()
    window = (last.minimum(layout.extent) - first).long()
    centre = (centre - first[:, :, None]).masked_fill(outside, torch.inf)

    chunks = list(_chunks(window, layout.vertical_first, size))
    order = torch.cat([torch.empty(0, dtype=torch.long), *(rows for rows, _ in chunks)])
    steering = order, (layout.start + first.long())[order], window[order]
    kernels = centre[order].float(), reach[order].float()
    device, lengths = image.device, [len(rows) for rows, _ in chunks]
    sent = _in_one_transfer([*steering, *kernels], device)
    pixels = image.contiguous().flatten(0, 1)  # (H W, 3)
    by_chunk = zip(*(values.split(lengths) for values in sent), strict=True)
    for (own, vertical), (rows, start, extent, centre, reach) in zip(chunks, by_chunk, strict=True):
        longest = window[own].amax(dim=0).tolist()
        weights, places = [], []
        for axis in (0, 1):
            step = torch.arange(longest[axis], device=device)
            limit = extent[:, axis, None]
            places.append(start[:, axis, None] + step.minimum(limit - 1))  # (B, pixels)
            kernel = centre[:, axis], reach[:, axis], limit, step
            weights.append(_weights(*kernel, interpolation))
        places[0] *= image.shape[1]
        one, two = (0, 1) if vertical else (1, 0)  # axes of the first and of the second product
        source = pixels[places[two][:, :, None] + places[one][:, None, :]].transpose(2, 3)
        source = source.to(torch.float32, memory_format=torch.contiguous_format).flatten(1, 2)
        half = _to_bytes(source @ weights[one].transpose(1, 2))  # (B, pixels of two × 3, S)
        square = _to_bytes(weights[two] @ half.view(len(rows), -1, 3 * size)).div_(255)
        square = square.view(len(rows), size, 3, size).transpose(1, 2)
        out[rows] = square.transpose(2, 3) if vertical else square


def _to_bytes(values: Tensor) -> Tensor:
    """Round to whole numbers, as PIL does between its passes; halves are rounded up."""
    return values.add_(0.5).floor_().clamp_(0, 255)


def _weights(
    centre: Tensor, reach: Tensor, extent: Tensor, position: Tensor, interpolation: str
) -> Tensor:
    """Return (B, S, P) weights of PIL's kernel (bicubic: a = -0.5), normalised per row.

    ``centre`` (B, S) is the position of an output pixel among the P pixels, of which ``extent``
    (B, 1) belong to the box. Where it is inf, the output is black and the weights are 0. ``reach``
    (B,) is the kernel's unit.
    """
    t = (position + 0.5 - centre[:, :, None]).div_(reach[:, None, None]).abs_()
    t = t.clamp_(max=INTERPOLATIONS[interpolation])
    if interpolation == "bilinear":
        weights = 1 - t
    else:
        near = (1.5 * t - 2.5) * t * t + 1
        far = ((t - 5) * t + 8) * t * -0.5 + 2
        weights = torch.where(t < 1, near, far)
    weights.mul_((position < extent)[:, None, :])
    total = weights.sum(dim=2, keepdim=True)
    return weights.div_(total.masked_fill_(total == 0, 1))


def _chunks(window: Tensor, vertical: Tensor, size: int) -> Iterator[tuple[Tensor, bool]]:
    """Yield rows (B,) of boxes with the same order of products and similar sizes per chunk."""
    tall, wide = window.double().log2().ceil().long().unbind(dim=1)
    # alternate the direction of widths, so that neighbours have similar shapes
    key = vertical * 8192 + tall * 128 + torch.where(tall % 2 == 0, wide, 64 - wide)
    order = key.argsort(stable=True)
    kinds, begin, height, width = vertical[order].tolist(), 0, 0, 0
    for end, (h, w) in enumerate(window[order].tolist()):
        height, width = max(height, h), max(width, w)
        # index, bytes and floats of each pixel; results between the products; weights and their
        # parts; squares
        box = 23 * height * width + 12 * max(height, width) * size
        box += 24 * size * (height + width) + 24 * size * size
        full = box * (end + 1 - begin) > _CHUNK_BYTES
        if end > begin and (full or kinds[end] != kinds[begin]):
            yield order[begin:end], kinds[begin]
            begin, height, width = end, h, w
    if kinds:
        yield order[begin:], kinds[begin]
