"""Crops equal open_clip's preprocessing of PIL's crops, in both implementations."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import open_clip
import PIL
import pytest
import torch
from PIL import Image
from torchvision.transforms import Compose

from vild.embeddings import CROP_MODES, crop_and_resize, crops, enlarge_boxes, valid_boxes
from vild.embeddings.crops import INTERPOLATIONS

HEIGHT, WIDTH = 240, 320
RESIZE_MODES = {"stretch": "squash", "pad": "longest", "clip": "shortest"}
# Before 13.0 Pillow always shrank horizontally first, which is visible on noise.
OLD_PILLOW = int(PIL.__version__.split(".")[0]) < 13
by_interpolation = pytest.mark.parametrize("interpolation", INTERPOLATIONS)
by_mode = pytest.mark.parametrize("mode", CROP_MODES)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread: with small tensors threads mostly wait, especially beside other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def passes_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make older Pillow versions resize in the order of Pillow 13, as a reference."""
    if not OLD_PILLOW:
        return
    resize = Image.Image.resize

    def in_order(self: Image.Image, size: tuple[int, int], *args, **kwargs) -> Image.Image:  # type: ignore[no-untyped-def]
        less_wide, less_high = self.width - size[0], self.height - size[1]
        if less_high > 0 and less_high > 2 * less_wide:
            self = resize(self, (self.width, size[1]), *args, **kwargs)
        return resize(self, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", in_order)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Return smooth, noisy and black-and-white parts; the last show rounding and overshoot."""
    rng = np.random.default_rng(0)
    low = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    made = np.array(low.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    made[::5] = rng.integers(0, 256, made[::5].shape, np.uint8)
    made[60:180, 80:240] = 255 * rng.integers(0, 2, (120, 160, 3), np.uint8)
    return made


def boxes_of_all_scales() -> torch.Tensor:
    """Return the whole image, elongated, fractional and halved boxes, and random ones from 1 px."""
    fixed = [
        *[(0, 0, WIDTH, HEIGHT), (0, 0, WIDTH - 1, HEIGHT - 1), (0, 0, 1, 1)],
        *[(WIDTH - 1, HEIGHT - 1, WIDTH, HEIGHT), (10, 100, 310, 105), (100, 2, 105, 238)],
        *[(3, 7, 303, 9), (33, 5, 35, 235), (100, 20, 196, 230), (40, 30, 280, 40)],
        *[(10.5, 11.5, 20.5, 21.5), (90.49, 70.51, 120.2, 200.7), (88, 66, 152, 130)],
    ]
    rng = np.random.default_rng(1)
    for low, high in ((1, 5), (5, 40), (40, 120), (120, 238)):
        for _ in range(8):
            w, h = rng.integers(low, high, 2)
            x, y = rng.uniform(0, WIDTH - w), rng.uniform(0, HEIGHT - h)
            fixed.append((x, y, x + w, y + h))
    return torch.tensor(fixed, dtype=torch.float32)


def reference(
    image: np.ndarray, boxes: torch.Tensor, size: int, mode: str, interpolation: str = "bicubic"
) -> torch.Tensor:
    """Return open_clip's preprocessing of PIL's crops, without normalisation."""
    transform = open_clip.image_transform(
        size, is_train=False, resize_mode=RESIZE_MODES[mode], interpolation=interpolation
    )
    *steps, normalize = transform.transforms
    assert type(normalize).__name__ == "Normalize"
    whole = Image.fromarray(image)
    return torch.stack([Compose(steps)(whole.crop(tuple(box))) for box in boxes.tolist()])


def known_to_open_clip(boxes: torch.Tensor, size: int, mode: str) -> torch.Tensor:
    """Drop boxes whose short side becomes 0 pixels in ``pad``, for which open_clip fails."""
    sides = boxes[:, 2:].round() - boxes[:, :2].round()
    short = (size * sides.amin(dim=1) / sides.amax(dim=1)).round()
    return boxes[short > 0] if mode == "pad" else boxes


def resize_batched(
    image: torch.Tensor, layout: crops._Layout, size: int, interpolation: str = "bicubic"
) -> torch.Tensor:
    out = torch.full((len(layout.extent), 3, size, size), torch.nan, device=image.device)
    crops._resize_batched(image, layout, out, interpolation)
    return out


def batched(
    image: np.ndarray, boxes: torch.Tensor, size: int, mode: str, interpolation: str = "bicubic"
) -> torch.Tensor:
    """Compute crops with the implementation for GPUs."""
    layout = crops._lay_out(boxes.double(), image.shape[:2], size, mode)
    return resize_batched(torch.from_numpy(image), layout, size, interpolation)


def assert_same(got: torch.Tensor, expected: torch.Tensor, most: float = 3) -> None:
    assert got.shape == expected.shape
    difference = (got.double() - expected.double()).abs() * 255
    per_crop = difference.flatten(1).amax(dim=1)
    assert per_crop.max() < most + 1e-3, f"crop {int(per_crop.argmax())}: {per_crop.max():.2f}/255"
    assert difference.flatten(1).mean(dim=1).max() <= 1


@by_mode
@by_interpolation
@pytest.mark.parametrize("size", [224, 37])
def test_crops_equal_open_clips(
    size: int, mode: str, interpolation: str, image: np.ndarray
) -> None:
    boxes = known_to_open_clip(boxes_of_all_scales(), size, mode)
    expected = reference(image, boxes, size, mode, interpolation)
    got = crop_and_resize(image, boxes, size, mode, interpolation=interpolation)
    assert_same(got, expected)
    assert_same(batched(image, boxes, size, mode, interpolation), expected)


@by_mode
@by_interpolation
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_crops_of_every_small_size(
    size: int, mode: str, interpolation: str, image: np.ndarray
) -> None:
    boxes = torch.tensor([(90.0, 70.0, 90 + w, 70 + h) for w in range(1, 8) for h in range(1, 8)])
    boxes = known_to_open_clip(boxes, size, mode)
    expected = reference(image, boxes, size, mode, interpolation)
    got = crop_and_resize(image, boxes, size, mode, interpolation=interpolation)
    assert_same(got, expected)
    assert_same(batched(image, boxes, size, mode, interpolation), expected)


@by_mode
@by_interpolation
def test_both_ways_agree(mode: str, interpolation: str, image: np.ndarray) -> None:
    boxes = boxes_of_all_scales()
    got = crop_and_resize(image, boxes, 64, mode, interpolation=interpolation)
    assert_same(batched(image, boxes, 64, mode, interpolation), got, most=2)


def test_bilinear_equals_pil_and_differs_from_bicubic(image: np.ndarray) -> None:
    boxes = torch.tensor([[30.0, 40.0, 130.0, 190.0]])
    crop = Image.fromarray(image).crop((30, 40, 130, 190))
    expected = torch.from_numpy(np.array(crop.resize((48, 48), Image.Resampling.BILINEAR)) / 255)
    got = crop_and_resize(image, boxes, 48, interpolation="bilinear")
    assert_same(got[0].permute(1, 2, 0), expected, most=1)
    assert (got - crop_and_resize(image, boxes, 48)).abs().max() > 10 / 255


def test_an_elongated_box_is_bilinear_too(image: np.ndarray) -> None:
    boxes = torch.tensor([[10.0, 50.0, 310.0, 51.0], [7.0, 5.0, 9.0, 239.0]])
    got = crop_and_resize(image, boxes, 32, "clip", interpolation="bilinear")
    assert_same(got, reference(image, boxes, 32, "clip", "bilinear"))


@pytest.mark.parametrize(("w", "h", "vertical"), [(60, 200, True), (200, 60, False)])
def test_order_of_the_passes(w: int, h: int, vertical: bool, image: np.ndarray) -> None:
    """Explicit passes as reference, for any Pillow; the other order differs much more."""
    crop = Image.fromarray(image[20 : 20 + h, 90 : 90 + w])
    between = {True: (w, 48), False: (48, h)}
    expected, other = (
        np.array(crop.resize(between[first], 3).resize((48, 48), 3)) / 255
        for first in (vertical, not vertical)
    )
    assert np.abs(expected - other).max() > 10 / 255
    boxes = torch.tensor([[90.0, 20.0, 90 + w, 20 + h]])
    for resize in (crop_and_resize, batched):
        assert_same(resize(image, boxes, 48, "stretch")[0].permute(1, 2, 0), torch.tensor(expected))


def test_very_long_boxes_keep_a_row_in_pad(image: np.ndarray) -> None:
    boxes = torch.tensor([[0.0, 50.0, 300.0, 51.0]])
    for resize in (crop_and_resize, batched):
        crop = resize(image, boxes, 32, "pad")[0]
        assert crop.amax(dim=(0, 2)).nonzero().flatten().tolist() == [15]


def test_clip_does_not_resize_what_it_cuts_off(
    image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 × 1 pixels would become 67200 × 224, 45 MB."""
    boxes = torch.tensor([[10.0, 50.0, 310.0, 51.0], [7.0, 5.0, 8.0, 239.0]])
    monkeypatch.delattr(crops.functional, "interpolate")
    windows = []
    chunks = crops._chunks
    monkeypatch.setattr(crops, "_chunks", lambda w, *rest: windows.append(w) or chunks(w, *rest))
    got = crop_and_resize(image, boxes, 224, "clip")
    assert windows[0].max() <= 6  # pixels
    assert_same(got, reference(image, boxes, 224, "clip"))


@by_mode
def test_chunks_do_not_change_the_result(
    mode: str, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = boxes_of_all_scales()
    together = batched(image, boxes, 32, mode)
    for most in (1, 4_000_000):
        monkeypatch.setattr(crops, "_CHUNK_BYTES", most)
        torch.testing.assert_close(
            batched(image, boxes, 32, mode), together, rtol=0, atol=1.1 / 255
        )


def test_chunks_are_bounded_and_hold_every_box_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    window = torch.randint(1, 300, (200, 2), generator=generator)
    vertical = torch.rand(200, generator=generator) < 0.3
    monkeypatch.setattr(crops, "_CHUNK_BYTES", 20_000_000)
    seen = []
    for rows, kind in crops._chunks(window, vertical, 32):
        assert (vertical[rows] == kind).all()
        height, width = window[rows].amax(dim=0).tolist()
        assert len(rows) * height * width * 15 < 20_000_000  # bytes and floats of the pixels
        seen += rows.tolist()
    assert sorted(seen) == list(range(200))


def test_two_scales_of_one_box(image: np.ndarray) -> None:
    """Enlarging boxes must not modify them in place, or both crops would be enlarged."""
    boxes = torch.tensor([[100.0, 80.0, 140.0, 120.0]])
    before = boxes.clone()
    large = enlarge_boxes(boxes, 1.5, (HEIGHT, WIDTH))
    assert torch.equal(boxes, before)
    assert large.tolist() == [[90.0, 70.0, 150.0, 130.0]]
    got = [crop_and_resize(image, b, 32) for b in (boxes, large)]
    assert not torch.allclose(*got, atol=0.1)
    for crop, corners in zip(got, ((100, 80, 140, 120), (90, 70, 150, 130)), strict=True):
        expected = Image.fromarray(image).crop(corners).resize((32, 32), Image.Resampling.BICUBIC)
        assert_same(crop[0].permute(1, 2, 0), torch.from_numpy(np.array(expected) / 255))
    assert torch.equal(boxes, before)


@pytest.mark.parametrize("resize", [crop_and_resize, batched])
@pytest.mark.parametrize(
    ("box", "pixel"),
    [
        ((10.1, 20.2, 10.4, 20.3), (10, 20)),
        ((9.6, 19.6, 10.4, 20.4), (10, 20)),
        ((-5.0, -3.0, 0.3, 0.2), (0, 0)),
        ((WIDTH - 0.3, HEIGHT - 0.2, WIDTH + 9, HEIGHT + 9), (WIDTH - 1, HEIGHT - 1)),
        ((WIDTH - 1e-5, HEIGHT - 1e-5, WIDTH, HEIGHT), (WIDTH - 1, HEIGHT - 1)),
    ],
)
def test_what_rounds_to_nothing_is_a_pixel(resize, box, pixel, image: np.ndarray) -> None:
    x, y = pixel
    expected = torch.from_numpy(image[y, x])[:, None, None].expand(3, 5, 5) / 255
    boxes = torch.tensor([box], dtype=torch.float64)
    assert valid_boxes(boxes, (HEIGHT, WIDTH)).all()
    assert torch.equal(resize(image, boxes, 5, "stretch")[0], expected)


@by_mode
def test_boxes_are_clipped_to_the_image(mode: str, image: np.ndarray) -> None:
    outside = torch.tensor([[-30.0, -1e9, 50.2, 40.0], [200.0, 100.0, 1e20, 700.0]])
    inside = torch.tensor([[0.0, 0.0, 50.0, 40.0], [200.0, 100.0, WIDTH, HEIGHT]])
    got, expected = (crop_and_resize(image, b, 16, mode) for b in (outside, inside))
    assert torch.equal(got, expected)


@by_mode
@pytest.mark.parametrize("resize", [crop_and_resize, batched])
def test_no_box(resize, mode: str, image: np.ndarray) -> None:
    got = resize(image, torch.empty(0, 4), 24, mode)
    assert got.shape == (0, 3, 24, 24)
    assert got.dtype == torch.float32


@by_mode
@pytest.mark.parametrize("resize", [crop_and_resize, batched])
def test_results_are_bytes_over_255(resize, mode: str, image: np.ndarray) -> None:
    got = resize(image, boxes_of_all_scales(), 16, mode)
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    assert got.min() == 0
    assert got.max() == 1
    assert torch.equal((got * 255).round() / 255, got)


def test_images_of_any_layout(image: np.ndarray) -> None:
    boxes = boxes_of_all_scales()
    expected = crop_and_resize(image, boxes, 16)
    read_only = image.copy()
    read_only.flags.writeable = False
    mirrored = np.ascontiguousarray(image[:, :, ::-1])[:, :, ::-1]
    padded = np.zeros((HEIGHT, WIDTH + 9, 4), np.uint8)
    padded[:, 4:-5, :3] = image
    planar = torch.from_numpy(image).permute(2, 0, 1).contiguous().permute(1, 2, 0)
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for view in (read_only, mirrored, padded[:, 4:-5, :3], planar, Image.fromarray(image)):
                pixels = np.asarray(view) if isinstance(view, Image.Image) else view
                assert torch.equal(crop_and_resize(pixels, boxes, 16), expected)
                layout = crops._lay_out(boxes.double(), image.shape[:2], 16, "stretch")
                got = resize_batched(crops._as_image(pixels), layout, 16)
                assert_same(got, expected, most=2)
            rows = boxes.numpy()
            rows.flags.writeable = False
            assert torch.equal(crop_and_resize(image, rows, 16), expected)
    finally:
        torch.set_warn_always(False)


def test_inputs_stay_as_they_are(image: np.ndarray) -> None:
    pixels, boxes = image.copy(), torch.tensor([[0, 0, WIDTH, HEIGHT]])
    for size in (16, HEIGHT):
        crop_and_resize(pixels, boxes, size, "clip").fill_(0.5)
    assert np.array_equal(pixels, image)
    assert boxes.tolist() == [[0, 0, WIDTH, HEIGHT]]


def test_device_is_the_images_or_the_one_asked_for(image: np.ndarray) -> None:
    boxes = torch.tensor([[1.0, 2.0, 30.0, 40.0]])
    for pixels in (image, torch.from_numpy(image)):
        for device in (None, "cpu", torch.device("cpu")):
            assert crop_and_resize(pixels, boxes, 8, device=device).device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@by_mode
@by_interpolation
def test_cuda_equals_the_cpu(mode: str, interpolation: str, image: np.ndarray) -> None:
    boxes = boxes_of_all_scales()
    expected = crop_and_resize(image, boxes, 224, mode, interpolation=interpolation)
    got = crop_and_resize(image, boxes, 224, mode, device="cuda", interpolation=interpolation)
    assert got.device.type == "cuda"
    assert_same(got.cpu(), expected, most=2)
    pixels = torch.from_numpy(image).cuda()
    again = crop_and_resize(pixels, boxes.cuda(), 224, mode, interpolation=interpolation)
    assert torch.equal(again, got)
    back = crop_and_resize(pixels, boxes, 224, mode, device="cpu", interpolation=interpolation)
    assert torch.equal(back, expected)
    assert crop_and_resize(pixels, torch.empty(0, 4), 8, mode).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("mode", CROP_MODES)
def test_memory_that_is_used_again(mode: str) -> None:
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    boxes = torch.tensor([[3.0, 4, 50, 60], [0, 10, 120, 13], [7, 0, 9, 90]])
    out = torch.full((3, 3, 32, 32), torch.nan)
    assert crop_and_resize(image, boxes, 32, mode, out=out) is out
    assert torch.equal(out, crop_and_resize(image, boxes, 32, mode))
    for wrong in (torch.empty(2, 3, 32, 32), torch.empty(3, 3, 32, 32).half(), out.transpose(2, 3)):
        with pytest.raises(ValueError, match="expected `out` to be contiguous"):
            crop_and_resize(image, boxes, 32, mode, out=wrong)


@pytest.mark.parametrize("mode", CROP_MODES)
def test_normalised_in_the_same_pass(mode: str) -> None:
    image = np.random.default_rng(0).integers(0, 255, (90, 400, 3), np.uint8)
    boxes = torch.tensor([[3.0, 4, 50, 60], [0, 10, 400, 13], [7, 0, 9, 90]])
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.3, 0.2, 0.1])
    plain = crop_and_resize(image, boxes, 32, mode)
    got = crop_and_resize(image, boxes, 32, mode, normalise=(mean, std))
    expected = (plain - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
