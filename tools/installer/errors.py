"""The one error that the set-up reports to its user."""


class SetupError(Exception):
    """The set-up can't go on. The message says what is wrong and what to do about it."""
