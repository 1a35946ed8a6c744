"""The ResNet v1 and FPN of the official code (modeling/architecture/resnet.py, fpn.py).

Shapes: N images, C channels; features are (N, C, H / stride, W / stride).
"""

from __future__ import annotations

from functools import partial

import fvcore.nn.weight_init as weight_init
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BasicStem
from torch import Tensor, nn
from torch.nn import functional

from vild.modeling.box_head import BN_EPSILON, BN_MOMENTUM
from vild.modeling.norms import make_norm

COARSEST = 64  # stride of P6; images are padded to multiples of it


class SameStem(BasicStem):
    """Detectron2's stem with TensorFlow's ``SAME`` padding in the max pooling.

    For an even number of pixels, 3-wide windows at stride 2 start at pixel 0 instead of before it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) to (N, C, H / 4, W / 4); H and W are multiples of 4."""
        x = functional.relu(self.conv1(x))
        return functional.max_pool2d(x, kernel_size=3, stride=2, ceil_mode=True)


class StridedP6(nn.Module):
    """P6: a convolution of stride 2 with ``SAME`` padding on P5, before P5's normalisation.

    Args:
        channels: C of P5 and of P6.
    """

    num_levels = 1
    in_feature = "p5"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2)
        weight_init.c2_xavier_fill(self.conv)  # Glorot uniform, since inputs = outputs

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return [P6], given P5 with even sides."""
        return [self.conv(functional.pad(x, (0, 1, 0, 1)))]


class NormalisedFPN(FPN):
    """Detectron2's FPN with normalisation only on its outputs, one layer per level.

    Args:
        bottom_up: backbone with features of strides 4 to 32.
        in_features: names of these features.
        out_channels: C.
        norm: see :func:`vild.modeling.norms.make_norm`.
    """

    def __init__(
        self, bottom_up: nn.Module, in_features: list[str], out_channels: int, norm: str
    ) -> None:
        super().__init__(bottom_up, in_features, out_channels, top_block=StridedP6(out_channels))
        self.norms = nn.ModuleDict(
            {name: official_norm(norm, out_channels) for name in self.output_shape()}
        )

    @property
    def size_divisibility(self) -> int:
        """Divisor of the sides of a padded image, in pixels."""
        return COARSEST

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images (N, 3, H, W) to p2, ..., p6."""
        return {name: self.norms[name](level) for name, level in super().forward(x).items()}


def official_norm(name: str, channels: int) -> nn.Module:
    """Make a normalisation layer for (N, C, H, W) with the official epsilon.

    Args:
        name: see :func:`vild.modeling.norms.make_norm`.
        channels: C.
    """
    return make_norm(name, channels, flat=False, eps=BN_EPSILON, momentum=BN_MOMENTUM)


@BACKBONE_REGISTRY.register()
def build_official_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> NormalisedFPN:
    """Build R50, R101 or R152 with FPN from Detectron2's ``MODEL.RESNETS`` and ``MODEL.FPN``.

    Args:
        cfg: configuration.
        input_shape: shape of the images.

    Raises:
        ValueError: the ResNet has no bottlenecks, or strides in its 1x1 convolutions; the official
            weights support neither.
    """
    resnets = cfg.MODEL.RESNETS
    if resnets.DEPTH not in (50, 101, 152) or resnets.STRIDE_IN_1X1:
        raise ValueError(
            "expected MODEL.RESNETS.DEPTH to be 50, 101 or 152 and STRIDE_IN_1X1: False, got "
            f"{resnets.DEPTH} and {resnets.STRIDE_IN_1X1}"
        )
    norm = partial(official_norm, resnets.NORM)
    stages = ResNet.make_default_stages(resnets.DEPTH, norm=norm, stride_in_1x1=False)
    bottom_up = ResNet(
        SameStem(input_shape.channels, resnets.STEM_OUT_CHANNELS, norm),
        stages,
        out_features=resnets.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
    return NormalisedFPN(
        bottom_up, cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.FPN.NORM
    )
