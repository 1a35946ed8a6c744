"""Arguments that several tools share."""

from __future__ import annotations

import argparse

import pytest

from vild.data import find_split, require_split
from vild_cli.arguments import comma_separated, positive_float, positive_int


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "nan", "many", ""])
def test_counts_have_to_be_positive_integers(text: str) -> None:
    assert positive_int("3") == 3
    with pytest.raises(argparse.ArgumentTypeError, match="expected an integer of at least 1, got"):
        positive_int(text)


@pytest.mark.parametrize("text", ["0", "-0.5", "nan", "inf", "many", ""])
def test_sizes_have_to_be_positive_and_finite(text: str) -> None:
    assert positive_float("1.5") == 1.5
    with pytest.raises(argparse.ArgumentTypeError, match="expected a number above 0, got"):
        positive_float(text)


def test_an_unknown_split_is_refused_with_near_misses() -> None:
    require_split("lvis_v1_val")
    with pytest.raises(ValueError, match=r"in DATASETS\.TEST, got 'lvis_v1_vla'.*'lvis_v1_val'"):
        require_split("lvis_v1_vla", "a registered split in DATASETS.TEST")
    with pytest.raises(ValueError, match=r"got 'xyz'.*Registered: \['.*'lvis_v1_val'"):
        find_split("xyz")


def test_a_list_of_a_program_is_no_comma_separated() -> None:
    assert comma_separated('a, "b, c"') == ["a", "b, c"]
    with pytest.raises(argparse.ArgumentTypeError, match="without brackets or quotes around them"):
        comma_separated("['a', 'b']")
