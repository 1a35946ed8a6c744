"""How far an experiment of several commands is, for a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tqdm import tqdm


class StageBar:
    """One progress bar over all stages, in seconds as they were estimated.

    Args:
        total: seconds of all stages.
        done: seconds of those that are done.
        shown: whether to show it; it never is where the standard error is no terminal.
    """

    def __init__(self, total: float, done: float, shown: bool) -> None:
        shown = shown and sys.stderr.isatty()
        form = "{percentage:3.0f}%|{bar}| {elapsed}{postfix}"
        self.bar = tqdm(
            total=total, initial=done, disable=not shown, bar_format=form, dynamic_ncols=True
        )
        self.total, self.done = total, done
        self.estimated, self.took = 0.0, 0.0

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.close()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.bar.write(text, file=sys.stdout)
        sys.stdout.flush()

    def finished(self, title: str, estimate: float, seconds: float) -> None:
        """A command is done.

        Args:
            title: of its stage.
            estimate: seconds that it was thought to take.
            seconds: that it took.
        """
        self.done += estimate
        self.estimated, self.took = self.estimated + estimate, self.took + seconds
        self.say(f"    {title}: {shown_time(seconds)}")

    def show(self, running: Sequence[tuple[float, float]], words: str) -> None:
        """Show how far the estimates say that the running commands are.

        Args:
            running: (seconds so far, seconds that it was thought to take) of each.
            words: what one of them said last.
        """
        # never quite done before it is
        part = sum(min(so_far, 0.98 * estimate) for so_far, estimate in running)
        self.bar.n = min(self.done + part, self.total)
        # this machine against the one of the estimates, as far as has been seen
        estimated = self.estimated + part
        took = self.took + sum(so_far for so_far, _ in running)
        pace = took / estimated if estimated > 20 else 1.0
        left = (self.total - self.bar.n) * pace / max(1, len(running))
        self.bar.set_postfix_str(f"about {shown_time(left)} left; {words}")


def shown_time(seconds: float) -> str:
    """Seconds for people: ``8 s``, ``2 min 5 s``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
