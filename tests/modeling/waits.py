"""A counter, usable on the CPU, of operators after which the host would wait for a GPU."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# operators after which the host waits for a GPU, because it needs their size or value
WAITING = (
    *("nonzero", "_local_scalar_dense", "nms", "_unique2", "unique_consecutive"),
    *("equal", "is_nonzero", "index"),
)


class Waits(TorchDispatchMode):
    """A mode that counts operators for which the host would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function._schema.name.split("::")[1]
        # indexing waits only with a mask, whose True entries must be counted
        masks = name != "index" or any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in WAITING and masks:
            self.found[name] += 1
        return function(*args, **(kwargs or {}))
