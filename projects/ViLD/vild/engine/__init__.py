"""Running the parts: processes and the training loop's hooks."""

from vild.engine.launching import launch

__all__ = ["launch"]
