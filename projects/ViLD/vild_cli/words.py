"""Comma lists of words, as users type them."""

from __future__ import annotations

import re
from collections.abc import Iterable

# a quoted word, which may hold the signs that separate words, or one without quotes
_WORDS = re.compile(r'[^\S\n]*"([^"\n]*)"[^\S\n]*(?=[,;\n]|$)|([^,;\n]+)')
# a word of a list in Python or JSON
_LISTED = re.compile("\\[.*\\]|'.*'|\u2018.*\u2019|\u201c.*\u201d|`.*`")


def split_words(text: str) -> list[str]:
    """Return the words of a comma list.

    Args:
        text: words separated by commas, semicolons or line breaks; in double quotes a word may
            hold these. Empty words are left out.

    Raises:
        ValueError: a list in the syntax of Python or JSON, or a word that was cut within brackets.

    >>> split_words('cat, "bow, tie"; red panda')
    ['cat', 'bow, tie', 'red panda']
    """
    words = []
    for quoted, bare in _WORDS.findall(text):
        if _is_cut(bare.strip()):
            raise ValueError(
                f"expected words separated by commas, without brackets or quotes around them, got "
                f"{bare.strip()[:40]!r}: put a word that has these in double quotes"
            )
        words.append((quoted or bare).strip())
    return [word for word in words if word]


def join_words(words: Iterable[str]) -> str:
    """Return a comma list that :func:`split_words` reads back; words are quoted where needed.

    >>> join_words(["cat", "bow, tie"])
    'cat, "bow, tie"'
    """
    return ", ".join(
        f'"{word}"' if re.search("[,;\n]", word) or _is_cut(word) else word for word in words
    )


def _is_cut(word: str) -> bool:
    """Return whether a word looks like a part of a list, or was separated within brackets."""
    unbalanced = any(word.count(left) != word.count(right) for left, right in ("()", "[]", "{}"))
    return unbalanced or _LISTED.fullmatch(word) is not None
