"""The precision in which networks compute: ``fp32``, or 16 bits with autocast.

Weights keep their dtype, and operations that need more than 16 bits leave autocast themselves (see
:mod:`vild.modeling.float32`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

AUTO = "auto"
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(precision: str, device: str | torch.device) -> str:
    """Return ``fp32``, ``bf16`` or ``fp16``.

    Args:
        precision: one of them, or ``auto``: ``bf16`` if the device supports it natively, else
            ``fp32``, because emulated bf16 is slower than fp32.
        device: where to compute.

    Raises:
        ValueError: unknown precision.
    """
    if precision != AUTO:
        if precision not in PRECISIONS:
            known = ", ".join((AUTO, *PRECISIONS))
            raise ValueError(f"expected a precision of {known}, got {precision!r}")
        return precision
    device = torch.device(device)
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if device.type == "cpu" and _cpu_computes_in_bf16() else "fp32"


def autocast(precision: str, device: str | torch.device) -> AbstractContextManager[object]:
    """Return a context in which a device's operations run in the given precision.

    Args:
        precision: ``fp32``, ``bf16`` or ``fp16``.
        device: where they run.
    """
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(torch.device(device).type, dtype)


def _cpu_computes_in_bf16() -> bool:
    """Return whether the CPU has bfloat16 matrix products, as far as this PyTorch can tell."""
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        supported = getattr(torch.cpu, name, None)  # PyTorch 2.4 has neither
        if supported is not None and supported():
            return True
    return False
