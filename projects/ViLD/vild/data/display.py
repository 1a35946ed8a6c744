"""Text for people: sizes, and names in the cells of tables."""

from __future__ import annotations

import html
import math
import re

_UNITS = ("KB", "MB", "GB", "TB")
# what Markdown would take for markup; underscores within a word are plain
_MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")


def shown_size(size: float) -> str:
    """Return a number of bytes with two or more digits and its unit.

    >>> shown_size(4_200_000)
    '4.2 MB'
    """
    if size < 1000:
        return f"{size:.0f} bytes"
    unit = min(int(math.log10(size * 1.0005) / 3), len(_UNITS))
    number = size / 1000**unit
    return f"{number:.{1 if number < 99.95 else 0}f} {_UNITS[unit - 1]}"


def markdown_cell(text: str) -> str:
    """Return text for a cell of a Markdown table, on one line and without a meaning as markup."""
    return html.escape(_MARKUP.sub(r"\\\g<0>", " ".join(text.split())), quote=False)


_FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # beginnings


def csv_cell(text: str) -> str:
    """Return text for a cell of a csv that spreadsheets do not run as a formula."""
    return f"'{text}" if text.lstrip("'").startswith(_FORMULAS) else text


def csv_text(cell: str) -> str:
    """Return the text that :func:`csv_cell` made a cell of."""
    quoted = cell.startswith("'") and cell.lstrip("'").startswith(_FORMULAS)
    return cell[1:] if quoted else cell
