"""The mapping from variables of an official checkpoint to parameters of this model.

The official names are TensorFlow's: unnamed layers are numbered in order of creation. Kernels are
(height, width, in, out) or (in, out), pooled regions are flattened in H, W, C order, and box deltas
are (dy, dx, dh, dw).

Shapes: K classes, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # of res2 to res5, by depth
LEVELS = range(2, 7)  # of the pyramid
ANCHORS = 3  # per location
CHANNELS = 256  # of pyramid and heads
HIDDEN = 1024  # of the fully connected layers
CELLS = 7  # sides of a pooled region
HEAD = "frcnn_layer_0/fast_rcnn_head"
TEXT = f"{HEAD}/class-predict/kernel"  # (D, K), frozen, not in the model's state

Arrange = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Variable:
    """A variable of the checkpoint and the parameter it becomes.

    Attributes:
        official: name in the checkpoint.
        shape: shape in the checkpoint.
        ours: name of the parameter or buffer in this model.
        arrange: converts the checkpoint's array to the layout of this model.
    """

    official: str
    shape: tuple[int, ...]
    ours: str
    arrange: Arrange


def model_variables(depth: int, ensemble: bool, dimension: int) -> list[Variable]:
    """List all variables of a model except the text embeddings.

    Args:
        depth: depth of the ResNet, a key of ``BLOCKS``.
        ensemble: True with an image head (``double_branch``), False with one head (``vanilla``).
        dimension: D.
    """
    return [
        *_resnet(depth),
        *_pyramid(),
        *_rpn(),
        *_heads(ensemble, dimension),
        *_mask_head(),
    ]


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _kernel(array: np.ndarray) -> np.ndarray:
    """Transpose the kernel of a convolution (h, w, in, out) or deconvolution (h, w, out, in)."""
    return array.transpose(3, 2, 0, 1)


def _dense(array: np.ndarray) -> np.ndarray:
    return array.T


def _first_dense(array: np.ndarray) -> np.ndarray:
    """Reorder rows in H, W, C order to columns in C, H, W order."""
    cells = array.reshape(CELLS, CELLS, -1, array.shape[1])
    return cells.transpose(3, 2, 0, 1).reshape(array.shape[1], -1)


def _deltas(array: np.ndarray) -> np.ndarray:
    """Reorder each anchor's (dy, dx, dh, dw) along the first axis to (dx, dy, dw, dh)."""
    return array.reshape(-1, 4, *array.shape[1:])[:, [1, 0, 3, 2]].reshape(array.shape)


def _norm(scope: str, channels: int, ours: str) -> Iterator[Variable]:
    names = {"gamma": "weight", "beta": "bias"}
    names |= {"moving_mean": "running_mean", "moving_variance": "running_var"}
    for theirs, own in names.items():
        yield Variable(f"{scope}/{theirs}", (channels,), f"{ours}.{own}", _same)


def _convolution(
    scope: str, shape: tuple[int, ...], ours: str, biases: int = 0, then: Arrange = _same
) -> Iterator[Variable]:
    """Yield a kernel (h, w, in, out) and its biases, if any."""
    yield Variable(f"{scope}/kernel", shape, f"{ours}.weight", lambda array: then(_kernel(array)))
    if biases:
        yield Variable(f"{scope}/bias", (biases,), f"{ours}.bias", then)


def _linear(
    scope: str, shape: tuple[int, int], ours: str, arrange: Arrange = _dense, then: Arrange = _same
) -> Iterator[Variable]:
    yield Variable(f"{scope}/kernel", shape, f"{ours}.weight", lambda array: then(arrange(array)))
    yield Variable(f"{scope}/bias", (shape[1],), f"{ours}.bias", then)


def _numbered(name: str, number: int) -> str:
    return f"{name}_{number}" if number else name


def _resnet(depth: int) -> Iterator[Variable]:
    """Yield the ResNet; a block's shortcut projection comes first (official nn_blocks.py)."""
    number = 0

    def layer(side: int, inputs: int, outputs: int, ours: str) -> Iterator[Variable]:
        nonlocal number
        scope = f"resnet{depth}/{_numbered('conv2d', number)}"
        yield from _convolution(scope, (side, side, inputs, outputs), ours)
        scope = f"resnet{depth}/{_numbered('batch_normalization', number)}"
        yield from _norm(scope, outputs, f"{ours}.norm")
        number += 1

    bottom_up = "backbone.bottom_up"
    yield from layer(7, 3, 64, f"{bottom_up}.stem.conv1")
    inputs = 64
    for stage, blocks in enumerate(BLOCKS[depth]):
        width = 64 * 2**stage
        for block in range(blocks):
            ours = f"{bottom_up}.res{stage + 2}.{block}"
            if block == 0:
                yield from layer(1, inputs, 4 * width, f"{ours}.shortcut")
            yield from layer(1, inputs, width, f"{ours}.conv1")
            yield from layer(3, width, width, f"{ours}.conv2")
            yield from layer(1, width, 4 * width, f"{ours}.conv3")
            inputs = 4 * width


