"""The packaged teacher of shapes: small, real, and accurate on unlabelled classes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from experiments.teacher_training import (
    Crops,
    cut,
    draw_crops,
    embed_crops,
    jitter,
    train,
    zero_shot_accuracy,
)
from vild.data import Vocabulary
from vild.data.shapes import ALL_COMPOSITIONS, shapes_vocabulary
from vild.embeddings import OpenClipTeacher, build_teacher, embed_vocabulary
from vild.embeddings.teacher import SHAPES_FOLDER


@pytest.fixture(scope="module")
def shipped() -> OpenClipTeacher:
    return build_teacher("vild-shapes", device="cpu")


def test_it_is_an_open_clip_model_of_its_own_temperature(shipped: OpenClipTeacher) -> None:
    assert type(shipped.model) is open_clip.CLIP
    assert (shipped.dimension, shipped.image_size) == (64, 48)
    assert 0.01 < shipped.temperature < 0.1  # not CLIP's: shorter training
    assert (SHAPES_FOLDER / "open_clip_model.safetensors").stat().st_size <= 8e6


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_novel_classes_are_recognised_zero_shot(shipped: OpenClipTeacher, seed: int) -> None:
    classes = shapes_vocabulary(seed)
    rows = [ALL_COMPOSITIONS.index(c) for c in classes.compositions]
    novel = [row for row, flag in zip(rows, classes.novel, strict=True) if flag]
    vocabulary = Vocabulary.from_names(c.name for c in classes.compositions)
    text = embed_vocabulary(shipped, vocabulary, "vild", synonyms=False).embeddings
    crops = draw_crops("held-out", 600, seed=100).only(novel)
    embeddings = embed_crops(shipped, crops)
    accuracy, count = zero_shot_accuracy(embeddings, crops, text, rows)
    assert count > 100
    assert accuracy >= 0.97
    # also in boxes as loose as most proposals: their mean IoU with the object is 0.57
    loose = jitter(crops, 0.3, np.random.RandomState(0))
    assert zero_shot_accuracy(embed_crops(shipped, loose), loose, text, rows)[0] >= 0.9
    shuffled = torch.from_numpy(np.random.RandomState(0).permutation(len(rows)))
    assert zero_shot_accuracy(embeddings, crops, text[shuffled], rows)[0] < 0.2


def test_synonyms_mean_the_same_to_it(shipped: OpenClipTeacher) -> None:
    names = embed_vocabulary(shipped, Vocabulary.from_names(c.name for c in ALL_COMPOSITIONS))
    others = embed_vocabulary(shipped, Vocabulary.from_names(c.synonym for c in ALL_COMPOSITIONS))
    nearest = (others.embeddings @ names.embeddings.T).argmax(dim=1)
    assert (nearest == torch.arange(len(ALL_COMPOSITIONS))).float().mean() > 0.9


def test_crops_are_cut_where_they_should() -> None:
    images = np.zeros((1, 40, 40, 3), np.uint8)
    images[0, 10:20, 20:30] = 255
    crops = Crops(images, np.array([0, 0]), np.array([[20.0, 10, 30, 20]] * 2), np.array([0, 0]))
    one, larger = cut(crops, np.array([0, 1]), 30, np.array([1.0, 1.5]))
    assert one.shape == (3, 30, 30)
    assert float(one[:, 2:-2, 2:-2].min()) > 0.99  # the filter reaches half a pixel further
    assert float(one.min()) > 0.4
    # at scale 1.5 the object takes two thirds of each side
    assert float(larger.mean()) == pytest.approx((2 / 3) ** 2, abs=0.02)


def test_boxes_are_jittered_by_so_much_at_most() -> None:
    images = np.zeros((1, 160, 160, 3), np.uint8)
    box = np.tile([60.0, 40, 80, 80], (500, 1))
    crops = Crops(images, np.zeros(500, int), box, np.zeros(500, int))
    moved = jitter(crops, 0.2, np.random.RandomState(0)).box - box
    largest = np.abs(moved).max(axis=0)
    assert (largest <= [4, 8, 4, 8]).all()
    assert (largest > [3.9, 7.9, 3.9, 7.9]).all()
    assert np.abs(moved.mean(axis=0)).max() < 0.5
    still = jitter(crops, np.zeros((500, 1)), np.random.RandomState(0))
    assert (still.box == box).all()
    outside = Crops(images, np.zeros(1, int), np.array([[0.0, 0, 160, 160]]), np.zeros(1, int))
    for seed in range(5):
        found = jitter(outside, 0.2, np.random.RandomState(seed)).box
        assert found.min() >= 0
        assert found.max() <= 160


def test_training_writes_what_loading_reads(tmp_path: Path) -> None:
    shutil.copy(SHAPES_FOLDER / "open_clip_config.json", tmp_path)
    made = train(tmp_path, iterations=2, scenes=700, progress=False)
    again = build_teacher(f"local-dir:{tmp_path}", None, "cpu")
    assert again.fingerprint == made.fingerprint
    assert again.fingerprint != build_teacher("vild-shapes", device="cpu").fingerprint


def test_too_few_scenes_are_refused(tmp_path: Path) -> None:
    shutil.copy(SHAPES_FOLDER / "open_clip_config.json", tmp_path)
    with pytest.raises(ValueError, match="draw more"):
        train(tmp_path, iterations=1, scenes=5, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["open_clip_config.json"]


@pytest.mark.exhaustive
def test_shipped_command_reproduces_the_accuracy(tmp_path: Path) -> None:
    shutil.copy(SHAPES_FOLDER / "open_clip_config.json", tmp_path)
    teacher = train(tmp_path, progress=False)
    classes = shapes_vocabulary(0)
    rows = [ALL_COMPOSITIONS.index(c) for c in classes.compositions]
    novel = [row for row, flag in zip(rows, classes.novel, strict=True) if flag]
    vocabulary = Vocabulary.from_names(c.name for c in classes.compositions)
    text = embed_vocabulary(teacher, vocabulary, "vild", synonyms=False).embeddings
    crops = draw_crops("held-out", 600).only(novel)
    accuracy, _ = zero_shot_accuracy(embed_crops(teacher, crops), crops, text, rows)
    assert accuracy >= 0.97
