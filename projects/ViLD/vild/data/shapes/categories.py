"""The classes of ``shapes``: compositions of a shape, a colour and a pattern."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vild.data.annotations import Category
from vild.data.shapes.outlines import OUTLINES

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (208, 44, 48),
    "green": (44, 158, 66),
    "blue": (44, 88, 216),
    "yellow": (238, 204, 48),
    "purple": (146, 58, 186),
    "white": (238, 238, 238),
}
PATTERNS = ("plain", "striped", "dotted", "checkered")
_SYNONYM = {
    "plain": "solid {colour} {shape}",
    "striped": "{colour} {shape} with stripes",
    "dotted": "{colour} {shape} with dots",
    "checkered": "{colour} {shape} with checks",
}

# Numbers of frequent, common and rare classes. Rare classes are novel, and their shapes are never
# labelled, like the nouns of LVIS's rare classes: text embeddings alone would solve a new
# composition of a labelled shape, colour and pattern.
FREQUENT, COMMON, NOVEL = 20, 22, 18
UNSEEN_SHAPES = 3
# Number of looks (pairs of colour and pattern). Several classes of different shapes share each
# look, so colour and pattern alone do not identify a class.
LOOKS = 10
NOVEL_SHARE = 0.175  # share of all objects; if too few are in the images, distillation cannot help
ZIPF = 0.8  # frequency of a base class ~ rank ** -ZIPF


@dataclass(frozen=True)
class Composition:
    """Appearance of an object: shape, colour and pattern."""

    shape: str
    colour: str
    pattern: str

    @property
    def name(self) -> str:
        """Class name, for example "striped red star"."""
        return f"{self.pattern} {self.colour} {self.shape}"

    @property
    def look(self) -> tuple[str, str]:
        """Colour and pattern."""
        return self.colour, self.pattern

    @property
    def synonym(self) -> str:
        """Alternative name, for example "red star with stripes"."""
        return _SYNONYM[self.pattern].format(colour=self.colour, shape=self.shape)


ALL_COMPOSITIONS = tuple(
    Composition(shape, colour, pattern)
    for shape, colour, pattern in itertools.product(OUTLINES, COLOURS, PATTERNS)
)


@dataclass(frozen=True)
class ShapesVocabulary:
    """The classes of one seed, in the order of their ids (1, 2, …).

    Attributes:
        compositions: one per class.
        frequency: ``f``, ``c`` or ``r`` per class; ``r`` marks the novel ones.
        weights: probability that an object is of the class; sums to 1.
    """

    compositions: tuple[Composition, ...]
    frequency: tuple[str, ...]
    weights: tuple[float, ...]

    @property
    def novel(self) -> tuple[bool, ...]:
        """Novel flag per class."""
        return tuple(f == "r" for f in self.frequency)

    def categories(self) -> list[Category]:
        """Return the classes in the form used to register datasets."""
        return [
            Category(row + 1, c.name, (c.name, c.synonym), f, None)
            for row, (c, f) in enumerate(zip(self.compositions, self.frequency, strict=True))
        ]


def _draw_looks(rng: np.random.RandomState) -> list[tuple[str, str]]:
    """Draw pairs of colour and pattern such that every colour and every pattern occurs."""
    pairs = list(itertools.product(COLOURS, PATTERNS))
    while True:
        looks = [pairs[i] for i in rng.permutation(len(pairs))[:LOOKS]]
        colours, patterns = (set(names) for names in zip(*looks, strict=True))
        if len(colours) == len(COLOURS) and len(patterns) == len(PATTERNS):
            return looks


@lru_cache(maxsize=8)  # called once per image
def shapes_vocabulary(seed: int) -> ShapesVocabulary:
    """Draw the classes of a seed.

    Args:
        seed: other seeds give other classes from the same colours, shapes and patterns.
    """
    # RandomState's streams never change, unlike those of numpy's Generator
    rng = np.random.RandomState([seed, 1])
    unseen = {list(OUTLINES)[i] for i in rng.permutation(len(OUTLINES))[:UNSEEN_SHAPES]}
    looks = _draw_looks(rng)
    seen = [c for c in ALL_COMPOSITIONS if c.shape not in unseen and c.look in looks]
    seen = [seen[i] for i in rng.permutation(len(seen))]
    base = FREQUENT + COMMON
    # All unseen shapes share the same looks. With only one unseen shape per look, it could be
    # recognised by excluding the labelled ones.
    shared = looks[: NOVEL // UNSEEN_SHAPES]
    novel = [c for c in ALL_COMPOSITIONS if c.shape in unseen and c.look in shared]
    chosen = [*seen[:base], *novel]
    frequency = ["f"] * FREQUENT + ["c"] * COMMON + ["r"] * NOVEL
    ranks = np.arange(1, base + 1, dtype=np.float64)
    zipf = np.round(ranks**-ZIPF, 9)  # rounded because the last bit of pow differs between machines
    weights = [*(zipf / math.fsum(zipf) * (1 - NOVEL_SHARE)), *([NOVEL_SHARE / NOVEL] * NOVEL)]
    # the order of ids is unrelated to frequency, as in LVIS
    order = rng.permutation(len(chosen))
    return ShapesVocabulary(
        tuple(chosen[i] for i in order),
        tuple(frequency[i] for i in order),
        tuple(float(weights[i]) for i in order),
    )
