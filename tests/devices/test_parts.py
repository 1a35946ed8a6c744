"""Losses, selection, norms, crops, teacher and predictor on a simulated GPU."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor

from vild.checkpoint import AtomicCheckpointer
from vild.embeddings import (
    CROP_MODES,
    CropRule,
    OnlineEmbedder,
    OpenClipTeacher,
    RegionCropper,
    crop_and_resize,
)
from vild.inference.predictor import OpenVocabularyPredictor
from vild.modeling import classification_loss, distillation_loss, fuse_scores, select_detections
from vild.modeling.norms import NORMS, make_norm, normalise
from vild.modeling.suppression import suppress, suppress_in_rounds
from vild.proposals import ProposalExtractor

from ..embeddings import test_extraction
from ..embeddings.conftest import tiny_clip
from ..embeddings.test_extraction import extract, make_images
from ..making import mapped_image, text_embeddings, tiny_config, tiny_model, unit_rows
from .comparing import compare
from .gradients import gradients
from .simulated import SimulatedTensor, simulated_cuda
from .test_models import two_processes

TEXT = text_embeddings(["crow", "owl", "kite"], novel=["owl"])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def boxes(number: int, side: float = 90.0) -> Tensor:
    first, size = (random(number, 2, seed=seed) * side for seed in (1, 2))
    return torch.cat([first, first + size], dim=1)


@pytest.mark.parametrize("regions", [0, 6])
def test_losses_and_fusion(regions: int) -> None:
    logits, probs = random(regions, 5, seed=1), random(regions, 4, seed=2)
    targets, novel = torch.arange(regions) % 2, torch.tensor([False, False, True, False])
    student, teacher = (unit_rows(regions, 8, seed=seed) for seed in (3, 4))

    def run(device: str) -> list[Tensor]:
        to = {"device": device}
        pair = student.to(**to, copy=True).requires_grad_(), teacher.half().to(**to)
        learning = logits.to(**to, copy=True).requires_grad_()
        with two_processes():
            world = distillation_loss(*pair, mean_over_ranks=True)
        found = [
            world,
            distillation_loss(*pair),
            classification_loss(learning, targets.to(**to), novel.to(**to)),
            classification_loss(logits.to(**to), targets.to(**to)),
            fuse_scores(probs.to(**to), probs.sqrt().to(**to), novel.to(**to)),
            fuse_scores(probs.to(**to), probs.sqrt().to(**to), novel),  # flags of a vocabulary
        ]
        return [*found, *gradients(sum(found[:3])).values()]

    compare(run)


def test_complaints_name_values_of_the_device() -> None:
    novel = torch.tensor([False, True])
    with simulated_cuda():
        logits = torch.zeros(3, 3, device="cuda")
        for target, message in ((7, r"expected targets in \[0, 2\].*got 7"), (1, "novel class 1")):
            targets = torch.tensor([0, target, 2], device="cuda")
            with pytest.raises(ValueError, match=message):
                classification_loss(logits, targets, novel.cuda())


@pytest.mark.parametrize("classes", [1, 3, 70])
@pytest.mark.parametrize("broken", [False, True])
def test_selection(classes: int, broken: bool) -> None:
    given, scores = boxes(60), random(60, classes, seed=3)
    if broken:
        given[7, 2], scores[9] = torch.nan, torch.inf

    def run(device: str) -> Any:
        limits = ((100, 120), 0.1, 0.5)
        return [
            select_detections(given.to(device), scores.to(device), *limits, 20),
            select_detections(given.to(device), scores.to(device), *limits, -1),
        ]

    compare(run)


def test_suppression() -> None:
    given, classes = boxes(200), (random(200, seed=5) * 6).long()
    scores = random(200, seed=6).sort(descending=True).values

    def run(device: str) -> list[Tensor]:
        own, scored, labels = given.to(device), scores.to(device), classes.to(device)
        return [
            *(suppress(own, scored, labels, 0.4, n) for n in (-1, 30)),
            *(suppress_in_rounds(own, labels, 0.4, n) for n in (-1, 30)),
        ]

    found, _ = compare(run)
    assert torch.equal(found[".0"], found[".2"])
    assert torch.equal(found[".1"], found[".3"])


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str, world: int) -> None:
    def run(device: str) -> list[Any]:
        found: list[Any] = []
        for shape in ((6, 64, 2, 2), (6, 64), (1, 64), (0, 64, 2, 2)):
            torch.manual_seed(0)
            norm = make_norm(name, 64, flat=len(shape) == 2, eps=1e-4, momentum=0.1).to(device)
            x = random(*shape).to(device).requires_grad_()
            with two_processes() if world == 2 else nullcontext():
                found.append(normalise(norm, x))
                found.append(gradients(found[-1].square().sum()).get(x, x))
            found.append(norm.state_dict())
            found.append(normalise(norm.eval(), x))
        return found

    compare(run)


IMAGE = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
REGIONS = torch.tensor([[3.0, 4, 50, 60], [0, 10, 120, 13], [7, 0, 9, 90], [30.2, 20.7, 41, 33]])


@pytest.mark.parametrize("mode", CROP_MODES)
def test_crops(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vild.embeddings.crops._CHUNK_BYTES", 2**19)  # several chunks
    statistics = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.25])

    def run(device: str) -> list[Tensor]:
        size = (32, mode)
        image = torch.from_numpy(IMAGE).to(device)
        out = torch.empty(len(REGIONS), 3, 32, 32, device=device)
        found = [
            crop_and_resize(image, REGIONS, *size),
            crop_and_resize(image, REGIONS.to(device), *size),
            crop_and_resize(IMAGE, REGIONS.numpy(), *size, device=device),
            crop_and_resize(image, REGIONS, *size, out=out, interpolation="bilinear"),
            crop_and_resize(image, torch.empty(0, 4), *size),
        ]
        back = crop_and_resize(image, REGIONS, *size, device="cpu")
        assert not isinstance(back, SimulatedTensor)
        normal = crop_and_resize(image, REGIONS, *size, normalise=statistics)
        return [*found, normal * 0.2]

    compare(run, rtol=0, atol=2.5 / 255)  # another way to compute the same


def teacher_on(device: str, precision: str = "fp32") -> OpenClipTeacher:
    tokenizer = open_clip.SimpleTokenizer(context_length=24)
    return OpenClipTeacher(tiny_clip().to(device), tokenizer, name="tiny", precision=precision)


def test_the_online_teacher() -> None:
    """What it gives is on the CPU, as that of a store is."""
    found = []

    def embed(device: str) -> Tensor:
        mapped = mapped_image(0, 5)
        mapped["original_image"] = mapped["image"]
        regions = mapped["distill_regions"]
        regions.original_boxes = regions.proposal_boxes
        rule = CropRule()
        embedded = OnlineEmbedder(teacher_on(device), rule, batch_size=3)(mapped)
        return embedded["distill_regions"].teacher_embeddings

    found.append(embed("cpu"))
    with simulated_cuda():
        found.append(embed("cuda"))
    assert not isinstance(found[1], SimulatedTensor)
    assert torch.allclose(*found, atol=5e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_teacher(precision: str) -> None:
    sentences = ["a crow", "a photo of a large owl in a tree"]
    crops = random(3, 3, 32, 32)

    def run(device: str) -> tuple[Tensor, Tensor, str, float]:
        teacher = teacher_on(device, precision)
        own = teacher.fingerprint, teacher.temperature
        return teacher.encode_text(sentences), teacher.encode_image(crops), *own

    expected = run("cpu")
    with simulated_cuda():
        text, image, *own = run("cuda")
        assert image.is_cuda
        found = text, image.cpu()
    assert not text.is_cuda
    assert own == list(expected[2:])
    tolerance = 1e-5 if precision == "fp32" else 0.05
    for a, b in zip(found, expected[:2], strict=True):
        assert torch.allclose(a, b, atol=tolerance)


def test_the_predictor(tmp_path: Path) -> None:
    """Its weights come from a file, its words from the CPU; what it gives is on the CPU."""
    cfg = tiny_config(tmp_path, "ensemble", TEXT)
    model = tiny_model(tmp_path, "ensemble", TEXT)
    DetectionCheckpointer(model, str(tmp_path)).save("model")
    cfg.merge_from_list(["MODEL.WEIGHTS", str(tmp_path / "model.pth"), "MODEL.DEVICE", "cuda"])
    images = [IMAGE, IMAGE[:, :60]]
    other = text_embeddings(["jay", "tern", "rook", "wren"], novel=["tern"], seed=1)

    def run(precision: str) -> list[Any]:
        predictor = OpenVocabularyPredictor(cfg, precision=precision, cache=tmp_path / "cache")
        outputs = predictor(images)
        predictor.set_vocabulary(other)
        outputs += predictor(images)
        found = [output["instances"] for output in outputs]
        for instances in found:
            values = [*instances.get_fields().values()]
            values[0] = values[0].tensor
            assert all(type(value) is Tensor for value in values)
        return found

    expected = run("fp32")
    with simulated_cuda():
        exact, half = run("fp32"), run("bf16")
    for a, b, c in zip(exact, expected, half, strict=True):
        assert torch.allclose(a.scores, b.scores, atol=1e-4)
        assert torch.equal(a.pred_classes, b.pred_classes)
        assert torch.allclose(a.pred_boxes.tensor, b.pred_boxes.tensor, atol=1e-3)
        assert (a.pred_masks != b.pred_masks).float().mean() < 1e-3
        assert c.scores.dtype == torch.float32
        assert torch.isfinite(c.scores).all()
        assert c.pred_masks.shape == a.pred_masks.shape


def test_a_checkpoint_is_loaded_into_a_model_on_the_device(tmp_path: Path) -> None:
    with simulated_cuda():
        model = tiny_model(tmp_path, "vild", TEXT, "MODEL.DEVICE", "cuda")
        loaded = tiny_model(tmp_path, "vild", TEXT, "MODEL.DEVICE", "cuda")
        weights = {key: value.cpu() for key, value in model.state_dict().items()}
        torch.save({"model": weights}, tmp_path / "model.pth")
        with torch.no_grad():
            for parameter in loaded.parameters():
                parameter.zero_()
        AtomicCheckpointer(loaded).load(str(tmp_path / "model.pth"))
        assert all(p.is_cuda for p in loaded.parameters())
        for key, value in loaded.state_dict().items():
            assert torch.equal(value.cpu(), weights[key])


@pytest.mark.parametrize("source", ["rpn", "detector"])
def test_proposals(source: str, tmp_path: Path) -> None:
    """What an extractor gives is on the CPU."""
    cfg = tiny_config(tmp_path, "text", TEXT, "MODEL.ROI_HEADS.NAME", "OptionalMaskROIHeads")
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NUM_CLASSES = "GeneralizedRCNN", 1

    def run(device: str) -> tuple[Any, dict[str, Any]]:
        extractor = ProposalExtractor(cfg, lambda model: None, source=source, device=device)
        return extractor(IMAGE), extractor.describe()

    expected, described = run("cpu")
    with simulated_cuda():
        found, own = run("cuda")
    assert own == described
    for a, b in zip(found, expected, strict=True):
        assert type(a) is Tensor
        assert torch.allclose(a, b, atol=1e-3)


def test_extracted_embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the simulation is of one thread
    monkeypatch.setattr("vild.embeddings.extraction.prefetch", lambda items, ahead: items)
    files, proposals = make_images(tmp_path, [3, 0, 7])
    stores = []
    for device in ("cpu", "cuda"):
        cropper = partial(RegionCropper, device=device)
        monkeypatch.setattr(test_extraction, "RegionCropper", cropper)
        with simulated_cuda() if device == "cuda" else nullcontext():
            encode = teacher_on(device).encode_image
            stores.append(extract(tmp_path / device, files, proposals, encode=encode))
    for image in files:
        expected, found = (store[image].embeddings for store in stores)
        assert torch.allclose(found, expected, atol=5e-3)
