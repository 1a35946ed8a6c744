"""One computation on the CPU and on the simulated device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from .simulated import SimulatedCuda, SimulatedTensor, simulated_cuda


def compare(
    run: Callable[[str], Any], *, rtol: float = 1e-5, atol: float = 1e-5
) -> tuple[Any, SimulatedCuda]:
    """Require the same values of ``run("cpu")`` and ``run("cuda")``.

    Args:
        run: gives tensors, Instances, or lists and dicts of them, all on its device.
        rtol: relative tolerance.
        atol: absolute tolerance.

    Returns:
        what it gives on the CPU; and the device.
    """
    torch.manual_seed(0)
    expected = _tensors(run("cpu"))
    with simulated_cuda() as device:
        torch.manual_seed(0)
        found = _tensors(run("cuda"))
        assert all(isinstance(x, SimulatedTensor) for x in found.values()), found
        values = {key: x.detach().cpu() for key, x in found.items()}
    torch.testing.assert_close(
        values, {key: x.detach() for key, x in expected.items()}, rtol=rtol, atol=atol
    )
    return expected, device


def _tensors(x: Any, name: str = "") -> dict[str, Tensor]:
    """All tensors in ``x``, by where they are."""
    if isinstance(x, Tensor):
        return {name: x}
    if isinstance(x, Boxes):
        return {name: x.tensor}
    if isinstance(x, Instances):
        x = x.get_fields()
    items = x.items() if isinstance(x, dict) else enumerate(x)
    return {key: y for k, v in items for key, y in _tensors(v, f"{name}.{k}").items()}
