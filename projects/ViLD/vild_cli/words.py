"""Parse and write comma-separated lists of words."""

from __future__ import annotations

import re
from collections.abc import Iterable

# a quoted word, which may contain separators, or an unquoted one
_WORDS = re.compile(r'[^\S\n]*"([^"\n]*)"[^\S\n]*(?=[,;\n]|$)|([^,;\n]+)')
# an item of a list in Python or JSON syntax
_LISTED = re.compile("\\[.*\\]|'.*'|\u2018.*\u2019|\u201c.*\u201d|`.*`")


def split_words(text: str) -> list[str]:
    """Return the words of a comma-separated list.

    Args:
        text: words separated by commas, semicolons or line breaks; a double-quoted word may
            contain separators. Empty words are dropped.

    Raises:
        ValueError: a list in the syntax of Python or JSON, or a separator within brackets.

    >>> split_words('cat, "bow, tie"; red panda')
    ['cat', 'bow, tie', 'red panda']
    """
    words = []
    for quoted, bare in _WORDS.findall(text):
        if _is_cut(bare.strip()):
            raise ValueError(
                f"expected words separated by commas, without brackets or quotes around them, got "
                f"{bare.strip()[:40]!r}: put words that contain these in double quotes"
            )
        words.append((quoted or bare).strip())
    return [word for word in words if word]


def join_words(words: Iterable[str]) -> str:
    """Return a comma-separated list that :func:`split_words` can read; quote words where needed.

    >>> join_words(["cat", "bow, tie"])
    'cat, "bow, tie"'
    """
    return ", ".join(
        f'"{word}"' if re.search("[,;\n]", word) or _is_cut(word) else word for word in words
    )


def _is_cut(word: str) -> bool:
    """Return whether a word looks like part of a list, or was split within brackets."""
    unbalanced = any(word.count(left) != word.count(right) for left, right in ("()", "[]", "{}"))
    return unbalanced or _LISTED.fullmatch(word) is not None
