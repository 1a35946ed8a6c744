"""The two losses: expected values from numpy in float64, empty batches, gradients, misuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vild.modeling import classification_loss, distillation_loss
from vild.modeling.losses import distributed

R, K, D = 12, 9, 16
CLASSIFICATION, DISTILLATION = 13.960933, 4.537111  # of seed 0, by the functions below


def made_classification(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, targets without novel classes, and novel flags."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(R, K + 1, generator=generator) * 10
    novel = torch.zeros(K, dtype=torch.bool)
    novel[[1, 4, 8]] = True
    allowed = torch.tensor([0, 2, 3, 5, 6, 7, K])
    targets = allowed[torch.randint(0, len(allowed), (R,), generator=generator)]
    return logits, targets, novel


def made_embeddings(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return student and teacher."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, R, D, generator=generator)
    return functional.normalize(student, dim=1), functional.normalize(teacher, dim=1)


def numpy_cross_entropy(logits: Tensor, targets: Tensor, columns: list[int]) -> float:
    total = 0.0
    for row, target in zip(logits.double().numpy(), targets.tolist(), strict=True):
        total += np.log(np.exp(row[columns]).sum()) - row[target]
    return total / len(logits)


def numpy_distillation(student: Tensor, teacher: Tensor) -> float:
    distances = []
    for r in range(len(student)):
        s, t = student[r].double().numpy(), teacher[r].double().numpy()
        distances.append(np.abs(s / np.linalg.norm(s) - t / np.linalg.norm(t)).sum())
    return float(np.mean(distances))


@pytest.mark.parametrize("seed", range(3))
def test_classification_is_cross_entropy_over_base_and_background(seed: int) -> None:
    logits, targets, novel = made_classification(seed)
    base = [column for column in range(K) if not novel[column]] + [K]
    expected = numpy_cross_entropy(logits, targets, base)
    assert abs(float(classification_loss(logits, targets, novel)) - expected) < 1e-5
    expected = numpy_cross_entropy(logits, targets, list(range(K + 1)))
    assert abs(float(classification_loss(logits, targets)) - expected) < 1e-5


def test_classification_has_this_value() -> None:
    logits, targets, novel = made_classification()
    assert abs(float(classification_loss(logits, targets, novel)) - CLASSIFICATION) < 1e-5


def test_novel_logits_have_no_influence_and_no_gradient() -> None:
    logits, targets, novel = made_classification()
    loss = classification_loss(logits.requires_grad_(), targets, novel)
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[:, :-1][:, novel].any()
    assert logits.grad[:, :-1][:, ~novel].all()
    changed = logits.detach().clone()
    changed[:, :-1][:, novel] = 1000
    assert torch.equal(classification_loss(changed, targets, novel), loss.detach())


def test_classification_gradient() -> None:
    logits, targets, novel = made_classification()
    logits = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: classification_loss(x, targets, novel), logits)


@pytest.mark.parametrize("flags", [None, torch.ones(K, dtype=torch.bool)])
def test_classification_of_no_region(flags: Tensor | None) -> None:
    logits = torch.zeros(0, K + 1, requires_grad=True)
    loss = classification_loss(logits, torch.zeros(0, dtype=torch.int64), flags)
    loss.backward()
    assert loss == 0
    assert logits.grad is not None


def test_background_alone_is_certain() -> None:
    logits, _, _ = made_classification()
    all_novel = torch.ones(K, dtype=torch.bool)
    assert classification_loss(logits, torch.full((R,), K), all_novel) == 0


def test_a_novel_target_is_a_leak() -> None:
    logits, targets, novel = made_classification()
    targets[3] = 4
    with pytest.raises(ValueError, match="novel class 4 is the target of 1 of 12"):
        classification_loss(logits, targets, novel)
    classification_loss(logits, targets)


@pytest.mark.parametrize("target", [-1, K + 1, -100])
def test_a_target_outside(target: int) -> None:
    logits, targets, novel = made_classification()
    targets[5] = target
    for flags in (novel, None):
        with pytest.raises(ValueError, match=rf"targets in \[0, 9\].*got {target}"):
            classification_loss(logits, targets, flags)


def test_classification_shapes_are_checked() -> None:
    logits, targets, novel = made_classification()
    with pytest.raises(ValueError, match=r"one target per region, 12, got shape \(11,\)"):
        classification_loss(logits, targets[1:], novel)
    with pytest.raises(ValueError, match=r"novel flags for 9 classes.*got shape \(8,\)"):
        classification_loss(logits, targets, novel[1:])


@pytest.mark.parametrize("seed", range(3))
def test_distillation_is_the_mean_l1_norm_over_regions(seed: int) -> None:
    student, teacher = made_embeddings(seed)
    expected = numpy_distillation(student, teacher)
    assert abs(float(distillation_loss(student, teacher)) - expected) < 1e-5


def test_distillation_has_this_value() -> None:
    assert abs(float(distillation_loss(*made_embeddings())) - DISTILLATION) < 1e-5


def test_teacher_may_be_half_precision_and_need_not_be_normalised() -> None:
    student, teacher = made_embeddings()
    expected = float(distillation_loss(student, teacher))
    loss = distillation_loss(student, teacher.half())
    assert loss.dtype == torch.float32
    assert abs(float(loss) - expected) < 1e-3
    assert abs(float(distillation_loss(student, teacher * 7)) - expected) < 1e-5


def test_distillation_gradient_reaches_the_student_only() -> None:
    student, teacher = (x.double() for x in made_embeddings())
    student.requires_grad_()
    teacher.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: distillation_loss(x, teacher), student)
    distillation_loss(student, teacher).backward()
    assert teacher.grad is None


def test_nothing_to_distil() -> None:
    student, teacher = made_embeddings()
    student = student[:0].requires_grad_()
    loss = distillation_loss(student, teacher[:0])
    loss.backward()
    assert loss == 0
    assert student.grad is not None
    assert not student.grad.any()


def test_distillation_shapes_are_checked() -> None:
    student, teacher = made_embeddings()
    with pytest.raises(ValueError, match=r"one shape \(R, D\), got \(12, 16\) and \(11, 16\)"):
        distillation_loss(student, teacher[1:])


@pytest.mark.parametrize("counts", [(5, 2), (1, 0), (0, 0), (R, R)])
def test_mean_over_ranks_makes_many_processes_equal_one(
    counts: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher = made_embeddings()
    pairs = [(student[:n], teacher[:n]) for n in counts]
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", lambda count: count.fill_(sum(counts)))
    losses = [distillation_loss(*pair, mean_over_ranks=True) for pair in pairs]
    whole = distillation_loss(*(torch.cat(x) for x in zip(*pairs, strict=True)))
    assert torch.allclose((losses[0] + losses[1]) / 2, whole)
    monkeypatch.undo()
    assert torch.equal(
        distillation_loss(*pairs[0], mean_over_ranks=True), distillation_loss(*pairs[0])
    )


def test_float32_under_autocast() -> None:
    logits, targets, novel = made_classification()
    student, teacher = made_embeddings()
    expected = classification_loss(logits, targets, novel), distillation_loss(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(classification_loss(logits, targets, novel), expected[0])
        assert torch.equal(distillation_loss(student, teacher), expected[1])
        for loss in (
            classification_loss(logits.bfloat16(), targets, novel),
            distillation_loss(student.bfloat16(), teacher.half()),
        ):
            assert loss.dtype == torch.float32
