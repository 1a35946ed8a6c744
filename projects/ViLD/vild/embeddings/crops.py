"""Regions of a picture as the square inputs of the teacher (ViLD section 3.2).

Shapes: R boxes, S pixels a side of a crop, H and W pixels of the picture, B boxes of one chunk.
Boxes are (R, 4) xyxy, absolute, in the picture's own pixels. Pictures are (H, W, 3) uint8, RGB.

A crop equals what open_clip makes of PIL's crop of the same box, before it normalises, to within
2/255. Implementations of ViLD differ in how a crop becomes a square; these are the modes, with
open_clip's names for them:

- ``stretch`` (squash): resized to S × S, whatever its shape;
- ``pad`` (longest): the long side resized to S, centred on black;
- ``clip`` (shortest): the short side resized to S, the ends of the long one cut off. CLIP's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

CROP_MODES = ("stretch", "pad", "clip")
INTERPOLATIONS = {"bicubic": 2, "bilinear": 1}  # the radius of each kernel, in pixels

# What one chunk of `_resize_batched` may hold, in bytes. A box that needs more goes alone.
_CHUNK_BYTES = 256 * 2**20
# "clip" on a CPU: from this long / short side on, only what stays of the crop is resized. At 16 and
# S = 224 the whole takes 2.4 MB and 4 ms; 600 × 2 pixels would become 67200 × 224.
_ELONGATED = 16


class _Layout(NamedTuple):
    """How R crops become squares: int64 (R, 2) each, column 0 vertical and column 1 horizontal."""

    start: Tensor  # first pixel of the crop in the picture
    extent: Tensor  # pixels of the crop, > 0
    length: Tensor  # pixels that the extent is resized to, > 0
    offset: Tensor  # where in `length` the square begins; negative: black before it

    @property
    def vertical_first(self) -> Tensor:
        """(R,) bool, which pass comes first; as each is rounded, it matters. Pillow 13's rule."""
        shrinkage = self.extent - self.length
        return (shrinkage[:, 0] > 0) & (shrinkage[:, 0] > 2 * shrinkage[:, 1])


def enlarge_boxes(boxes: Tensor, scale: float, image_size: tuple[int, int]) -> Tensor:
    """Grow boxes around their centres and clip them to the picture.

    ViLD adds the embeddings at 1× and at 1.5×, which is 0.25 of width and height more on each side.

    Args:
        boxes: (R, 4) xyxy; never changed.
        scale: factor of the width and of the height, > 0.
        image_size: (height, width) of the picture, in pixels.

    Returns:
        (R, 4) float32, a new tensor at any scale, on the boxes' device.

    Raises:
        ValueError: boxes of another shape, or a scale that is not a positive number.
    """
    boxes = _as_boxes(boxes).to(torch.float32)
    if not 0 < scale < float("inf"):
        raise ValueError(f"expected a scale > 0, such as 1.5, got {scale}")
    growth = (boxes[:, 2:] - boxes[:, :2]) * ((scale - 1) / 2)
    return _clip(torch.cat([boxes[:, :2] - growth, boxes[:, 2:] + growth], dim=1), image_size)


