"""Read images. Proposals, crops and training all decode images with :func:`read_image`."""

from __future__ import annotations

import os
import re
import unicodedata
import warnings
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

_ORIENTATION = 274  # orientation tag of EXIF and TIFF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_END_OF_JPEG = b"\xff\xd9"
# 16-bit greyscale; for some files, and in older Pillow versions, the mode is I
_WIDE_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")


class UnreadableImageError(ValueError):
    """A file that cannot be read as a complete image. The message names it and the reason."""


def read_image(path: str | os.PathLike[str], max_pixels: int | None = None) -> np.ndarray:
    """Read an image as RGB, upright.

    - The EXIF orientation is applied. A broken EXIF block is ignored, as in Detectron2.
    - The first frame of an animation is used.
    - Transparency is dropped: a pixel has the colour stored for it, as with Pillow's
      ``convert("RGB")`` and Detectron2's ``read_image``.
    - 16-bit greyscale is scaled so that 65535 becomes 255. Pillow would clip values at 255, which
      turns such an image white.
    - Of 16-bit colour channels, the upper 8 bits are used; colour profiles are not applied. Pillow
      does the same.

    Args:
        path: a local file in any format that Pillow reads, except PostScript, which Pillow hands to
            another program.
        max_pixels: larger images are refused before decoding.

    Returns:
        (H, W, 3) uint8 RGB, contiguous and writeable.

    Raises:
        UnreadableImageError: the file is missing, empty, truncated, damaged, not readable, not
            an image, too large (over ``max_pixels``, or twice ``PIL.Image.MAX_IMAGE_PIXELS``),
            or has pixel values of an unknown range.
        ValueError: Pillow is configured to load truncated images.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ValueError(
            "expected PIL.ImageFile.LOAD_TRUNCATED_IMAGES to be False, as it is by default, but "
            "something in this program set it: half an image would be read as a whole one. Set "
            "it back to False."
        )
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _decode(file, max_pixels)
    except (UnreadableImageError, MemoryError):
        raise
    except FileNotFoundError:
        reason = "there is no such file. Check the path and the dataset's image folder"
    except PermissionError:
        reason = "this user may not read it. Change its permissions"
    except IsADirectoryError:
        reason = "it is a folder. Name an image in it"
    except UnidentifiedImageError:
        reason = _what_else(path)
    except Image.DecompressionBombError as error:
        reason = (
            f"it is too large ({error}). Make it smaller or, if you trust the file, raise "
            "PIL.Image.MAX_IMAGE_PIXELS"
        )
    # Pillow's decoders raise many exception types on damaged data: OSError for truncated files, but
    # also SyntaxError, struct.error, zlib.error, IndexError, OverflowError.
    except Exception as error:
        reason = (
            f"its data are cut short or damaged ({type(error).__name__}: {error}). Download or "
            "copy it again"
        )
    raise UnreadableImageError(f"cannot read the image {path}: {reason}.") from None


def image_pixels(image: Image.Image) -> np.ndarray:
    """Return the pixels of a Pillow image as :func:`read_image` returns those of its file.

    Args:
        image: an image of any mode; its EXIF orientation is applied.

    Returns:
        (H, W, 3) uint8 RGB, contiguous and writeable.

    Raises:
        UnreadableImageError: its file is damaged, or its pixel values have an unknown range.
    """
    where = getattr(image, "filename", "") or "given as a Pillow image"
    try:
        image.load()
        return _rgb(image, where)
    except (UnreadableImageError, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise many exception types
        reason = f"its data are cut short or damaged ({type(error).__name__}: {error})"
        raise UnreadableImageError(f"cannot read the image {where}: {reason}.") from None


def _decode(file: BinaryIO, max_pixels: int | None) -> np.ndarray:
    """Decode an open file for :func:`read_image`; Pillow's errors are not caught."""
    with warnings.catch_warnings():
        # Pillow warns from MAX_IMAGE_PIXELS (common for panoramas) and raises from twice that
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image: Image.Image = Image.open(file)
    if max_pixels is not None and image.width * image.height > max_pixels:
        raise _refused(
            file.name,
            f"it has {image.width} x {image.height} pixels, and at most {max_pixels} are accepted. "
            "Make it smaller",
        )
    if image.format == "EPS":
        raise _refused(file.name, "it is PostScript, a program. Convert it to PNG or JPEG")
    scan = file.tell()
    # Load before reading the orientation: Pillow turns a TIFF while loading it and then removes the
    # orientation tag.
    image.load()
    if image.format == "JPEG":
        # A truncated download in a file of the full size ends in zeros, which decode to grey.
        # Markers do not occur within a scan, so the end marker shows whether it is complete.
        file.seek(scan)
        if _END_OF_JPEG not in file.read():
            raise OSError("the end of the image is missing")
    return _rgb(image, file.name)


