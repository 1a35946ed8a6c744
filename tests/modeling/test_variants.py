"""The table of variants."""

from __future__ import annotations

import re

import pytest

from vild.modeling import VARIANTS, ViLDROIHeads, find_variant


def test_the_facts_of_every_variant() -> None:
    facts = ("trained", "background", "distilled", "image_head", "teacher_at_test")
    found = {
        name: [fact for fact in facts if getattr(variant, fact)]
        for name, variant in VARIANTS.items()
    }
    assert found == {
        "text": ["trained", "background"],
        "image": ["trained", "distilled"],
        "vild": ["trained", "background", "distilled"],
        "ensemble": ["trained", "background", "distilled", "image_head"],
        "clip": ["teacher_at_test"],
        "text_clip": ["trained", "background", "teacher_at_test"],
    }
    assert all(find_variant(name).name == name for name in VARIANTS)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"VARIANT to be one of \('text', .*got 'both'"):
        find_variant("both")


def test_the_documented_variants_are_those_of_the_table() -> None:
    rows = re.findall(r"^    (\w+)  +\w", ViLDROIHeads.__doc__ or "", flags=re.MULTILINE)
    assert rows == ["variant", *VARIANTS]
