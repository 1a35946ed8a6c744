"""The image reader returns every kind of image as upright RGB, or says why it cannot."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image as detectron2_read_image
from PIL import Image, ImageFile

from vild.data import UnreadableImageError, read_image

ORIENTATION = 274


@pytest.fixture
def image() -> Image.Image:
    """Return 24 × 40 pixels with distinct corners; smooth, so that JPEG changes little."""
    rows, columns = np.mgrid[0:24, 0:40]
    channels = (rows * 10, columns * 6, (rows + columns) * 4)
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def check_form(array: np.ndarray, height: int, width: int) -> None:
    assert array.shape == (height, width, 3)
    assert array.dtype == np.uint8
    assert array.flags.c_contiguous
    assert array.flags.writeable


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "a.tiff", "a.webp", "a.ppm"])
def test_common_kinds_are_as_detectron2_reads_them(
    image: Image.Image, tmp_path: Path, name: str
) -> None:
    path = saved(image, tmp_path / name)
    array = read_image(path)
    check_form(array, 24, 40)
    np.testing.assert_array_equal(array, detectron2_read_image(path, "RGB"))
    np.testing.assert_array_equal(array, read_image(str(path)))


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_every_mode_becomes_rgb_as_in_detectron2(
    image: Image.Image, tmp_path: Path, mode: str
) -> None:
    source = image if mode != "LAB" else Image.merge("LAB", image.split())
    path = tmp_path / ("a.tiff" if mode in ("CMYK", "YCbCr", "LAB") else "a.png")
    # Pillow 12.3 cannot read the uncompressed file of this mode that it writes
    options = {"compression": "tiff_lzw"} if mode == "YCbCr" else {}
    saved(source.convert(mode), path, **options)
    array = read_image(path)
    check_form(array, 24, 40)
    np.testing.assert_array_equal(array, detectron2_read_image(path, "RGB"))


def test_cmyk_jpeg(image: Image.Image, tmp_path: Path) -> None:
    path = saved(image.convert("CMYK"), tmp_path / "a.jpg")
    np.testing.assert_array_equal(read_image(path), detectron2_read_image(path, "RGB"))


def test_transparency_shows_the_colour_below(tmp_path: Path) -> None:
    path = saved(Image.new("RGBA", (5, 4), (200, 100, 50, 0)), tmp_path / "a.png")
    assert (read_image(path) == (200, 100, 50)).all()


def test_a_palette_with_transparency_gives_no_warning(image: Image.Image, tmp_path: Path) -> None:
    palette = image.convert("P")
    path = saved(palette, tmp_path / "a.png", transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_image(path), np.array(palette.convert("RGB")))


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_16_bits_are_scaled(tmp_path: Path, name: str) -> None:
    values = np.array([[0, 128, 129, 257], [32768, 65279, 65407, 65535]], dtype=np.uint16)
    path = saved(Image.fromarray(values), tmp_path / name)
    array = read_image(path)
    check_form(array, 2, 4)
    np.testing.assert_array_equal(array[..., 0], [[0, 0, 1, 1], [128, 254, 255, 255]])
    assert (array == array[..., :1]).all()


def test_whole_numbers_of_32_bits_are_scaled_if_they_are_of_16(tmp_path: Path) -> None:
    values = np.array([[0, 257, 65535]], dtype=np.int32)
    path = saved(Image.fromarray(values), tmp_path / "a.tiff")
    np.testing.assert_array_equal(read_image(path)[0, :, 1], [0, 1, 255])


@pytest.mark.parametrize("value", [-1, 65536])
def test_other_whole_numbers_are_refused(tmp_path: Path, value: int) -> None:
    path = saved(Image.fromarray(np.array([[0, value]], dtype=np.int32)), tmp_path / "a.tiff")
    with pytest.raises(UnreadableImageError, match=rf"a\.tiff.*{value}.*Convert it to 8 bits"):
        read_image(path)


def test_floats_are_refused(tmp_path: Path) -> None:
    path = saved(Image.new("F", (3, 3)), tmp_path / "a.tiff")
    with pytest.raises(UnreadableImageError, match=r"a\.tiff.*floats.*Convert"):
        read_image(path)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    frames = [Image.new("RGB", (6, 5), colour) for colour in colours]
    path = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    array = read_image(path)
    check_form(array, 5, 6)
    assert (array == colours[0]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_orientation_as_in_detectron2(
    image: Image.Image, tmp_path: Path, name: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = saved(image, tmp_path / name, exif=exif)
    array = read_image(path)
    check_form(array, *((24, 40) if orientation < 5 else (40, 24)))
    np.testing.assert_array_equal(array, detectron2_read_image(path, "RGB"))


UPRIGHT = {  # EXIF 2.32, tag 274: where row 0 and column 0 of the stored image belong
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a[:, ::-1].transpose(1, 0, 2),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_orientation_is_applied_once(
    image: Image.Image, tmp_path: Path, name: str, orientation: int
) -> None:
    """Pillow turns a TIFF while loading it; Detectron2 wrongly turns it again."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = saved(image, tmp_path / name, exif=exif)
    np.testing.assert_array_equal(read_image(path), UPRIGHT[orientation](np.array(image)))