def _rgb(image: Image.Image, where: str) -> np.ndarray:
    """Return the pixels of a loaded image, turned upright."""
    turn = _TURNS.get(_orientation(image))
    if image.mode == "F":
        raise _refused(
            where, "its values are floats of an unknown range. Convert it to 8 bits a channel"
        )
    if image.mode in _WIDE_MODES:
        image = _narrowed(image, where)
    if turn is not None:
        image = image.transpose(turn)
    if image.mode != "RGB":
        # Pillow would try to keep a transparent colour, and warn if it cannot
        transparency = image.info.pop("transparency", None)
        converted = image.convert("RGB")
        if transparency is not None:  # the image may belong to the caller
            image.info["transparency"] = transparency
        image = converted
    return np.array(image)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # cameras write broken EXIF into sound images
        return 1


def _narrowed(image: Image.Image, where: str) -> Image.Image:
    """Scale 16-bit greyscale to 0…255 with rounding."""
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise _refused(
            where,
            f"expected grey values of 16 bits, 0 to 65535, got {low} to {high}. Convert it to 8 "
            "bits a channel",
        )
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _refused(where: str, reason: str) -> UnreadableImageError:
    return UnreadableImageError(f"cannot read the image {where}: {reason}.")


def _what_else(path: Path) -> str:
    """Describe a file that Pillow does not recognise as an image."""
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        return "it is empty. Download or copy it again"
    return (
        f"it is not an image format that Pillow can read; it begins with {start!r}. Is it an error "
        "page or a text with an image's name? Download it again"
    )


class ImageFinder:
    """Find images below a folder by the file names in annotations.

    Annotation tools may write backslashes, ``%20``, other upper and lower case, another Unicode
    normalisation, or leading folders. Each folder is listed once.

    Args:
        root: folder of the images.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.fspath(root)
        self._names: dict[str, set[str]] = {}
        self._folded: dict[str, dict[str, str | None]] = {}

    def path(self, name: str) -> str:
        """Return the path of the image that ``name`` means; ``root/name`` if it is not found."""
        folder, base = os.path.split(name)
        if base in self._listed(folder):
            return os.path.join(self.root, name)
        for spelling in (name, unquote(name)):
            parts = [part for part in re.split(r"[\\/]", spelling) if part]
            found = self._resolve(parts)
            # drop leading folders that do not exist below the root
            while found is None and len(parts) > 1 and self._is_superfluous(parts[0]):
                del parts[0]
                found = self._resolve(parts)
            if found is not None:
                return os.path.join(self.root, found)
        return os.path.join(self.root, name)

    def _is_superfluous(self, folder: str) -> bool:
        return folder != ".." and self._resolve([folder]) is None

    def _resolve(self, parts: list[str]) -> str | None:
        """Return the path below the root that matches the parts in any case and Unicode form."""
        place = ""
        for part in parts:
            known = part in self._listed(place)
            actual = part if known else self._folded_names(place).get(_fold(part))
            if actual is None:
                return None
            place = os.path.join(place, actual)
        return place or None

    def _listed(self, folder: str) -> set[str]:
        if folder not in self._names:
            try:
                self._names[folder] = set(os.listdir(os.path.join(self.root, folder)))
            except (OSError, ValueError):  # missing folder or invalid name
                self._names[folder] = set()
        return self._names[folder]

    def _folded_names(self, folder: str) -> dict[str, str | None]:
        """Return names by their case-folded form; None for a form that several names share."""
        if folder not in self._folded:
            folded: dict[str, str | None] = {}
            for name in self._listed(folder):
                folded[_fold(name)] = None if _fold(name) in folded else name
            self._folded[folder] = folded
        return self._folded[folder]


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
