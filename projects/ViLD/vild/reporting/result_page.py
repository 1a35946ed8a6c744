"""The result page: one self-contained html file with embedded images."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass

import jinja2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from vild.utils.files import atomic_path


@dataclass(frozen=True)
class PageFigure:
    """An image or a plot.

    Attributes:
        source: ``data:`` URL.
        alt: alternative text for screen readers.
        caption: text below the figure.
        wide: whether the figure takes the full width.
    """

    source: str
    alt: str
    caption: str = ""
    wide: bool = True

    @classmethod
    def from_plot(cls, plot: Figure, alt: str, caption: str = "") -> PageFigure:
        """Make a figure from a plot, as PNG."""
        file = io.BytesIO()
        plot.savefig(file, format="png", dpi=110)
        return cls(_data_url(file.getvalue(), "png"), alt, caption)

    @classmethod
    def from_image(cls, image: np.ndarray, alt: str, caption: str = "") -> PageFigure:
        """Make a figure from an image (H, W, 3) uint8 RGB, as JPEG."""
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="jpeg", quality=85)
        return cls(_data_url(file.getvalue(), "jpeg"), alt, caption, wide=False)


@dataclass(frozen=True)
class PageTable:
    """A table.

    Attributes:
        headings: column headings.
        rows: cells as text.
        numbers: index of the first numeric column; numeric columns are right-aligned.
        code: whether text cells are commands.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: int = 1
    code: bool = False


@dataclass(frozen=True)
class PageSection:
    """A section: a heading and its contents, in the order of the fields."""

    title: str
    text: str = ""
    table: PageTable | None = None
    figures: Sequence[PageFigure] = ()


def write_page(
    path: str | os.PathLike[str], title: str, lead: str, sections: Sequence[PageSection]
) -> None:
    """Write the page; all text is escaped.

    Args:
        path: html file.
        title: title of the page.
        lead: the result in one or two sentences.
        sections: sections, in order.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vild.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("result_page.html").render(
        title=title, lead=lead, sections=sections
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _data_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
