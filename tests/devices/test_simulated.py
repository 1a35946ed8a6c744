"""The simulated device refuses what CUDA refuses, and counts what its host waits for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import nms, roi_align

from .simulated import MixedDevicesError, SimulatedTensor, simulated_cuda

X = torch.arange(6.0).reshape(2, 3)
MASK = X > 2

REFUSED: dict[str, Callable[[Tensor], Any]] = {
    "add": lambda x: x + X,
    "add to the host's": lambda x: X + x[0, 0],
    "in place": lambda x: x.mul_(X),
    "in place on the host": lambda x: X.clone().add_(x),
    "in place on a number of the host": lambda x: torch.tensor(1.0).add_(x[0, 0]),
    "out": lambda x: torch.add(x, 1, out=torch.empty(2, 3)),
    "product": lambda x: x @ X.T,
    "linear": lambda x: nn.functional.linear(x, X),
    "cat": lambda x: torch.cat([x, X]),
    "stack of numbers": lambda x: torch.stack([x[0, 0], torch.tensor(1.0)]),
    "where": lambda x: torch.where(MASK, x, x),
    "mask": lambda x: x.masked_fill(MASK, 0.0),
    "mask in place": lambda x: x.masked_fill_(MASK, 0.0),
    "index on the device": lambda x: X[x[0].long().clamp(max=1)],
    "mask on the device": lambda x: X[x > 2],
    "values of the host": lambda x: x.__setitem__(x > 2, torch.tensor([1.0, 2.0, 3.0])),
    "gather": lambda x: x.gather(1, torch.zeros(2, 1, dtype=torch.int64)),
    "index_select": lambda x: x.index_select(0, torch.tensor([0])),
    "split by the host's": lambda x: torch.bucketize(x, torch.tensor([1.0])),
    "nms": lambda x: nms(x.new_zeros(3, 4), torch.zeros(3), 0.5),
    "roi_align": lambda x: roi_align(x[None, None], torch.zeros(1, 5), 2),
    "module": lambda x: nn.Linear(3, 4)(x),
    "numpy": lambda x: x.numpy(),
    "asarray": lambda x: np.asarray(x),
}
ACCEPTED: dict[str, tuple[Callable[[Tensor], Any], list[str]]] = {
    "number": (lambda x: x + 1, []),
    "number of the host": (lambda x: x + torch.tensor(1.0), []),
    "cpu": (lambda x: x.cpu(), ["to host"]),
    "tolist": (lambda x: x.tolist(), ["to host"]),
    "item": (lambda x: x[0, 0].item(), ["_local_scalar_dense"]),
    "bool": (lambda x: bool((x > 9).any()), ["_local_scalar_dense"]),
    "copy to": (lambda x: x.copy_(X), ["to device"]),
    "copy from": (lambda x: torch.empty(2, 3).copy_(x), ["to host"]),
    "to": (lambda x: X.to(x.device), ["to device"]),
    "tensor": (lambda x: torch.tensor([1.0, 2.0], device="cuda"), ["to device"]),
    "new_tensor": (lambda x: x.new_tensor([1.0, 2.0]), ["to device"]),
    "factories": (lambda x: torch.zeros(2, device="cuda") + torch.arange(2, device="cuda"), []),
    "new_full": (lambda x: x.new_full((2,), 1.0) + x.new_zeros(2), []),
    "nonzero": (lambda x: x.nonzero(), ["nonzero"]),
    "mask": (lambda x: x[x > 2], ["mask"]),
    "mask of the host": (lambda x: x[MASK], ["to device"]),
    "rows": (lambda x: x[torch.zeros(1, dtype=torch.int64, device="cuda")], []),
    "rows of the host": (lambda x: x[torch.tensor([0])], ["to device"]),
    "fill by mask": (lambda x: x.__setitem__(x > 2, 0.0), []),
    "fill rows": (lambda x: x.__setitem__(x[0].long().clamp(max=1), 0.0), ["to device"]),
    "values by mask": (lambda x: x.__setitem__(x > 2, x[x > 2]), ["mask", "mask"]),
    "where": (lambda x: torch.where(x > 2, x, 0.0), []),
    "nms": (lambda x: nms(x.new_zeros(3, 4), x.new_zeros(3), 0.5), ["nms"]),
    "roi_align": (lambda x: roi_align(x[None, None], x.new_zeros(1, 5), 2), []),
    "module": (lambda x: nn.Linear(3, 4).cuda()(x), ["to device"] * 2),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cuda_refuses(name: str, inference: bool) -> None:
    with simulated_cuda(), torch.inference_mode(inference):
        x = X.clone().cuda()
        with pytest.raises((MixedDevicesError, TypeError), match=r"on one device|Tensor\.cpu"):
            REFUSED[name](x)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", ACCEPTED)
def test_what_the_host_waits_for(name: str, inference: bool) -> None:
    run, waits = ACCEPTED[name]
    with simulated_cuda() as device, torch.inference_mode(inference):
        x = X.clone().cuda()
        device.waits.clear()
        found = run(x)
        assert [wait.kind for wait in device.waits] == waits
        if isinstance(found, Tensor) and name not in ("cpu", "copy from"):
            assert isinstance(found, SimulatedTensor)
            assert found.device == x.device == torch.device("cuda:0")
            assert found.is_cuda


def test_values_views_and_gradients_are_those_of_the_cpu() -> None:
    with simulated_cuda():
        x = X.clone().cuda()
        x[0] = 7
        x[:, 1:].mul_(2)
        assert x.tolist() == [[7, 14, 14], [3, 8, 10]]
        assert torch.equal(x.cpu(), torch.tensor([[7.0, 14, 14], [3, 8, 10]]))
        weight = nn.Parameter(X.clone()).cuda()
        assert (x * weight).sum().requires_grad
        with torch.autocast("cuda", dtype=torch.bfloat16):
            assert (x @ weight.T).dtype == torch.bfloat16
            assert (x * weight).dtype == torch.float32


def test_torch_is_left_as_it_was() -> None:
    before = torch.cuda.is_available, torch.backends.cudnn.enabled
    with simulated_cuda():
        assert torch.cuda.is_available()
    assert (torch.cuda.is_available, torch.backends.cudnn.enabled) == before
    assert not torch.cuda.is_available()
    assert type(nn.Linear(1, 1).double().weight) is nn.Parameter
