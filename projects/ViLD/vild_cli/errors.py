"""What a user sees of an error."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable


def one_line_errors(main: Callable[[], int]) -> Callable[[], int]:
    """Make a tool's ``main`` report bad input in one line, with exit code 2.

    Args:
        main: entry of the command line; returns the exit code. Its ValueError and OSError are for
            the user to read, any other exception is a defect and keeps its traceback.
    """

    @functools.wraps(main)
    def guarded() -> int:
        try:
            return main()
        except (ValueError, OSError) as error:
            sys.stderr.write(f"error: {error}\n")
            return 2

    return guarded
