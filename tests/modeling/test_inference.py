"""Inference of whole models: comparison with plain loops, new vocabularies, bounded memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vild.data import Vocabulary
from vild.embeddings import TextEmbeddings
from vild.modeling import output_layers

from ..making import LEARNED, mapped_image, text_embeddings, tiny_model, unit_rows

NAMES = ["crow", "owl", "kite", "swift"]
TEXT = text_embeddings(NAMES, novel=["owl", "swift"], temperature=0.05)
NMS, BEST = 0.5, 12


def detect(model: nn.Module, side: int = 96) -> Instances:
    mapped = mapped_image(side=side)
    with torch.no_grad():
        return model.eval()([{"image": mapped["image"], "height": side, "width": side}])[0][
            "instances"
        ]


def regions_of(model: nn.Module, mapped: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the model's proposals, features of both heads and box deltas, as float64."""
    heads = model.eval().roi_heads
    with torch.no_grad():
        images = model.preprocess_image([mapped])
        features = model.backbone(images.tensor)
        (proposals,), _ = model.proposal_generator(images, features, None)
        levels = [features[f] for f in heads.box_in_features]
        pooled = heads.box_pooler(levels, [proposals.proposal_boxes])
        x = heads.box_head(pooled)
        found = {
            "boxes": proposals.proposal_boxes.tensor,
            "objectness": proposals.objectness_logits,
            "text": heads.box_predictor.projection(x),
            "deltas": heads.box_predictor.bbox_pred(x),
        }
        if heads.image_head is not None:
            found["image"] = heads.image_head(pooled)
    return {key: value.double().numpy() for key, value in found.items()}


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def slow_scores(
    variant: str, found: dict[str, np.ndarray], background: np.ndarray | None, objectness: bool
) -> np.ndarray:
    """Compute scores by the formulas of the paper."""
    text, tau = TEXT.embeddings.double().numpy(), TEXT.temperature
    if variant == "image":
        scores = softmax(found["text"] @ text.T / tau)
    else:
        rows = np.vstack([text, background / np.linalg.norm(background)])
        scores = softmax(found["text"] @ rows.T / tau)[:, :-1]
    if variant == "ensemble":
        image = softmax(found["image"] @ text.T / tau)
        weights = np.where(TEXT.vocabulary.novel, 1 / 3, 2 / 3)
        scores = scores**weights * image ** (1 - weights)
    if objectness:
        scores = np.sqrt(scores / (1 + np.exp(-found["objectness"][:, None])))
    return scores


def slow_detections(
    boxes: np.ndarray, deltas: np.ndarray, scores: np.ndarray, side: int
) -> list[tuple[float, int, list[float]]]:
    """Return (score, class, box), best first, after decoding, clipping and per-class NMS."""
    decoded = []
    for (x1, y1, x2, y2), (dx, dy, dw, dh) in zip(boxes, deltas, strict=True):
        w, h = x2 - x1, y2 - y1
        cx, cy = x1 + w / 2 + dx / 10 * w, y1 + h / 2 + dy / 10 * h
        w, h = w * math.exp(dw / 5), h * math.exp(dh / 5)
        box = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
        decoded.append([min(max(v, 0), side) for v in box])

    def iou(a: list[float], b: list[float]) -> float:
        w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        inter = max(w, 0) * max(h, 0)
        return inter / (sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - inter)

    kept = []
    for k in range(scores.shape[1]):
        own: list[int] = []
        for r in np.argsort(-scores[:, k], kind="stable"):
            if all(iou(decoded[r], decoded[other]) <= NMS for other in own):
                own.append(int(r))
        kept += [(float(scores[r, k]), k, decoded[r]) for r in own]
    return sorted(kept, key=lambda d: -d[0])[:BEST]


