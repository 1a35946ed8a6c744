"""Images and words as careless or hostile users give them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

FINE = " s, of "  # of a page's answer: nothing is wrong with it


def _image(mode: str = "RGB", size: tuple[int, int] = (90, 60)) -> Image.Image:
    image = Image.new("RGB", size, (40, 90, 160))
    ImageDraw.Draw(image).ellipse((size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2), "red")
    return image.convert(mode)


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a size, and has hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 64))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + data + chunk(b"IEND", b"")


def _rotated() -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    return _encoded(_image(), "JPEG", exif=exif)


def _animated() -> bytes:
    frames = [_image(), _image().rotate(90, expand=True)]
    return _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(255 - value for value in data[middle : middle + 40]) + b"\0" * 40


# name -> contents, and what has to be in the message; some are sound, but of unusual kinds
IMAGES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.jpg": (lambda: b"", "it is empty"),
    "one_byte.png": (lambda: b"\x89", "not an image format"),
    "truncated.jpg": (lambda: _encoded(_image(), "JPEG")[:400], "cut short or damaged"),
    "truncated.png": (lambda: _encoded(_image(), "PNG")[:120], "cut short or damaged"),
    "half.webp": (lambda: _encoded(_image(), "WEBP")[:60], "cannot read the image"),
    "no_end.jpg": (lambda: _encoded(_image(), "JPEG")[:-2], "cut short or damaged"),
    "flipped.png": (lambda: _flipped(_encoded(_image(), "PNG")), "cut short or damaged"),
    "bomb.png": (lambda: png_header(20_000, 20_000), "too large"),
    "large.png": (lambda: png_header(9_000, 9_000), "9000 x 9000 pixels"),
    "lying.png": (lambda: png_header(500, 400), "cut short or damaged"),
    "no_size.png": (lambda: png_header(0, 10), "cannot read the image"),
    "drawing.svg": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image format"),
    "script.svg": (lambda: b"<svg onload=alert(1)></svg>", "not an image format"),
    "text.jpg": (lambda: b"this is text\n" * 40, "not an image format"),
    "page.jpg": (lambda: b"<!DOCTYPE html><h1>404</h1>", "not an image format"),
    "zeros.bmp": (lambda: bytes(2000), "not an image format"),
    "script.eps": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
    "floats.tiff": (
        lambda: _encoded(Image.fromarray(np.ones((5, 5), np.float32)), "TIFF"),
        "unknown range",
    ),
    "archive.jpg": (lambda: b"PK\x03\x04" + bytes(100), "not an image format"),
    "video.png": (lambda: b"\0\0\0\x18ftypmp42" + bytes(100), "cannot read the image"),
    "dots..and spaces ü★.png": (lambda: _encoded(_image(), "PNG"), FINE),
    "no_ending": (lambda: _encoded(_image(), "PNG"), FINE),
    "cmyk.jpg": (lambda: _encoded(_image("CMYK"), "JPEG"), FINE),
    "one_pixel.png": (lambda: _encoded(_image(size=(1, 1)), "PNG"), FINE),
    "ruler.png": (lambda: _encoded(_image(size=(1200, 1)), "PNG"), FINE),
    "animated.gif": (_animated, FINE),
    "wide_grey.png": (
        lambda: _encoded(Image.fromarray(np.arange(4800, dtype=np.uint16).reshape(60, 80)), "PNG"),
        FINE,
    ),
    "rotated.jpg": (_rotated, FINE),
    "grey.png": (lambda: _encoded(_image("L"), "PNG"), FINE),
    "palette.png": (lambda: _encoded(_image("P"), "PNG"), FINE),
    "transparent.png": (lambda: _encoded(_image("RGBA"), "PNG"), FINE),
    "black_and_white.png": (lambda: _encoded(_image("1"), "PNG"), FINE),
}

# words as typed, and what has to be in the message
WORDS: dict[str, tuple[str, str]] = {
    "nothing": ("", "expected words"),
    "spaces": ("   \n  ", "expected words"),
    "commas": (",,, ,", "expected words"),
    "twice": ("crow, owl, crow", "the class 'crow' is there 2 times"),
    "long": ("a" * 201, "at most 200 are allowed"),
    "very long": ("word " * 5000, "at most 200 are allowed"),
    "too many": (", ".join(f"word {n}" for n in range(100_000)), "got 100000"),
    "marks alone": ("!!!, ???", FINE),
    "emoji": ("🦉, 🐦‍⬛", FINE),
    "other scripts": ("птица, 鸟, طائر, ציפור", FINE),
    "a tag": ("<script>alert(1)</script>", FINE),
    "a path": ("../../etc/passwd", FINE),
    "braces": ("{}, {0}, %s, \\n", FINE),
    "zero": ("crow\x00\x07, owl", r"with the character '\x00': remove it"),
    "escape": ("owl, \x1bcrow", r"with the character '\x1b': remove it"),
    "half a character": ("\ud800, owl", r"with the character '\ud800': remove it"),
    "marks of direction": ("\u202ecrow\u200f, \u2066owl\u2069", FINE),
    "no width": ("cr\u200bow\u200d, owl\ufeff", FINE),
    "no width twice": ("cr\u200bow, crow", "have the same prompts"),
    "one line of a megabyte": ("x" * 1_000_000, "at most 200 are allowed"),
    "empty lines": ("\n" * 300_000, "expected words"),
    "a list of Python": ("['crow', 'owl']", "without brackets or quotes around them"),
    "a list of JSON": ('["crow", "owl"]', "without brackets or quotes around them"),
    "an accent apart": ("cafe\u0301", FINE),
    "other case": ("Crow, crow", "have the same prompts"),
    "quoted": ('"crow, hooded", owl', FINE),
    "trailing comma": ("crow, owl,", FINE),
    "lines": ("crow\nowl\r\nemu", FINE),
    "one letter": ("a", FINE),
    "digits": ("1, 2, 3", FINE),
    "long but allowed": ("very " * 39 + "red", FINE),
    "a file's name": ("lvis_v1_val", FINE),
}


def write_images(folder: Path) -> dict[str, Path]:
    """Write all of ``IMAGES``; returns name -> file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (make, _) in IMAGES.items():
        (folder / name).write_bytes(make())
    return {name: folder / name for name in IMAGES}