def _pyramid() -> Iterator[Variable]:
    square = (3, 3, CHANNELS, CHANNELS)
    for level in LEVELS[:-1]:
        lateral = (1, 1, 64 * 2**level, CHANNELS)
        yield from _convolution(f"fpn/l{level}", lateral, f"backbone.fpn_lateral{level}", CHANNELS)
        scope = f"fpn/post_hoc_d{level}"
        yield from _convolution(scope, square, f"backbone.fpn_output{level}", CHANNELS)
    yield from _convolution("fpn/p6", square, "backbone.top_block.conv", CHANNELS)
    for level in LEVELS:
        yield from _norm(f"fpn/p{level}-bn", CHANNELS, f"backbone.norms.p{level}")


def _rpn() -> Iterator[Variable]:
    ours, square = "proposal_generator.rpn_head", (3, 3, CHANNELS, CHANNELS)
    for layer, suffix in enumerate(("", "-1")):
        scope = f"rpn_head/rpn{suffix}"
        yield from _convolution(scope, square, f"{ours}.conv.conv{layer}", CHANNELS)
        for place, level in enumerate(LEVELS):
            scope = f"rpn_head/rpn-l{level}-bn{suffix}"
            yield from _norm(scope, CHANNELS, f"{ours}.norms.{place}.{layer}")
    scores = (1, 1, CHANNELS, ANCHORS)
    yield from _convolution("rpn_head/rpn-class", scores, f"{ours}.objectness_logits", ANCHORS)
    deltas = (1, 1, CHANNELS, 4 * ANCHORS)
    scope = "rpn_head/rpn-box"
    yield from _convolution(scope, deltas, f"{ours}.anchor_deltas", 4 * ANCHORS, _deltas)


def _heads(ensemble: bool, dimension: int) -> Iterator[Variable]:
    ours = "roi_heads"
    projection = (HIDDEN, dimension)
    yield from _box_head("", 0, f"{ours}.box_head")
    scope = f"{HEAD}/project-to-clip"
    yield from _linear(scope, projection, f"{ours}.box_predictor.projection")
    if ensemble:
        yield from _box_head("distill_", 6, f"{ours}.image_head.box_head")
        scope = f"{HEAD}/distill-project-to-clip"
        yield from _linear(scope, projection, f"{ours}.image_head.projection")
    scope, own = f"{HEAD}/background-class-predict/kernel", f"{ours}.box_predictor.classifier"
    yield Variable(scope, (dimension, 1), f"{own}.background", np.ravel)
    scope, own = f"{HEAD}/box-predict", f"{ours}.box_predictor.bbox_pred"
    yield from _linear(scope, (HIDDEN, 4), own, then=_deltas)


def _box_head(prefix: str, first_norm: int, ours: str) -> Iterator[Variable]:
    """Yield four convolutions and two fully connected layers; norms are numbered consecutively."""
    for layer in range(4):
        shape = (3, 3, CHANNELS, CHANNELS)
        yield from _convolution(
            f"{HEAD}/{prefix}conv_{layer}", shape, f"{ours}.convs.{layer}", CHANNELS
        )
        scope = f"{HEAD}/{_numbered('batch_normalization', first_norm + layer)}"
        yield from _norm(scope, CHANNELS, f"{ours}.conv_norms.{layer}")
    flat = CELLS * CELLS * CHANNELS
    for layer, (inputs, arrange) in enumerate(((flat, _first_dense), (HIDDEN, _dense))):
        yield from _linear(
            f"{HEAD}/{prefix}fc{6 + layer}", (inputs, HIDDEN), f"{ours}.fcs.{layer}", arrange
        )
        scope = f"{HEAD}/{_numbered('batch_normalization', first_norm + 4 + layer)}"
        yield from _norm(scope, HIDDEN, f"{ours}.fc_norms.{layer}")


def _mask_head() -> Iterator[Variable]:
    ours = "roi_heads.mask_head"
    layers = [(f"mask-conv-l{n}", 3) for n in range(4)] + [("conv5-mask", 2)]
    for number, (name, side) in enumerate(layers):
        shape = (side, side, CHANNELS, CHANNELS)
        yield from _convolution(f"mask_head/{name}", shape, f"{ours}.convs.{number}", CHANNELS)
        scope = f"mask_head/{_numbered('batch_normalization', number)}"
        yield from _norm(scope, CHANNELS, f"{ours}.norms.{number}")
    scope = "mask_head/mask_fcn_logits"
    yield from _convolution(scope, (1, 1, CHANNELS, 1), f"{ours}.predictor", 1)
