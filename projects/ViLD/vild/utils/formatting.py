"""Format text for people: sizes, suggestions, and names in table cells."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable
from difflib import get_close_matches

_UNITS = ("KB", "MB", "GB", "TB")
# Characters that Markdown would interpret; underscores within a word are plain text.
_MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")


def format_size(size: float) -> str:
    """Return a number of bytes with a unit and at least two digits.

    >>> format_size(4_200_000)
    '4.2 MB'
    """
    if size < 1000:
        return f"{size:.0f} bytes"
    unit = min(int(math.log10(size * 1.0005) / 3), len(_UNITS))
    number = size / 1000**unit
    return f"{number:.{1 if number < 99.95 else 0}f} {_UNITS[unit - 1]}"


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return a question that suggests up to three similar names; empty if there are none.

    Args:
        word: the unknown name.
        known: the possible names.
        cutoff: minimum similarity, from 0 to 1; see :func:`difflib.get_close_matches`.
    """
    near = get_close_matches(word, list(known), n=3, cutoff=cutoff)
    return f"Did you mean {' or '.join(map(repr, near))}?" if near else ""


def markdown_cell(text: str) -> str:
    """Return text for a Markdown table cell: on one line, with markup escaped."""
    return html.escape(_MARKUP.sub(r"\\\g<0>", " ".join(text.split())), quote=False)


_FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # a cell that begins with one of these is a formula


def csv_cell(text: str) -> str:
    """Return text for a csv cell that spreadsheets do not run as a formula."""
    return f"'{text}" if text.lstrip("'").startswith(_FORMULAS) else text


def csv_text(cell: str) -> str:
    """Return the original text of a cell made by :func:`csv_cell`."""
    quoted = cell.startswith("'") and cell.lstrip("'").startswith(_FORMULAS)
    return cell[1:] if quoted else cell
