"""Normalisation layers for pooled regions, for any number of regions including zero and one.

Shapes: R regions, C channels, H x W cells of a pooled region (absent after flattening).
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.utils import comm
from torch import Tensor, distributed, nn
from torch.nn import functional

NORMS = ("SyncBN", "BN", "GN", "none")
GROUPS = 32


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch norm with statistics over all ranks, on GPUs and on CPUs.

    ``torch.nn.SyncBatchNorm`` does not run on CPUs, where DistributedDataParallel refuses it too,
    and its running statistics become wrong or NaN after a batch with at most one value per channel.
    This layer normalises such a batch by the running statistics and does not update them. Ranks
    without regions take part in the all-reduce, which is always in float32. The host never waits
    for a GPU.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim not in (2, 4):
            raise ValueError(f"expected (R, C) or (R, C, H, W), got shape {tuple(input.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (R, C) or (R, C, H, W)."""
        if not self.training or comm.get_world_size() == 1:
            return super().forward(x)
        self._check_input_dim(x)
        values = x.float()
        others = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = values.new_full((1,), x.numel() // x.shape[1])
        total = _Sum.apply(torch.cat([values.sum(others), count]))
        count = total[-1].detach()
        enough = count > 1  # fewer values have no variance
        mean = torch.where(enough, total[:-1] / count.clamp(min=1), self.running_mean)
        # squared deviations from the mean avoid the difference of two large numbers
        centred = values - mean.view(shape)
        squares = _Sum.apply(centred.square().sum(others))
        variance = torch.where(enough, squares / count.clamp(min=1), self.running_var)
        with torch.no_grad():
            weight = self.momentum * enough
            self.num_batches_tracked += enough
            self.running_mean.lerp_(mean, weight)
            self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), weight)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(shape) + self.bias.view(shape)).to(x.dtype)


class _Sum(torch.autograd.Function):
    """A differentiable all-reduce sum; its gradient is the sum of the gradients of all ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total


def make_norm(name: str, channels: int, *, flat: bool, eps: float, momentum: float) -> nn.Module:
    """Make a normalisation layer by name.

    Args:
        name: one of ``NORMS``; Detectron2's "" also means ``none``.
        channels: C.
        flat: for (R, C), after a fully connected layer; otherwise for (R, C, H, W).
        eps: added to the variance.
        momentum: weight of a new batch in the running statistics of ``BN`` and ``SyncBN``.

    Raises:
        ValueError: the name is unknown, or there are too few channels for ``GN``.
    """
    if name == "SyncBN":
        return SyncBatchNorm(channels, eps=eps, momentum=momentum)
    if name == "BN":
        return (nn.BatchNorm1d if flat else nn.BatchNorm2d)(channels, eps=eps, momentum=momentum)
    if name == "GN":
        if flat and channels < 2 * GROUPS:
            raise ValueError(
                f"expected fully connected layers of at least {2 * GROUPS} values for GN, whose "
                f"{GROUPS} groups would hold one value each and become 0; got {channels}"
            )
        return nn.GroupNorm(GROUPS, channels)
    if name in ("none", ""):
        return nn.Identity()
    raise ValueError(f"expected the norm {', '.join(NORMS[:-1])} or {NORMS[-1]}, got {name!r}")


def normalise(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer of :func:`make_norm` to (R, C) or (R, C, H, W), for any R."""
    alone = not isinstance(norm, SyncBatchNorm) or comm.get_world_size() == 1
    if (
        isinstance(norm, nn.modules.batchnorm._BatchNorm)
        and norm.training
        and alone
        and x.numel() == x.shape[1]
    ):
        # torch refuses a single value per channel, which has no variance
        return _by_running_statistics(norm, x)
    return norm(x)  # with R = 0 this does not update the running statistics


def _by_running_statistics(norm: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    return functional.batch_norm(
        x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    )
