"""Where a simulated device works."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _no_real_device() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, on which -m gpu tests more")
    if not torch.backends.cuda.is_built():
        pytest.skip("needs a torch that is built with CUDA")
