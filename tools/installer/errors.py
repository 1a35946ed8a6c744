"""The error that the set-up reports to the user."""


class SetupError(Exception):
    """Raised when the set-up can't continue; the message says what is wrong and what to do."""
