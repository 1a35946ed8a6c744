"""Cosines are multiplied by 100 before a softmax: they may not be rounded to 16 bits."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision and integers become float32; float32 and float64 stay."""
    return values if values.dtype == torch.float64 else values.float()


def without_autocast(values: Tensor) -> torch.autocast:
    """A context in which autocast leaves the operations on the device of ``values`` alone."""
    return torch.autocast(values.device.type, enabled=False)
