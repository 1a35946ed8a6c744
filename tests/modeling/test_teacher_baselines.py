"""CLIP on cropped regions and ViLD-text + CLIP, which use the teacher's region embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from ..making import mapped_image, text_embeddings, tiny_config, tiny_model, with_proposals
from .test_inference import NAMES, TEXT, softmax

PRECOMPUTED = (
    *("MODEL.LOAD_PROPOSALS", True),
    *("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"),
)


def teacher_model(folder: Path, variant: str, *changes: Any) -> nn.Module:
    like = "text" if variant == "text_clip" else "image"
    return tiny_model(folder, like, TEXT, "MODEL.VILD.VARIANT", variant, *PRECOMPUTED, *changes)


def test_clip_on_crops_scores_proposals_by_their_embeddings(tmp_path: Path) -> None:
    model = teacher_model(tmp_path, "clip", "MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.999).eval()
    mapped = with_proposals(mapped_image(0, 6))
    with torch.no_grad():
        found = model([mapped])[0]["instances"]
    proposals = mapped["proposals"]
    embeddings = proposals.teacher_embeddings.double().numpy()
    cosines = embeddings @ TEXT.embeddings.double().numpy().T
    objectness = 1 / (1 + np.exp(-proposals.objectness_logits.double().numpy()))
    scores = np.sqrt(softmax(cosines / TEXT.temperature) * objectness[:, None])
    best = np.argsort(-scores.ravel(), kind="stable")[: len(found)]
    assert len(found) == 20
    assert np.abs(found.scores.numpy() - scores.ravel()[best]).max() < 1e-5
    assert found.pred_classes.tolist() == [n % len(NAMES) for n in best]
    expected = proposals.proposal_boxes.tensor[best // len(NAMES)]
    assert torch.allclose(found.pred_boxes.tensor, expected, atol=1e-3)
    assert found.pred_masks.shape == (20, 96, 96)


def test_text_and_clip_are_fused_as_the_ensembles_heads_are(tmp_path: Path) -> None:
    """The variant uses a checkpoint of ViLD-text."""
    model = teacher_model(tmp_path, "text_clip").eval()
    model.load_state_dict(tiny_model(tmp_path, "text", TEXT, *PRECOMPUTED).state_dict())
    mapped = with_proposals(mapped_image(0, 6))
    predictor = model.roi_heads.box_predictor
    seen = []
    class_scores = predictor.class_scores
    predictor.class_scores = lambda *args: seen.append(args) or class_scores(*args)
    with torch.no_grad():
        found = model([mapped])[0]["instances"]
    ((text, image),) = seen
    assert torch.allclose(image, mapped["proposals"].teacher_embeddings, atol=1e-6)
    rows = TEXT.embeddings.double().numpy()
    background = predictor.classifier.background.detach().double().numpy()
    rows_and_background = np.vstack([rows, background / np.linalg.norm(background)])
    p_text = softmax(text.double().numpy() @ rows_and_background.T / TEXT.temperature)[:, :-1]
    p_image = softmax(image.double().numpy() @ rows.T / TEXT.temperature)
    weights = np.where(TEXT.vocabulary.novel, 1 / 3, 2 / 3)
    fused = p_text**weights * p_image ** (1 - weights)
    assert abs(float(found.scores[0]) - fused.max()) < 1e-5


@pytest.mark.parametrize("variant", ["clip", "text_clip"])
def test_misuse(variant: str, tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path, "text", TEXT, "MODEL.VILD.VARIANT", variant)
    with pytest.raises(ValueError, match=rf"'{variant}' detects with .*LOAD_PROPOSALS: True"):
        build_model(cfg)
    model = teacher_model(tmp_path, variant)
    mapped = with_proposals(mapped_image(0, 6))
    mapped["proposals"].remove("teacher_embeddings")
    with pytest.raises(ValueError, match=r"set DATASETS\.PROPOSAL_FILES_TEST to a store"):
        model.eval()([mapped])
    if variant == "clip":
        with pytest.raises(ValueError, match="cannot be trained"), EventStorage():
            model.train()([with_proposals(mapped_image())])


def test_another_vocabulary(tmp_path: Path) -> None:
    model = teacher_model(tmp_path, "clip").eval()
    model.roi_heads.set_vocabulary(text_embeddings(["heron"], seed=5))
    with torch.no_grad():
        found = model([with_proposals(mapped_image(0, 6))])[0]["instances"]
    assert set(found.pred_classes.tolist()) == {0}
