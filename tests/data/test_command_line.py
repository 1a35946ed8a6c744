"""Arguments that several tools share."""

from __future__ import annotations

import argparse

import pytest

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


def test_a_python_list_is_not_comma_separated() -> None:
    assert comma_separated('a, "b, c"') == ["a", "b, c"]
    with pytest.raises(argparse.ArgumentTypeError, match="without brackets or quotes around them"):
        comma_separated("['a', 'b']")
