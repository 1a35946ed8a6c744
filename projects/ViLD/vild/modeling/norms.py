"""Normalisation of pooled regions: any number of them, zero and one included.

Shapes: R regions, C channels, and H x W cells of a pooled region where there are any.
"""

from __future__ import annotations

import torch
from detectron2.utils import comm
from torch import Tensor, distributed, nn
from torch.distributed.nn import functional as collective
from torch.nn import functional
from torch.nn.modules._functions import SyncBatchNorm as synchronised_batch_norm

NORMS = ("SyncBN", "BN", "GN", "none")
GROUPS = 32


class SyncBatchNorm(nn.BatchNorm2d):
    """Statistics over all processes, on GPUs and between CPU processes.

    torch's own refuses the latter, and so does DistributedDataParallel for any module of its type;
    on GPUs this runs the same function as torch's. A process without regions takes part in the
    exchange; where no process has any, the running statistics serve.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim not in (2, 4):
            raise ValueError(f"expected (R, C) or (R, C, H, W), got shape {tuple(input.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (R, C) or (R, C, H, W)."""
        if not self.training or comm.get_world_size() == 1:
            return super().forward(x)
        self._check_input_dim(x)
        if x.is_cpu:
            return self._over_gloo(x)
        if not x.numel():
            # torch would send statistics in the features' own type, while its peers send float32
            # even of half precision.
            x = x.float()
        self.num_batches_tracked += 1
        statistics = (self.running_mean, self.running_var, self.eps, self.momentum)
        group = distributed.group.WORLD
        return synchronised_batch_norm.apply(
            x, self.weight, self.bias, *statistics, group, comm.get_world_size()
        )

    def _over_gloo(self, x: Tensor) -> Tensor:
        """Mean first, then the squares around it: no difference of large numbers."""
        values = x.float()
        others = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = values.new_tensor([x.numel() / x.shape[1]])
        total = collective.all_reduce(torch.cat([values.sum(others), count]))
        count = total[-1].detach()
        if count <= 1:  # no variance: as for one process alone
            total = total.sum() * 0  # the peers wait for this process in backward
            return _by_running_statistics(self, values + total).to(x.dtype)
        mean = total[:-1] / count
        centred = values - mean.view(shape)
        variance = collective.all_reduce(centred.square().sum(others)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(shape) + self.bias.view(shape)).to(x.dtype)


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
