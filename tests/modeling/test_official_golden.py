"""Comparison with outputs of the official TensorFlow code (tests/official_golden/README.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor, nn
from torch.nn import functional

from vild.data import Vocabulary
from vild.embeddings import TextEmbeddings
from vild.modeling import (
    EmbeddingHead,
    ViLDBoxHead,
    ViLDOutputLayers,
    classification_loss,
    distillation_loss,
    fuse_scores,
    select_detections,
)

FOLDER = Path(__file__).parents[1] / "official_golden"
SCOPE = "var/m/frcnn_layer_0/fast_rcnn_head/"
LAYERS = 2  # convolutions, and fully connected layers
SAMPLED = 16  # of the 24 regions of a training image; the others are distilled
HEADS = ("vanilla", "double_branch")


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def background_last(logits: Tensor) -> Tensor:
    return logits.roll(-1, dims=-1)


def difference(ours: Tensor, official: np.ndarray) -> float:
    assert ours.shape == official.shape
    return float((ours.detach() - tensor(official)).abs().max())


def load(module: nn.Module, values: dict[str, Tensor]) -> None:
    """Load exactly the parameters of ``module``."""
    own = {k for k in module.state_dict() if not k.endswith("num_batches_tracked")}
    assert own == set(values)
    module.load_state_dict(values, strict=False)


def embedding_head(arrays: dict[str, np.ndarray], norm: str, image_branch: bool) -> EmbeddingHead:
    """Load official variables into an embedding head."""

    def variable(name: str) -> Tensor:
        return tensor(arrays[f"{SCOPE}{name}:0"])

    def batch_norm(number: int) -> dict[str, Tensor]:
        name = "batch_normalization" + (f"_{number}" if number else "")
        ours = {"weight": "gamma", "bias": "beta"}
        ours |= {"running_mean": "moving_mean", "running_var": "moving_variance"}
        return {key: variable(f"{name}/{theirs}") for key, theirs in ours.items()}

    prefix, first = ("distill_", 2 * LAYERS) if image_branch else ("", 0)
    height, width, channels = arrays["roi_features"].shape[2:]
    values = {}
    for i in range(LAYERS):
        kernel = variable(f"{prefix}conv_{i}/kernel")
        conv_dim = kernel.shape[3]
        values[f"box_head.convs.{i}.weight"] = kernel.permute(3, 2, 0, 1)
        values[f"box_head.convs.{i}.bias"] = variable(f"{prefix}conv_{i}/bias")
        for key, value in batch_norm(first + i).items():
            values[f"box_head.conv_norms.{i}.{key}"] = value
        kernel = variable(f"{prefix}fc{6 + i}/kernel")
        fc_dim = kernel.shape[1]
        if i == 0:  # rows in H, W, C order become columns in C, H, W order
            kernel = (
                kernel.unflatten(0, (height, width, conv_dim)).permute(2, 0, 1, 3).flatten(0, 2)
            )
        values[f"box_head.fcs.{i}.weight"] = kernel.T
        values[f"box_head.fcs.{i}.bias"] = variable(f"{prefix}fc{6 + i}/bias")
        for key, value in batch_norm(first + LAYERS + i).items():
            values[f"box_head.fc_norms.{i}.{key}"] = value
    projection = ("distill-" if image_branch else "") + "project-to-clip"
    kernel = variable(f"{projection}/kernel")
    values |= {"projection.weight": kernel.T, "projection.bias": variable(f"{projection}/bias")}
    box_head = ViLDBoxHead(
        ShapeSpec(channels=channels, height=height, width=width),
        conv_dim=conv_dim,
        num_conv=LAYERS,
        fc_dim=fc_dim,
        num_fc=LAYERS,
        norm=norm,
    )
    head = EmbeddingHead(box_head, kernel.shape[1])
    load(head, values)
    return head


def output_layers(arrays: dict[str, np.ndarray], head: EmbeddingHead) -> ViLDOutputLayers:
    """Load official variables into output layers, with the head's projection."""
    kernel = tensor(arrays[f"{SCOPE}box-predict/kernel:0"])
    text = functional.normalize(tensor(arrays["text_embeddings_DxK"].T), dim=1)
    names = [f"class {n}" for n in range(len(text))]
    layers = ViLDOutputLayers(
        ShapeSpec(channels=kernel.shape[0]),
        text_embeddings=TextEmbeddings(text, Vocabulary.from_names(names), 0.01, "official"),
        box2box_transform=Box2BoxTransform(weights=(10, 10, 5, 5)),
    )
    background = tensor(arrays[f"{SCOPE}background-class-predict/kernel:0"][:, 0])
    values = {f"projection.{k}": v for k, v in head.projection.state_dict().items()}
    values |= {"classifier.background": background, "bbox_pred.weight": kernel.T}
    load(layers, {**values, "bbox_pred.bias": tensor(arrays[f"{SCOPE}box-predict/bias:0"])})
    return layers


def regions(arrays: dict[str, np.ndarray]) -> Tensor:
    """Return pooled regions (N, R, C, H, W)."""
    return tensor(arrays["roi_features"]).permute(0, 1, 4, 2, 3)