@pytest.mark.parametrize("objectness", [False, True])
@pytest.mark.parametrize("variant", LEARNED)
def test_detections_are_those_of_the_formulas(
    variant: str, objectness: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(
        tmp_path,
        variant,
        TEXT,
        "TEST.DETECTIONS_PER_IMAGE",
        BEST,
        "MODEL.VILD.OBJECTNESS",
        objectness,
    )
    predictor = model.roi_heads.box_predictor
    with torch.no_grad():  # so that boxes move and features differ
        predictor.bbox_pred.weight.normal_(std=0.2)
    mapped = {"image": mapped_image()["image"], "height": 96, "width": 96}
    found = regions_of(model, mapped)
    background = predictor.classifier.background
    vector = None if background is None else background.detach().double().numpy()
    scores = slow_scores(variant, found, vector, objectness)
    expected = slow_detections(found["boxes"], found["deltas"], scores, 96)

    for chunk in (2**22, 9):  # all regions at once, and in small chunks
        monkeypatch.setattr(output_layers, "MAX_SCORES", chunk)
        instances = detect(model)
        assert instances.pred_classes.tolist() == [k for _, k, _ in expected]
        assert np.abs(instances.scores.numpy() - [s for s, _, _ in expected]).max() < 1e-5
        boxes = instances.pred_boxes.tensor.numpy()
        assert np.abs(boxes - [b for _, _, b in expected]).max() < 1e-3
        assert instances.pred_masks.shape == (len(expected), 96, 96)


class LargestTensor(TorchDispatchMode):
    """A mode that records the largest output of any operation."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self.entries = max(self.entries, value.numel())
        return result


@pytest.mark.parametrize("variant", ["vild", "ensemble"])
def test_memory_does_not_grow_with_the_vocabulary(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 regions x 20,000 classes are 600,000 scores; no tensor may exceed the chunk limit."""
    monkeypatch.setattr(output_layers, "MAX_SCORES", 100_000)
    model = tiny_model(tmp_path, variant, TEXT, "MODEL.MASK_ON", False)
    model.roi_heads.set_vocabulary(text_embeddings(20_000))
    text_rows = 20_000 * 16
    found = regions_of(model, mapped_image())
    text, image = (torch.tensor(found.get(key, found["text"])).float() for key in ("text", "image"))
    proposals = Instances((96, 96))
    proposals.objectness_logits = torch.zeros(len(text))
    with LargestTensor() as largest, torch.no_grad():
        image_rows = image if variant == "ensemble" else None
        chunks = model.roi_heads.box_predictor._score_chunks(text, image_rows, proposals)
        shapes = [chunk.shape for chunk in chunks]
    assert sum(rows for rows, _ in shapes) == len(text)
    assert {columns for _, columns in shapes} == {20_000}
    assert largest.entries <= max(100_000 + 5, text_rows)  # the background is one more column
    with torch.no_grad():
        assert len(detect(model)) == 20


def test_a_vocabulary_brings_names_novel_flags_and_scores(tmp_path: Path) -> None:
    """A checkpoint of LVIS's size gets COCO's 65 classes, then three words, then one."""
    model = tiny_model(tmp_path, "ensemble", text_embeddings(1203, seed=1))
    heads = model.roi_heads
    assert (heads.num_classes, len(heads.vocabulary)) == (1203, 1203)
    assert heads.metadata.thing_classes[1202] == "class 1202"
    before = detect(model)

    coco = Vocabulary.from_dataset("coco_2017_ovd_val")
    for text in (
        TextEmbeddings(unit_rows(65, 16, seed=2), coco, 0.05, "stub"),
        text_embeddings(["red kite", "osprey", "heron"], novel=["heron"], seed=3),
        text_embeddings(["toaster"], seed=4),
    ):
        heads.set_vocabulary(text)
        found = detect(model)
        assert found.pred_classes.max() < len(text.vocabulary)
        assert heads.num_classes == heads.box_predictor.num_classes == len(text.vocabulary)
        assert heads.vocabulary.names == text.vocabulary.names
        assert heads.metadata.thing_classes == list(text.vocabulary.names)
        assert heads.metadata.novel == list(text.vocabulary.novel)
        assert heads.box_predictor.novel.tolist() == list(text.vocabulary.novel)
        # equal to a model created with this vocabulary
        fresh = tiny_model(tmp_path, "ensemble", text)
        fresh.load_state_dict(model.state_dict())
        expected = detect(fresh)
        assert torch.equal(found.scores, expected.scores)
        assert torch.equal(found.pred_classes, expected.pred_classes)

    heads.set_vocabulary(text_embeddings(1203, seed=1))
    again = detect(model)
    assert torch.equal(before.scores, again.scores)


def test_novel_flags_decide_the_fusion(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, "ensemble", TEXT)
    found = {}
    for novel in ((), NAMES):
        model.roi_heads.set_vocabulary(text_embeddings(NAMES, novel=novel, temperature=0.05))
        found[len(novel)] = detect(model).scores
    assert not torch.allclose(found[0], found[4])


def test_a_checkpoint_loads_under_any_vocabulary(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, "vild", text_embeddings(1203, seed=1))
    with torch.no_grad():
        model.roi_heads.box_predictor.classifier.background.fill_(0.5)
    DetectionCheckpointer(model, str(tmp_path)).save("made")
    other = tiny_model(tmp_path, "vild", TEXT)
    rest = DetectionCheckpointer(other).load(str(tmp_path / "made.pth"))
    assert "model" not in rest
    assert all(torch.equal(a, model.state_dict()[k]) for k, a in other.state_dict().items())
    state = torch.load(tmp_path / "made.pth", weights_only=True)["model"]
    assert not any("text" in key or "novel" in key for key in state)
    assert other.roi_heads.vocabulary.names == TEXT.vocabulary.names


@pytest.mark.parametrize(("configured", "own"), [(0.0, True), (0.07, False)])
def test_the_temperature_is_the_teachers_own_unless_configured(
    configured: float, own: bool, tmp_path: Path
) -> None:
    model = tiny_model(tmp_path, "text", TEXT, "MODEL.VILD.TEMPERATURE", configured)
    classifier = model.roi_heads.box_predictor.classifier
    for text in (TEXT, text_embeddings(5, temperature=0.02)):
        model.roi_heads.set_vocabulary(text)
        assert classifier.temperature == (text.temperature if own else configured)


@pytest.mark.parametrize(
    ("vocabulary", "complaint"),
    [
        (text_embeddings(3, 8), r"\(K, 16\).*got \(3, 8\)"),
        (["crow", "owl"], "expected TextEmbeddings.*got list"),
        (Vocabulary.from_names(["crow"]), "got Vocabulary"),
        (
            text_embeddings(3, fingerprint="b" * 64),
            "teacher .weights aaaaaaaaaaaa.*weights bbbbbbbbbbbb",
        ),
    ],
)
def test_a_vocabulary_that_is_refused_changes_nothing(
    vocabulary: Any, complaint: str, tmp_path: Path
) -> None:
    text = text_embeddings(NAMES, fingerprint="a" * 64)
    model = tiny_model(tmp_path, "ensemble", text)
    before = detect(model)
    with pytest.raises(ValueError, match=complaint):
        model.roi_heads.set_vocabulary(vocabulary)
    assert model.roi_heads.vocabulary.names == tuple(NAMES)
    assert torch.equal(detect(model).scores, before.scores)


def test_embeddings_that_make_no_vocabulary() -> None:
    """They are refused before a model is built: size 0, NaN, rows not of unit norm."""
    with pytest.raises(ValueError, match="at least one class"):
        text_embeddings(0)
    two = Vocabulary.from_names(["crow", "owl"])
    for factor, complaint in (
        (torch.nan, "of 'owl' is not finite"),
        (1.1, "got 1.1000 for 'owl'"),
    ):
        rows = unit_rows(2, 16) * torch.tensor([[1.0], [factor]])
        with pytest.raises(ValueError, match=complaint):
            TextEmbeddings(rows, two, 0.01, "stub")


def test_probabilities_for_callers_of_detectron2(tmp_path: Path) -> None:
    for variant in ("text", "image"):
        predictor = tiny_model(tmp_path, variant, TEXT).roi_heads.box_predictor
        proposals = [Instances((9, 9)), Instances((9, 9))]
        for n, own in enumerate(proposals):
            own.objectness_logits = torch.zeros(n + 1)
        predictions = unit_rows(3, 16), torch.zeros(3, 4)
        probs = predictor.predict_probs(predictions, proposals)
        assert [tuple(p.shape) for p in probs] == [(1, 5), (2, 5)]
        assert torch.allclose(torch.cat(probs).sum(dim=1), torch.ones(3))
        assert (probs[0][:, -1] > 0).all() == (variant == "text")