def valid_boxes(boxes: Tensor | npt.NDArray[Any], image_size: tuple[int, int]) -> Tensor:
    """Tell which boxes :func:`crop_and_resize` accepts.

    Args:
        boxes: (R, 4) xyxy.
        image_size: (height, width) of the picture, in pixels.

    Returns:
        (R,) bool on the boxes' device: finite, x1 < x2, y1 < y2 and partly in the picture.

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
    """Cut boxes out of a picture and make each a square, as open_clip and PIL do.

    Corners are rounded to whole pixels (halves to even, as in ``PIL.Image.crop``) and clipped to
    the picture; what rounds to nothing becomes one pixel. Resizing is antialiased.
    The result takes 12 · R · S² bytes: 180 MB for 300 boxes at 224.

    Args:
        image: (H, W, 3) uint8 RGB; read-only and non-contiguous ones will do.
        boxes: (R, 4) xyxy in the picture's pixels; R may be 0. See :func:`valid_boxes`.
        size: S.
        mode: one of ``CROP_MODES``; see the top of this module. Very long boxes keep a row of
            pixels in ``pad``, where open_clip fails.
        device: where to compute; the picture's by default, which is the CPU for arrays.
        out: contiguous (R, 3, S, S) float32 there, to be written to. On the CPU new memory takes
            as long as the resizing, so a loop had better use the same again.
        normalise: (mean, deviation) of the teacher's training images, (3,) each: the result is
            (crop - mean) / deviation, in the same pass over the memory. None: as it is. Keep them
            on the device (:attr:`vild.embeddings.Teacher.statistics`) to save their transfer.
        interpolation: ``bicubic`` or ``bilinear``, the one that the teacher was trained with
            (:attr:`vild.embeddings.Teacher.interpolation`).

    Returns:
        (R, 3, S, S) float32 in [0, 1], row r of box r, unless ``normalise`` is given.

    Raises:
        ValueError: a picture, mode, size, interpolation or ``out`` other than these, boxes of
            another shape, or a box that :func:`valid_boxes` rejects.
    """
    picture = _as_picture(image)
    if mode not in CROP_MODES:
        raise ValueError(f"expected a crop mode of {', '.join(CROP_MODES)}, got {mode!r}")
    if interpolation not in INTERPOLATIONS:
        raise ValueError(
            f"expected an interpolation of {', '.join(INTERPOLATIONS)}, got {interpolation!r}"
        )
    if size < 1:
        raise ValueError(f"expected a size of at least 1 pixel, such as 224, got {size}")
    # Exact and on the CPU: halves are rounded as PIL does, and sizes steer the computation.
    exact = _as_boxes(boxes).to("cpu", torch.float64)
    height, width, _ = picture.shape
    if not (valid := valid_boxes(exact, (height, width))).all():
        row = int(valid.logical_not().nonzero()[0])
        raise ValueError(
            f"expected finite boxes x1 y1 x2 y2 with x1 < x2 and y1 < y2 that overlap the picture, "
            f"{width} pixels wide and {height} high; box {row} of {len(exact)} is "
            f"({', '.join(f'{corner:g}' for corner in exact[row].tolist())}). Leave such rows out: "
            f"valid_boxes(boxes, ({height}, {width})) tells which are good"
        )
    layout = _lay_out(exact, (height, width), size, mode)
    target = picture.device if device is None else torch.device(device)
    shape = (len(exact), 3, size, size)
    if out is None:
        out = torch.empty(shape, device=target)
    elif out.shape != shape or out.dtype != torch.float32 or not out.is_contiguous():
        raise ValueError(
            f"expected `out` to be contiguous {shape} float32, got {tuple(out.shape)} {out.dtype}"
        )
    picture = to_device(picture, target)
    scaling = None
    if normalise:
        mean, std = (values.to(target, torch.float32)[:, None, None] for values in normalise)
        scaling = std, -mean / std
    if target.type == "cpu":
        divisor, shift = scaling or (torch.ones(3, 1, 1), torch.zeros(3, 1, 1))
        _resize_each(picture, layout, out, interpolation, divisor.numpy(), shift.numpy())
    else:
        _resize_batched(picture, layout, out, interpolation)
        if scaling:
            out.div_(scaling[0]).add_(scaling[1])
    return out


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device, to a GPU from pinned memory.

    A copy from pageable memory waits for all work that the GPU was given before, such as the batch
    that is encoded at the time.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _in_one_transfer(tensors: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """Copy CPU tensors to a device as one block of bytes.

    Those of wider dtypes come first, as the address of a value is a multiple of its size.
    """
    if device.type == "cpu":
        return tensors
    blocks = [tensor.contiguous().flatten().view(torch.uint8) for tensor in tensors]
    copied = to_device(torch.cat(blocks), device).split([len(block) for block in blocks])
    return [c.view(t.dtype).view(t.shape) for c, t in zip(copied, tensors, strict=True)]


def _as_picture(image: npt.NDArray[np.uint8] | Tensor) -> Tensor:
    """(H, W, 3) uint8 tensor, of the same memory where torch can take it."""
    shape = tuple(getattr(image, "shape", ()))
    dtype = str(getattr(image, "dtype", type(image).__name__)).removeprefix("torch.")
    if len(shape) != 3 or shape[2] != 3 or 0 in shape or dtype != "uint8":
        raise ValueError(
            f"expected a picture of shape (height, width, 3) and uint8, RGB, got {shape} and "
            f"{dtype}. numpy.asarray(PIL.Image.open(path).convert('RGB')) is one"
        )
    if isinstance(image, Tensor):
        return image.detach()
    # torch warns of read-only arrays and takes no negative strides (BGR turned around)
    shareable = image.flags.writeable and min(image.strides) >= 0
    return torch.from_numpy(image if shareable else image.copy(order="C"))


def _as_boxes(boxes: Tensor | npt.NDArray[Any]) -> Tensor:
    # arrays are copied: they are small, and torch warns of read-only ones
    boxes = boxes if isinstance(boxes, Tensor) else torch.from_numpy(np.array(boxes))
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        shape = tuple(boxes.shape)
        raise ValueError(f"expected boxes (R, 4), none being torch.empty(0, 4), got shape {shape}")
    return boxes.detach()


def _clip(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    height, width = image_size
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height] * 2))


def _lay_out(boxes: Tensor, image_size: tuple[int, int], size: int, mode: str) -> _Layout:
    """Whole pixels of valid boxes (float64, CPU), and open_clip's side lengths and offsets."""
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
    picture: Tensor,
    layout: _Layout,
    out: Tensor,
    interpolation: str,
    divisor: npt.NDArray[np.float32],
    shift: npt.NDArray[np.float32],
) -> None:
    """Fill (R, 3, S, S) on the CPU: torch's own uint8 kernel, box by box.

    What is filled in is value / divisor + shift, (3, 1, 1) each.

    numpy does the rest. Torch would share each copy among threads and wait for them: on a machine
    with other work to do that took 50 times as long as the resizing.
    """
    crops, size = out.numpy(), out.shape[-1]
    elongated = layout.length.amax(dim=1) >= _ELONGATED * size  # "clip" alone exceeds the size
    pixels, shifted = picture.numpy(), bool(shift.any())
    table = torch.cat([*layout, layout.vertical_first[:, None]], dim=1).tolist()
    if (layout.length < size).any():  # "pad" alone leaves parts of a square as they are
        crops[:] = shift
    for row in (~elongated).nonzero().flatten().tolist():
        y, x, height, width, tall, wide, top, left, vertical = table[row]
        crop = torch.from_numpy(np.ascontiguousarray(pixels[y : y + height, x : x + width]))
        crop = crop.permute(2, 0, 1)[None]
        if vertical:  # in one call torch goes horizontally first
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
        _resize_batched(picture, rest, squares, interpolation)
        out[elongated] = torch.from_numpy(squares.numpy() / divisor + shift)


