"""Normalisation of pooled regions: any number of them, zero and one included.

Shapes: R regions, C channels, and H x W cells of a pooled region where there are any.
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
    """Batch norm whose statistics are those of all processes, on GPUs and on CPUs.

    torch's own refuses CPUs, as DistributedDataParallel refuses any module of its type, and its
    running statistics are wrong or NaN after a batch of no or one value per channel. Here such a
    batch is normalised by the running statistics and leaves them alone. A process without regions
    takes part in the exchange, always in float32. The host never waits for a GPU.
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
        # the squares around the mean: no difference of large numbers
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
    """The sum over all processes; its gradient is the sum of their gradients."""

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
    """A normalisation layer by name.

    Args:
        name: one of ``NORMS``; Detectron2's "" is ``none``, too.
        channels: C.
        flat: for (R, C), after a fully connected layer; otherwise for (R, C, H, W).
        eps: added to the variance.
        momentum: weight of a new batch in the running statistics of ``BN`` and ``SyncBN``.

    Raises:
        ValueError: another name, or too few channels for groups of them.
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
    """Apply a layer of :func:`make_norm` to (R, C) or (R, C, H, W), whatever R is."""
    alone = not isinstance(norm, SyncBatchNorm) or comm.get_world_size() == 1
    if (
        isinstance(norm, nn.modules.batchnorm._BatchNorm)
        and norm.training
        and alone
        and x.numel() == x.shape[1]
    ):
        # One value per channel has no variance, and torch refuses it.
        return _by_running_statistics(norm, x)
    return norm(x)  # without regions this leaves the running statistics alone


def _by_running_statistics(norm: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    return functional.batch_norm(
        x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    )