def test_16_bits_and_palettes_are_turned(image: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    values = (np.arange(24 * 40, dtype=np.uint16) * 60).reshape(24, 40)
    path = saved(Image.fromarray(values), tmp_path / "wide.png", exif=exif)
    expected = np.rot90((values.astype(int) + 128) // 257, -1)
    np.testing.assert_array_equal(read_image(path)[..., 2], expected)
    path = saved(image.convert("P"), tmp_path / "palette.png", exif=exif)
    np.testing.assert_array_equal(read_image(path), detectron2_read_image(path, "RGB"))


def test_a_broken_exif_block_counts_as_none(image: Image.Image, tmp_path: Path) -> None:
    path = saved(image, tmp_path / "a.jpg", exif=b"Exif\0\0no such byte order")
    plain = saved(image, tmp_path / "plain.jpg")
    np.testing.assert_array_equal(read_image(path), read_image(plain))


def encoded(kind: str) -> bytes:
    """Return a file of noise, most of which is pixels and not header."""
    values = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    image, whole = Image.fromarray(values), io.BytesIO()
    if kind == "progressive":
        image.save(whole, "JPEG", progressive=True)
    elif kind == "JPEG with thumbnail":  # an end-of-image marker before the pixels
        thumbnail = io.BytesIO()
        image.resize((12, 9)).save(thumbnail, "JPEG")
        image.save(whole, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08" + bytes(6) + thumbnail.getvalue())
    else:
        image.save(whole, kind)
    return whole.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "progressive", "PNG", "BMP", "GIF", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_half_a_image_is_never_accepted(tmp_path: Path, kind: str, share: float) -> None:
    whole = encoded(kind)
    path = tmp_path / "cut.image"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UnreadableImageError, match=r"cut\.image.*(again|no image)"):
        read_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "progressive", "JPEG with thumbnail"])
def test_a_download_padded_with_zeros_is_not_accepted(tmp_path: Path, kind: str) -> None:
    whole = encoded(kind)
    path = tmp_path / "padded.jpg"
    path.write_bytes(whole[: len(whole) // 2].ljust(len(whole), b"\0"))
    with pytest.raises(UnreadableImageError, match=r"padded\.jpg.*truncated or damaged.*again"):
        read_image(path)
    # padding after the end, as some cameras and file systems write it, is harmless
    path.write_bytes(whole + bytes(512))
    check_form(read_image(path), 90, 120)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "it is empty. Download"),
        (b"<!DOCTYPE html><title>404</title>", "begins with b'<!DOCTYPE html>"),
        (b"\x00", r"begins with b'\\x00'"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "PostScript"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=rf"a\.jpg: .*{complaint}"):
        read_image(path)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match=r"none\.jpg: there is no such file.*Check"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(UnreadableImageError, match="it is a folder"):
        read_image(tmp_path)


@pytest.mark.parametrize(
    ("error", "complaint"),
    [(PermissionError(13, "Permission denied"), "permission denied"), (OSError(5, "I/O"), "I/O")],
)
def test_errors_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, complaint: str
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UnreadableImageError, match=rf"a\.jpg.*{complaint}"):
        read_image(tmp_path / "a.jpg")


def white_png(path: Path, width: int, height: int) -> Path:
    """Write a PNG with one bit per pixel, small on disk."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data))
            + (kind + data)
            + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = (b"\0" + b"\xff" * ((width + 7) // 8)) * height
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    return path


def test_too_large_a_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    large = white_png(tmp_path / "large.png", 60, 30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_form(read_image(large), 30, 60)
    bomb = white_png(tmp_path / "bomb.png", 67, 30)
    with pytest.raises(UnreadableImageError, match=r"bomb\.png: it is too large.*smaller"):
        read_image(bomb)


def test_a_program_that_accepts_half_images_is_told(
    image: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ValueError, match="LOAD_TRUNCATED_IMAGES") as caught:
        read_image(saved(image, tmp_path / "a.png"))
    # not the image's fault: code that skips unreadable images must not skip them all
    assert not isinstance(caught.value, UnreadableImageError)
