"""Helpers that keep cosines and losses in float32 under autocast.

Cosines are multiplied by 100 before a softmax, too much for 16 bits. The precision of everything
else is chosen in :mod:`vild.precision`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Convert to float32; float64 is kept."""
    return values if values.dtype == torch.float64 else values.float()


def without_autocast(values: Tensor) -> torch.autocast:
    """Return a context that disables autocast on the device of ``values``."""
    return torch.autocast(values.device.type, enabled=False)
