"""Turn class names into prompts for the text encoder.

Sources: ViLD's appendix D and its public demo (name cleaning, articles, "This is").
The sets of templates and the values of ``--templates`` are in :mod:`vild.embeddings.text`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources

MAX_NAME_LENGTH = 200  # characters of a class name; CLIP reads 77 tokens
SINGLE_TEMPLATE = "a photo of {article} {}."
# Direction marks, soft hyphens and zero-width spaces, which copied text may contain; zero-width
# joiners are removed only where they have no meaning, i.e. outside emoji and some scripts.
_INVISIBLE = re.compile(
    "[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff]"
    "|(?<![^\x00-\x7f])[\u200c\u200d]+|[\u200c\u200d]+(?![^\x00-\x7f])"
)


def clean_name(name: str) -> str:
    """Return a class name as it appears in prompts. Names with equal results share their prompts.

    Lower case; Unicode in NFKC, without invisible characters; ``_`` becomes a space and ``/``
    becomes " or "; no trailing dot; single spaces.

    >>> clean_name("Bow_(decorative_ribbons)")
    'bow (decorative ribbons)'
    """
    # normalise again after lower(), whose results may contain characters that compose
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", name))
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower())
    text = text.replace("_", " ").replace("/", " or ")
    return " ".join(text.split()).rstrip(". ")


def article(name: str) -> str:
    """Return the article of ``name``: "an" before a, e, i, o, u, else "a"."""
    return "an" if name[:1] in ("a", "e", "i", "o", "u") else "a"


def fill(template: str, name: str) -> str:
    """Return one prompt.

    Args:
        template: ``{}`` stands for the name, ``{article}`` for "a" or "an".
        name: a class name; it is cleaned first.

    Returns:
        the sentence; one that begins with "a" or "the" is prefixed with "This is ".

    >>> fill("a photo of {article} {}.", "alarm_clock")
    'This is a photo of an alarm clock.'
    """
    text = clean_name(name)
    # not str.format: a class name may contain braces
    prompt = template.replace("{article}", article(text)).replace("{}", text)
    # any word that begins with "a", as in the public demo, not only the article
    return f"This is {prompt}" if prompt.startswith(("a", "the")) else prompt


def check_templates(templates: Sequence[str], where: str) -> tuple[str, ...]:
    """Return the templates as a tuple.

    Raises:
        ValueError: the list is empty, or a template has no place for the name.
    """
    if not templates:
        raise ValueError(f"{where}: expected at least one prompt template, got none")
    for template in templates:
        if "{}" not in template:
            raise ValueError(
                f"{where}: expected '{{}}' where the class name goes, got the template {template!r}"
            )
    return tuple(templates)


@lru_cache(maxsize=1)
def vild_templates() -> tuple[str, ...]:
    """Return the 63 templates of ViLD's public demo.

    The file must never change: detectors and text embeddings record only the name of the set.
    """
    text = resources.files("vild.data").joinpath("prompt_templates_vild.txt")
    return check_templates(text.read_text(encoding="utf-8").splitlines(), "the ViLD templates")
