"""Report errors to users of the command line."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable


def one_line_errors(main: Callable[[], int]) -> Callable[[], int]:
    """Make a tool's ``main`` report bad input in one line, with exit code 2.

    Args:
        main: entry point of the command line; returns the exit code. Its ValueError and OSError are
            shown to the user as messages; any other exception is a bug and keeps its traceback.
    """

    @functools.wraps(main)
    def guarded() -> int:
        try:
            return main()
        except (ValueError, OSError) as error:
            sys.stderr.write(f"error: {error}\n")
            return 2

    return guarded
