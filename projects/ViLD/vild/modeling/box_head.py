"""Box heads, which map pooled region features to embeddings (official vild_head.py).

Shapes: R regions, C channels, H x W cells of a pooled region, D embedding. R may be 0 anywhere.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY
from torch import Tensor, nn
from torch.nn import functional

from vild.modeling.float32 import at_least_float32, without_autocast
from vild.modeling.norms import make_norm, normalise

BN_EPSILON = 1e-4  # official batch_norm_activation
# Detectron2's value; at the official 0.003 the initial statistics linger for thousands of steps
BN_MOMENTUM = 0.1


@ROI_BOX_HEAD_REGISTRY.register()
class ViLDBoxHead(nn.Module):
    """A box head of 3x3 convolutions and fully connected layers, with normalisation and ReLU.

    Unlike in Detectron2's heads, the fully connected layers are normalised too, and every layer
    has a bias in addition to its normalisation, because the official checkpoints contain them.

    Args:
        input_shape: channels, height and width of a pooled region.
        conv_dim: channels of a convolution.
        num_conv: number of convolutions.
        fc_dim: width of a fully connected layer.
        num_fc: number of fully connected layers.
        norm: ``SyncBN``, ``BN``, ``GN`` or ``none``.
        momentum: weight of a new batch in the running statistics of ``BN`` and ``SyncBN``.

    Raises:
        ValueError: ``norm`` is unknown, or the input shape lacks channels, height or width.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        conv_dim: int = 256,
        num_conv: int = 4,
        fc_dim: int = 1024,
        num_fc: int = 2,
        norm: str = "SyncBN",
        momentum: float = BN_MOMENTUM,
    ) -> None:
        super().__init__()
        channels, height, width = input_shape.channels, input_shape.height, input_shape.width
        if None in (channels, height, width):
            raise ValueError(
                f"expected channels, height and width as the input shape, got {input_shape}"
            )
        statistics = {"eps": BN_EPSILON, "momentum": momentum}
        self.convs, self.conv_norms = nn.ModuleList(), nn.ModuleList()
        for _ in range(num_conv):
            conv = nn.Conv2d(channels, conv_dim, kernel_size=3, padding=1)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)
            self.convs.append(conv)
            self.conv_norms.append(make_norm(norm, conv_dim, flat=False, **statistics))
            channels = conv_dim
        channels *= height * width
        self.fcs, self.fc_norms = nn.ModuleList(), nn.ModuleList()
        for _ in range(num_fc):
            fc = nn.Linear(channels, fc_dim)
            _initialise(fc)
            self.fcs.append(fc)
            self.fc_norms.append(make_norm(norm, fc_dim, flat=True, **statistics))
            channels = fc_dim
        self.out_channels = channels

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Read the arguments from Detectron2's ``MODEL.ROI_BOX_HEAD``."""
        head = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "conv_dim": head.CONV_DIM,
            "num_conv": head.NUM_CONV,
            "fc_dim": head.FC_DIM,
            "num_fc": head.NUM_FC,
            "norm": head.NORM,
        }

    @property
    def output_shape(self) -> ShapeSpec:
        """Shape of the features, as Detectron2's predictors expect it."""
        return ShapeSpec(channels=self.out_channels)

    def forward(self, pooled: Tensor) -> Tensor:
        """Map pooled regions (R, C, H, W) to features (R, fc_dim)."""
        x = pooled
        for conv, norm in zip(self.convs, self.conv_norms, strict=True):
            x = functional.relu(normalise(norm, conv(x)))
        x = x.flatten(1)  # C, H, W order; the official code flattens in H, W, C order
        for fc, norm in zip(self.fcs, self.fc_norms, strict=True):
            x = functional.relu(normalise(norm, fc(x)))
        return x


class Projection(nn.Linear):
    """A linear layer from box head features to the teacher's embedding space, L2-normalised.

    Args:
        channels: number of input features.
        dimension: D.
    """

    def __init__(self, channels: int, dimension: int) -> None:
        super().__init__(channels, dimension)
        _initialise(self)

    def forward(self, features: Tensor) -> Tensor:
        """Return embeddings (R, D), L2-normalised, in at least float32 even under autocast."""
        with without_autocast(features):
            return functional.normalize(super().forward(at_least_float32(features)), dim=1)


class EmbeddingHead(nn.Module):
    """A box head with a projection: the image head of ViLD-ensemble.

    Args:
        box_head: any Detectron2 box head; (R, C, H, W) -> (R, channels).
        dimension: D.
    """

    def __init__(self, box_head: nn.Module, dimension: int) -> None:
        super().__init__()
        self.box_head = box_head
        self.projection = Projection(flat_channels(box_head.output_shape), dimension)

    def forward(self, pooled: Tensor) -> Tensor:
        """Map pooled regions (R, C, H, W) to embeddings (R, D)."""
        return self.projection(self.box_head(pooled).flatten(1))


def flat_channels(shape: ShapeSpec) -> int:
    """Return the number of features of a region after flattening."""
    return int(shape.channels * (shape.height or 1) * (shape.width or 1))


def _initialise(linear: nn.Linear) -> None:
    nn.init.xavier_uniform_(linear.weight)  # the default of TensorFlow's dense layers
    nn.init.zeros_(linear.bias)
