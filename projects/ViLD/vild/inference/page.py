"""A result page: one html file that holds its images and opens from disk."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import jinja2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from vild.data.files import atomic_path


@dataclass(frozen=True)
class PageFigure:
    """An image or a plot.

    Attributes:
        source: ``data:`` URL.
        alt: what is to be seen, for those who cannot.
        caption: below it.
        wide: whether it takes the whole width.
    """

    source: str
    alt: str
    caption: str = ""
    wide: bool = True

    @classmethod
    def of_plot(cls, plot: Figure, alt: str, caption: str = "") -> PageFigure:
        """A plot, as PNG."""
        file = io.BytesIO()
        plot.savefig(file, format="png", dpi=110)
        return cls(_data_url(file.getvalue(), "png"), alt, caption)

    @classmethod
    def of_picture(cls, picture: np.ndarray, alt: str, caption: str = "") -> PageFigure:
        """(H, W, 3) uint8 RGB, as JPEG."""
        file = io.BytesIO()
        Image.fromarray(picture).save(file, format="jpeg", quality=85)
        return cls(_data_url(file.getvalue(), "jpeg"), alt, caption, wide=False)


@dataclass(frozen=True)
class PageTable:
    """A table.

    Attributes:
        headings: of the columns.
        rows: cells as text.
        numbers: index of the first column of numbers, which are set to the right.
        marked: indices of rows that are emphasised.
        code: whether cells of text are commands.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: int = 1
    marked: tuple[int, ...] = ()
    code: bool = False


@dataclass(frozen=True)
class PageSection:
    """A heading with what belongs to it, in this order."""

    title: str
    text: str = ""
    table: PageTable | None = None
    figures: Sequence[PageFigure] = field(default_factory=tuple)


def write_page(
    path: str | os.PathLike[str], title: str, lead: str, sections: Sequence[PageSection]
) -> None:
    """Write the page; everything that is not an image is escaped.

    Args:
        path: html file.
        title: of the page.
        lead: the result in a sentence or two.
        sections: in order.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vild.inference"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("page.html").render(title=title, lead=lead, sections=sections)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _data_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
