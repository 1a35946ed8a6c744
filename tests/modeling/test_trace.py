"""From features to detections, each step compared with plain loops from the formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import nn
from torch.nn import functional

from vild.modeling import (
    EmbeddingHead,
    TextClassifier,
    ViLDBoxHead,
    fuse_scores,
    select_detections,
)

TEMPERATURE = 0.05  # keeps probabilities away from 1, where float32 would make them equal
R, K, D = 6, 4, 8
C, H, W = 2, 3, 2
NOVEL = [False, True, False, True]
BOXES = [
    [10.0, 10, 50, 50],
    [12.0, 11, 52, 49],  # near the first
    [60.0, 20, 90, 70],
    [58.0, 22, 91, 68],  # near the third
    [-20.0, 60, 30, 140],  # extends beyond the image
    [10.0, 10, 50, 50],  # equal to the first
]
SIZE = (100, 120)


def softmax(row: list[float]) -> list[float]:
    exponentials = [math.exp(x - max(row)) for x in row]
    return [x / sum(exponentials) for x in exponentials]


def normalised(row: np.ndarray) -> np.ndarray:
    return row / math.sqrt(sum(x * x for x in row))


def iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0) * max(height, 0)
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return inter / (sum(areas) - inter)


def slow_head(region: np.ndarray, head: EmbeddingHead) -> np.ndarray:
    """Compute the embedding (D,) of one pooled region (C, H, W), cell by cell."""

    def weights(layer: nn.Module) -> tuple[np.ndarray, np.ndarray]:
        return layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()

    x = region
    for conv in head.box_head.convs:
        kernel, bias = weights(conv)
        padded = np.zeros((x.shape[0], H + 2, W + 2))
        padded[:, 1:-1, 1:-1] = x
        x = np.zeros((len(kernel), H, W))
        for o, i, j in np.ndindex(x.shape):
            x[o, i, j] = max(0, (kernel[o] * padded[:, i : i + 3, j : j + 3]).sum() + bias[o])
    x = x.reshape(-1)
    for fc in head.box_head.fcs:
        kernel, bias = weights(fc)
        x = np.array([max(0, row @ x + b) for row, b in zip(kernel, bias, strict=True)])
    kernel, bias = weights(head.projection)
    return normalised(kernel @ x + bias)


@pytest.mark.parametrize("seed", range(5))
def test_every_step(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    text = functional.normalize(torch.randn(K, D, generator=generator), dim=1)
    near = text[torch.randint(0, K, (2, R), generator=generator)]
    # heads: pooled cells to embeddings; the projection's bias favours some class
    pooled = torch.randn(R, C, H, W, generator=generator)
    features = []
    for branch in range(2):
        torch.manual_seed(10 * seed + branch)
        box_head = ViLDBoxHead(
            ShapeSpec(channels=C, height=H, width=W),
            **{"conv_dim": 3, "num_conv": 2, "fc_dim": 5, "num_fc": 2, "norm": "none"},
        )
        head = EmbeddingHead(box_head, D)
        with torch.no_grad():
            head.projection.bias += near[branch, 0]
            features.append(head(pooled))
        expected = [slow_head(region, head) for region in pooled.double().numpy()]
        assert np.abs(features[-1].numpy() - expected).max() < 1e-5
    text_features, image_features = features
    classifier = TextClassifier(dimension=D, temperature=1.0)
    classifier.set_text(text, TEMPERATURE)

    # logits: cosine / temperature; only the text branch has a background row
    with torch.no_grad():
        logits = classifier(text_features)
        image_logits = classifier(image_features, background=False)
    rows = [*text.double().numpy(), classifier.background.detach().double().numpy()]
    rows = [normalised(row) for row in rows]
    for ours, features, columns in (
        (logits, text_features, K + 1),
        (image_logits, image_features, K),
    ):
        for r in range(R):
            for k in range(columns):
                feature = normalised(features[r].double().numpy())
                expected = sum(a * b for a, b in zip(feature, rows[k], strict=True)) / TEMPERATURE
                assert abs(float(ours[r, k]) - expected) < 1e-4

    # probabilities: the background is in the softmax, then dropped
    text_probs = logits.softmax(1)[:, :-1]
    image_probs = image_logits.softmax(1)
    p_text = [softmax(row)[:-1] for row in logits.double().tolist()]
    p_image = [softmax(row) for row in image_logits.double().tolist()]
    assert np.abs(text_probs.numpy() - p_text).max() < 1e-6
    assert np.abs(image_probs.numpy() - p_image).max() < 1e-6

    # fusion
    scores = fuse_scores(text_probs, image_probs, torch.tensor(NOVEL))
    fused = np.zeros((R, K))
    for r in range(R):
        for k in range(K):
            w = 1 / 3 if NOVEL[k] else 2 / 3
            fused[r, k] = p_text[r][k] ** w * p_image[r][k] ** (1 - w)
    assert np.abs(scores.numpy() - fused).max() < 1e-6

    # per-class NMS, then the best five
    height, width = SIZE
    clipped = [
        [min(max(x, 0), limit) for x, limit in zip(b, (width, height) * 2, strict=True)]
        for b in BOXES
    ]
    detections: list[tuple[float, int, int]] = []
    for k in range(K):
        candidates = sorted((r for r in range(R) if fused[r, k] > 1e-4), key=lambda r: -fused[r, k])
        kept: list[int] = []
        for r in candidates:
            if all(iou(clipped[r], clipped[other]) <= 0.5 for other in kept):
                kept.append(r)
        detections += [(fused[r, k], r, k) for r in kept]
    detections = sorted(detections, reverse=True)[:5]
    found = select_detections(torch.tensor(BOXES), scores, SIZE, 1e-4, 0.5, 5)
    assert found[3].tolist() == [r for _, r, _ in detections]
    assert found[2].tolist() == [k for _, _, k in detections]
    assert found[0].tolist() == [clipped[r] for _, r, _ in detections]
    assert np.abs(found[1].numpy() - [s for s, _, _ in detections]).max() < 1e-6