def _resize_batched(
    picture: Tensor, layout: _Layout, out: Tensor, interpolation: str = "bicubic"
) -> None:
    """Fill (R, 3, S, S) on any device: many boxes at a time, as two products with PIL's weights.

    Only those pixels of the crop take part that reach into the square. As in PIL, each product is
    rounded to [0, 255].
    """
    size, radius = out.shape[-1], INTERPOLATIONS[interpolation]
    scale = layout.extent / layout.length.double()  # (R, 2), crop pixels a pixel of the result
    reach = scale.clamp(min=1)  # antialiasing: the kernel is as much wider when downscaling
    index = layout.offset[:, :, None] + torch.arange(size)  # (R, 2, S)
    outside = (index < 0) | (index >= layout.length[:, :, None])
    centre = (index + 0.5) * scale[:, :, None]
    # the window: crop pixels within the kernel's radius of the outermost pixels of the result
    first = (centre.masked_fill(outside, torch.inf).amin(2) - radius * reach).floor().clamp(min=0)
    last = (centre.masked_fill(outside, -torch.inf).amax(2) + radius * reach).ceil()
    window = (last.minimum(layout.extent) - first).long()
    centre = (centre - first[:, :, None]).masked_fill(outside, torch.inf)

    chunks = list(_chunks(window, layout.vertical_first, size))
    order = torch.cat([torch.empty(0, dtype=torch.long), *(rows for rows, _ in chunks)])
    steering = order, (layout.start + first.long())[order], window[order]
    kernels = centre[order].float(), reach[order].float()
    device, lengths = picture.device, [len(rows) for rows, _ in chunks]
    sent = _in_one_transfer([*steering, *kernels], device)
    pixels = picture.contiguous().flatten(0, 1)  # (H W, 3)
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
        places[0] *= picture.shape[1]
        one, two = (0, 1) if vertical else (1, 0)  # axis of the first product and of the second
        source = pixels[places[two][:, :, None] + places[one][:, None, :]].transpose(2, 3)
        source = source.to(torch.float32, memory_format=torch.contiguous_format).flatten(1, 2)
        half = _to_bytes(source @ weights[one].transpose(1, 2))  # (B, pixels of two × 3, S)
        square = _to_bytes(weights[two] @ half.view(len(rows), -1, 3 * size)).div_(255)
        square = square.view(len(rows), size, 3, size).transpose(1, 2)
        out[rows] = square.transpose(2, 3) if vertical else square


def _to_bytes(values: Tensor) -> Tensor:
    """PIL keeps whole numbers between its passes; halves go up."""
    return values.add_(0.5).floor_().clamp_(0, 255)


def _weights(
    centre: Tensor, reach: Tensor, extent: Tensor, position: Tensor, interpolation: str
) -> Tensor:
    """(B, S, P) PIL's kernel (bicubic: a = -0.5), rows of sum 1, or 0 where the result is black.

    ``centre`` (B, S) is where a pixel of the result lies among the P pixels, of which ``extent``
    (B, 1) belong to the box, and inf where it is black; ``reach`` (B,) is the kernel's unit.
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
    """Rows (B,) of boxes of one order of products and of like sizes, to fill `_CHUNK_BYTES`."""
    tall, wide = window.double().log2().ceil().long().unbind(dim=1)
    # up and down the widths in turn, so that neighbours are of like shape
    key = vertical * 8192 + tall * 128 + torch.where(tall % 2 == 0, wide, 64 - wide)
    order = key.argsort(stable=True)
    kinds, begin, height, width = vertical[order].tolist(), 0, 0, 0
    for end, (h, w) in enumerate(window[order].tolist()):
        height, width = max(height, h), max(width, w)
        # index, bytes and floats of a pixel; between the products; weights and their parts; squares
        box = 23 * height * width + 12 * max(height, width) * size
        box += 24 * size * (height + width) + 24 * size * size
        full = box * (end + 1 - begin) > _CHUNK_BYTES
        if end > begin and (full or kinds[end] != kinds[begin]):
            yield order[begin:end], kinds[begin]
            begin, height, width = end, h, w
    if kinds:
        yield order[begin:], kinds[begin]
