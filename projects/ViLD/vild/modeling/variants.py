"""The variants of ViLD and what distinguishes them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """One variant of the detector (paper, sec. 3.2 to 3.4; ``text_clip``: sec. 4).

    Attributes:
        name: value of ``MODEL.VILD.VARIANT``.
        trained: whether it has a box head to train; otherwise only the teacher classifies regions.
        background: whether the classifier has a background class.
        distilled: whether it is trained on the teacher's region embeddings.
        image_head: whether distillation trains a separate head, whose scores are fused.
        teacher_at_test: whether detection needs the teacher's region embeddings.
    """

    name: str
    trained: bool = True
    background: bool = True
    distilled: bool = False
    image_head: bool = False
    teacher_at_test: bool = False


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("text"),
        Variant("image", background=False, distilled=True),
        Variant("vild", distilled=True),
        Variant("ensemble", distilled=True, image_head=True),
        Variant("clip", trained=False, background=False, teacher_at_test=True),
        Variant("text_clip", teacher_at_test=True),
    )
}


def find_variant(name: str) -> Variant:
    """Return the variant of a name.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in VARIANTS:
        raise ValueError(
            f"expected MODEL.VILD.VARIANT to be one of {tuple(VARIANTS)}, got {name!r}"
        )
    return VARIANTS[name]
