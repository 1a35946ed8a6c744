"""A progress bar for experiments of several commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tqdm import tqdm


class StageBar:
    """One progress bar for all stages, in units of estimated seconds, if stderr is a terminal.

    Args:
        total: estimated seconds of all stages.
        done: estimated seconds of the finished stages.
    """

    def __init__(self, total: float, done: float) -> None:
        form = "{percentage:3.0f}%|{bar}| {elapsed}{postfix}"
        self.bar = tqdm(
            total=total, initial=done, disable=None, bar_format=form, dynamic_ncols=True
        )
        self.total, self.done = total, done
        self.estimated, self.elapsed = 0.0, 0.0

    def close(self) -> None:
        """Close the bar at its current position."""
        self.bar.close()

    def print(self, text: str) -> None:
        """Print a line above the bar."""
        self.bar.write(text, file=sys.stdout)
        sys.stdout.flush()

    def finished(self, title: str, estimate: float, seconds: float) -> None:
        """Record that a command has finished.

        Args:
            title: title of its stage.
            estimate: estimated seconds.
            seconds: actual seconds.
        """
        self.done += estimate
        self.estimated, self.elapsed = self.estimated + estimate, self.elapsed + seconds
        self.print(f"    {title}: {format_time(seconds)}")

    def show(self, running: Sequence[tuple[float, float]], line: str) -> None:
        """Update the bar with the estimated progress of the running commands.

        Args:
            running: (elapsed seconds, estimated seconds) of each.
            line: the last line that one of them printed.
        """
        # cap at 98 % until finished
        part = sum(min(so_far, 0.98 * estimate) for so_far, estimate in running)
        self.bar.n = min(self.done + part, self.total)
        # speed of this machine relative to the estimates, as observed so far
        estimated = self.estimated + part
        took = self.elapsed + sum(so_far for so_far, _ in running)
        pace = took / estimated if estimated > 20 else 1.0
        left = (self.total - self.bar.n) * pace / max(1, len(running))
        self.bar.set_postfix_str(f"about {format_time(left)} left; {line}")


def format_time(seconds: float) -> str:
    """Format seconds: ``8 s``, ``2 min 5 s``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
