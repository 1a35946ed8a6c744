"""Counts the operators after which a GPU's host waits, on the CPU."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# operators after which a GPU's host waits: their result has a size or a value that it needs
WAITING = (
    *("nonzero", "_local_scalar_dense", "nms", "_unique2", "unique_consecutive"),
    *("equal", "is_nonzero", "index"),
)


class Waits(TorchDispatchMode):
    """Counts the operators that a GPU's host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function._schema.name.split("::")[1]
        # indexing waits for a mask alone, whose True entries it has to count
        masks = name != "index" or any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in WAITING and masks:
            self.found[name] += 1
        return function(*args, **(kwargs or {}))
