from __future__ import annotations

import pytest

from vild.utils.formatting import csv_cell, csv_text, format_size


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        *((0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 KB"), (1234, "1.2 KB")),
        *((99_949, "99.9 KB"), (99_951, "100 KB"), (999_499, "999 KB"), (999_600, "1.0 MB")),
        *((4_200_000, "4.2 MB"), (123_456_789_000, "123 GB"), (5e15, "5000 TB")),
    ],
)
def test_sizes(size: float, shown: str) -> None:
    assert format_size(size) == shown


@pytest.mark.parametrize("text", ["=1+1", "'=x", "'owl", "owl", "", "@a", "-", "'"])
def test_cells_of_a_csv_are_read_as_they_were(text: str) -> None:
    assert csv_text(csv_cell(text)) == text
