"""Input images given on a command line: files, globs and folders."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

# extensions to search for in folders; a file given by name may have any extension
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".avif", ".jp2"),
    *(".tif", ".tiff", ".gif", ".ppm", ".pgm"),
)
VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp"),
)


def find_images(inputs: Sequence[str]) -> list[Path]:
    """List the files given by the inputs, each once, in the order of the inputs.

    Args:
        inputs: files, patterns (``photos/*.jpg``, ``**`` for any depth) or folders, which are
            searched recursively in alphabetical order. In folders and patterns, macOS's "._"
            files are skipped.

    Raises:
        ValueError: an input matches nothing, or is a video.
    """
    found: dict[Path, None] = {}
    for text in inputs:
        if not text.strip():  # an empty input would mean the current folder
            raise ValueError(f"expected images, got the empty path {text!r}")
        if Path(text).suffix.lower() in VIDEO_SUFFIXES and Path(text).is_file():
            raise ValueError(f"expected images, got the video {text}: use --video-input {text}")
        path = Path(text)
        if path.is_dir():
            own = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        elif path.is_file():
            own = [path]
        else:
            own = [p for p in map(Path, sorted(glob.glob(text, recursive=True))) if p.is_file()]
        if not path.is_file():
            own = [p for p in own if not p.name.startswith("._")]
        if not own:
            kind = (
                f"no image ({', '.join(SUFFIXES)}) in the folder"
                if path.is_dir()
                else "no such file"
            )
            raise ValueError(f"expected images at {text}: {kind}")
        found.update(dict.fromkeys(own))
    return list(found)
