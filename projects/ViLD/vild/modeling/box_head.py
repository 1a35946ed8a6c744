"""From pooled region features to embeddings (official vild_head.py).

Shapes: R regions, C channels, H x W cells of a pooled region, D embedding. R may be 0 anywhere.
"""

from __future__ import annotations

from detectron2.layers import ShapeSpec
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn import functional

from vild.modeling.precision import at_least_float32, without_autocast

BN_EPSILON = 1e-4
BN_MOMENTUM = 0.003  # 0.997 in TensorFlow's way of counting
GROUPS = 32
NORMS = ("SyncBN", "BN", "GN", "none")


class ViLDBoxHead(nn.Module):
    """3x3 convolutions, then fully connected layers, each with normalisation and ReLU.

    Unlike in Detectron2's heads, the fully connected layers are normalised, too, and every layer
    has a bias beside its normalisation, as in the official code: its checkpoints contain them.

    Args:
        input_shape: channels, height and width of a pooled region.
        conv_dim: channels of a convolution.
        num_conv: number of convolutions.
        fc_dim: width of a fully connected layer.
        num_fc: number of fully connected layers.
        norm: ``SyncBN``, ``BN``, ``GN`` or ``none``.

    Raises:
        ValueError: another ``norm``, or an input shape without its three sizes.
    """

    def __init__(
        self,
        *,
        input_shape: ShapeSpec | tuple[int, int, int],
        conv_dim: int = 256,
        num_conv: int = 4,
        fc_dim: int = 1024,
        num_fc: int = 2,
        norm: str = "SyncBN",
    ) -> None:
        super().__init__()
        if isinstance(input_shape, ShapeSpec):
            sizes = (input_shape.channels, input_shape.height, input_shape.width)
        else:
            sizes = input_shape
        if None in sizes:
            raise ValueError(f"expected channels, height and width as the input shape, got {sizes}")
        channels, height, width = sizes
        self.convs, self.conv_norms = nn.ModuleList(), nn.ModuleList()
        for _ in range(num_conv):
            conv = nn.Conv2d(channels, conv_dim, kernel_size=3, padding=1)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)
            self.convs.append(conv)
            self.conv_norms.append(_make_norm(norm, conv_dim, nn.BatchNorm2d))
            channels = conv_dim
        channels *= height * width
        self.fcs, self.fc_norms = nn.ModuleList(), nn.ModuleList()
        for _ in range(num_fc):
            self.fcs.append(_make_linear(channels, fc_dim))
            self.fc_norms.append(_make_norm(norm, fc_dim, nn.BatchNorm1d))
            channels = fc_dim
        self.out_channels = channels

    @property
    def output_shape(self) -> ShapeSpec:
        """For Detectron2's predictors."""
        return ShapeSpec(channels=self.out_channels)

    def forward(self, pooled: Tensor) -> Tensor:
        """Features (R, fc_dim) of pooled regions (R, C, H, W)."""
        x = pooled
        for conv, norm in zip(self.convs, self.conv_norms, strict=True):
            x = functional.relu(_normalise(norm, conv(x)))
        x = x.flatten(1)  # C, H, W order; the official code flattens in H, W, C order
        for fc, norm in zip(self.fcs, self.fc_norms, strict=True):
            x = functional.relu(_normalise(norm, fc(x)))
        return x


class EmbeddingHead(nn.Module):
    """A box head and the projection of its features to the teacher's space.

    ``embed(box_head(pooled))`` is ``forward(pooled)``, for callers that need the features as well
    (the box predictor does).

    Args:
        box_head: gives features (R, ``box_head.out_channels``).
        dimension: D.
    """

    def __init__(self, *, box_head: ViLDBoxHead, dimension: int) -> None:
        super().__init__()
        self.box_head = box_head
        self.projection = _make_linear(box_head.out_channels, dimension)

    def embed(self, features: Tensor) -> Tensor:
        """Embeddings (R, D), L2-normalised, at least float32 also under autocast."""
        with without_autocast(features):
            return functional.normalize(self.projection(at_least_float32(features)), dim=1)

    def forward(self, pooled: Tensor) -> Tensor:
        """Embeddings (R, D) of pooled regions (R, C, H, W)."""
        return self.embed(self.box_head(pooled))


def _make_linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(linear.weight)  # the default of TensorFlow's dense layers
    nn.init.zeros_(linear.bias)
    return linear


def _make_norm(name: str, channels: int, batch_norm: type[nn.Module]) -> nn.Module:
    if name == "SyncBN":
        return nn.SyncBatchNorm(channels, eps=BN_EPSILON, momentum=BN_MOMENTUM)
    if name == "BN":
        return batch_norm(channels, eps=BN_EPSILON, momentum=BN_MOMENTUM)
    if name == "GN":
        return nn.GroupNorm(GROUPS, channels)
    if name == "none":
        return nn.Identity()
    raise ValueError(f"expected the norm {', '.join(NORMS[:-1])} or {NORMS[-1]}, got {name!r}")


def _normalise(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply a normalisation to any number of regions."""
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or not norm.training:
        return norm(x)
    if isinstance(norm, nn.SyncBatchNorm) and comm.get_world_size() > 1:
        # A process without regions still has to exchange statistics with the others, who send
        # float32 even when their features are half precision; it would send the features' type.
        return norm(x if x.numel() else x.float())
    if x.numel() == x.shape[1]:
        # One value per channel has no variance, and torch refuses it: the running statistics serve.
        return functional.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )
    return norm(x)  # without regions this leaves the running statistics alone