@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
@pytest.mark.parametrize("name", HEADS)
def test_head_in_evaluation(name: str, norm: str) -> None:
    arrays = golden(f"head_{name}")
    head = embedding_head(arrays, norm, image_branch=False).eval()
    layers = output_layers(arrays, head)
    pooled = regions(arrays)
    shape = pooled.shape[:2]
    embeddings, deltas = layers(head.box_head(pooled.flatten(0, 1)))
    logits = layers.classifier(embeddings).unflatten(0, shape)
    official = background_last(tensor(arrays["eval/class_outputs"])).numpy()
    assert difference(logits, official) < 1e-3
    assert difference(deltas.unflatten(0, shape), arrays["eval/box_outputs"]) < 1e-4
    if name == "vanilla":
        return
    image_head = embedding_head(arrays, norm, image_branch=True).eval()
    embeddings = image_head(pooled.flatten(0, 1))
    assert difference(embeddings.unflatten(0, shape), arrays["eval/distill_feat_outputs"]) < 1e-5
    logits = layers.classifier(embeddings, background=False).unflatten(0, shape)
    assert difference(logits, arrays["eval/distill_class_outputs"]) < 1e-3


@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
@pytest.mark.parametrize("name", HEADS)
def test_head_in_training(name: str, norm: str) -> None:
    arrays = golden(f"head_{name}")
    head = embedding_head(arrays, norm, image_branch=False).train()
    layers = output_layers(arrays, head)
    pooled = regions(arrays)
    if name == "vanilla":  # one batch shares its statistics
        features = head.box_head(pooled.flatten(0, 1)).unflatten(0, pooled.shape[:2])
        features, distilled = features[:, :SAMPLED], features[:, SAMPLED:]
        student = layers.projection(distilled.flatten(0, 1))
    else:
        features = head.box_head(pooled[:, :SAMPLED].flatten(0, 1)).unflatten(0, (-1, SAMPLED))
        image_head = embedding_head(arrays, norm, image_branch=True).train()
        student = image_head(pooled[:, SAMPLED:].flatten(0, 1))
    embeddings, deltas = layers(features.flatten(0, 1))
    shape = features.shape[:2]
    official = background_last(tensor(arrays["train/class_outputs"])).numpy()
    assert difference(layers.classifier(embeddings).unflatten(0, shape), official) < 1e-3
    assert difference(deltas.unflatten(0, shape), arrays["train/box_outputs"]) < 1e-4
    official = arrays["train/distill_feat_outputs"]
    assert difference(student.unflatten(0, official.shape[:2]), official) < 1e-5


def test_classification_loss() -> None:
    arrays = golden("class_loss")
    logits = background_last(tensor(arrays["class_logits"])).flatten(0, 1)
    classes = logits.shape[1] - 1
    targets = (tensor(arrays["class_targets"]).long().flatten() - 1) % (classes + 1)
    assert abs(float(classification_loss(logits, targets)) - float(arrays["loss_unmasked"])) < 1e-5


def test_classification_loss_without_novel_classes_is_not_the_official_one() -> None:
    """The official code sets novel logits to 0, which stay in the denominator; here they do not."""
    arrays = golden("class_loss")
    logits, mask = arrays["class_logits"].astype(np.float64), arrays["rare_mask"]
    targets = arrays["class_targets"]
    chosen = np.take_along_axis(logits * mask, targets[..., None], axis=2)[..., 0]
    official = np.log(np.exp(logits * mask).sum(axis=2)) - chosen
    assert abs(official.mean() - arrays["loss_masked"]) < 1e-5

    ours = np.log(np.exp(logits[..., mask == 1]).sum(axis=2)) - chosen
    assert (mask[targets] == 1).all()
    assert (ours < official).all()
    loss = classification_loss(
        background_last(tensor(arrays["class_logits"])).flatten(0, 1),
        ((tensor(targets).long() - 1) % len(mask)).flatten(),
        tensor(mask[1:] == 0),
    )
    assert abs(float(loss) - ours.mean()) < 1e-5
    assert abs(float(loss) - official.mean()) > 0.01


def test_distillation_loss() -> None:
    arrays = golden("distillation_loss")
    student, teacher, valid = (
        tensor(arrays[key]).flatten(0, 1) for key in ("student", "teacher_raw", "valid")
    )
    loss = float(arrays["weight"]) * distillation_loss(student[valid], teacher[valid])
    assert abs(float(loss) - float(arrays["loss"])) < 1e-5


def scores_of(arrays: dict[str, np.ndarray], index: int) -> Tensor:
    text = background_last(tensor(arrays["class_logits"][index])).softmax(1)[:, :-1]
    if "image_logits" not in arrays:
        return text
    image = tensor(arrays["image_logits"][index]).softmax(1)
    return fuse_scores(text, image, tensor(arrays["rare_mask"][1:] == 0))


@pytest.mark.parametrize("image", [0, 1])
@pytest.mark.parametrize("name", HEADS)
def test_scores_and_detections(name: str, image: int) -> None:
    arrays = golden(f"postprocess_{name}")
    scores = scores_of(arrays, image)
    assert difference(scores, arrays["out/raw_scores"][image]) < 1e-6

    # inclusive coordinates, which the official NMS expects
    boxes = tensor(arrays["out/raw_boxes"][image, :, 0])[:, [1, 0, 3, 2]]
    height, width = map(int, arrays["image_hw"][image])
    found = select_detections(boxes, scores, (height, width), 0.0, 0.5, 30)
    count = int(arrays["out/num_detections"][image])
    official = [
        tensor(arrays[f"out/detection_{key}"][image, :count])
        for key in ("boxes", "scores", "classes")
    ]
    assert len(found[0]) == count
    assert torch.allclose(found[0], official[0][:, [1, 0, 3, 2]], atol=1e-4)
    assert torch.allclose(found[1], official[1], atol=1e-6)
    assert torch.equal(found[2] + 1, official[2].long())
    assert torch.equal(found[0], boxes[found[3]])
