"""The text classifier: cosines over a temperature, in float32, for any vocabulary."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vild.modeling import TextClassifier


def unit_rows(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(*shape, generator=generator), dim=1)


@pytest.fixture
def classifier() -> TextClassifier:
    torch.manual_seed(0)
    made = TextClassifier(dimension=16, temperature=0.01)
    made.set_text(unit_rows(7, 16))
    return made


def test_logits_are_cosines_over_temperature_with_background_last(
    classifier: TextClassifier,
) -> None:
    features = unit_rows(5, 16, seed=1)
    background = classifier.background.detach().double().numpy()
    rows = np.vstack([unit_rows(7, 16).double().numpy(), background / np.linalg.norm(background)])
    expected = features.double().numpy() @ rows.T * 100
    assert np.abs(classifier(features).detach().numpy() - expected).max() < 1e-4


def test_background_starts_small_and_its_length_does_not_matter(
    classifier: TextClassifier,
) -> None:
    wide = TextClassifier(dimension=10_000, temperature=0.01)
    assert 0.0095 < float(wide.background.detach().std()) < 0.0105
    features = unit_rows(5, 16, seed=1)
    before = classifier(features)
    with torch.no_grad():
        classifier.background.mul_(1000)
    assert torch.allclose(classifier(features), before, atol=1e-4)
    assert before[:, -1].abs().max() <= 100


def test_without_background(classifier: TextClassifier) -> None:
    features = unit_rows(5, 16, seed=1)
    logits = classifier(features)
    assert torch.equal(classifier(features, background=False), logits[:, :-1])


def test_no_region(classifier: TextClassifier) -> None:
    logits = classifier(torch.zeros(0, 16, requires_grad=True))
    assert logits.shape == (0, 8)
    logits.sum().backward()
    assert classifier.background.grad is not None
    assert not classifier.background.grad.any()


def test_text_is_not_in_the_checkpoint_and_can_be_replaced(classifier: TextClassifier) -> None:
    assert list(classifier.state_dict()) == ["background"]
    other = TextClassifier(dimension=16, temperature=0.01)
    other.set_text(unit_rows(3, 16))
    other.load_state_dict(classifier.state_dict())
    assert torch.equal(other.background, classifier.background)
    assert other(unit_rows(2, 16)).shape == (2, 4)
    assert not other.text.requires_grad


def test_text_is_copied(classifier: TextClassifier) -> None:
    rows = unit_rows(3, 16)
    classifier.set_text(rows)
    rows.zero_()
    assert classifier.text.norm() > 0


def test_temperature_comes_with_the_text(classifier: TextClassifier) -> None:
    features = unit_rows(5, 16, seed=1)
    before = classifier(features)
    classifier.set_text(unit_rows(7, 16))
    assert torch.equal(classifier(features), before)
    classifier.set_text(unit_rows(7, 16), 0.02)
    assert torch.allclose(classifier(features), before / 2)


def test_float32_under_autocast(classifier: TextClassifier) -> None:
    features = unit_rows(5, 16, seed=1)
    expected = classifier(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        logits = classifier(features)
        rounded = classifier(features.bfloat16())
    assert logits.dtype == rounded.dtype == torch.float32
    assert torch.equal(logits, expected)


def test_gradients(classifier: TextClassifier) -> None:
    features = unit_rows(3, 16, seed=1).double().requires_grad_()
    background = classifier.background.detach().double().requires_grad_()

    def logits(features: Tensor, background: Tensor) -> Tensor:
        return torch.func.functional_call(classifier, {"background": background}, (features,))

    assert torch.autograd.gradcheck(logits, (features, background))


def test_twenty_thousand_classes() -> None:
    classifier = TextClassifier(dimension=8, temperature=0.01)
    classifier.set_text(unit_rows(20_000, 8))
    assert classifier(unit_rows(3, 8)).shape == (3, 20_001)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (unit_rows(3, 8), r"\(K, 16\).*got \(3, 8\)"),
        (unit_rows(16, 3), r"got \(16, 3\)"),
        (torch.zeros(0, 16), r"K > 0"),
        (unit_rows(1, 16)[0], r"got \(16,\)"),
        (unit_rows(3, 16).double(), "float32.*float64"),
        (unit_rows(3, 16) * torch.tensor([1, 1.002, 1])[:, None], "row 1 has norm 1.002"),
        (unit_rows(3, 16) * torch.tensor([1, 1, torch.nan])[:, None], "row 2 has norm nan"),
    ],
)
def test_text_that_is_refused(classifier: TextClassifier, text: Tensor, complaint: str) -> None:
    before = classifier.text
    with pytest.raises(ValueError, match=complaint):
        classifier.set_text(text)
    assert classifier.text is before


def test_other_misuse() -> None:
    with pytest.raises(ValueError, match="positive temperature, got 0"):
        TextClassifier(dimension=16, temperature=0)
    with pytest.raises(ValueError, match="positive embedding dimension"):
        TextClassifier(dimension=0, temperature=0.01)
    classifier = TextClassifier(dimension=16, temperature=0.01)
    with pytest.raises(RuntimeError, match=r"call set_text\(\) first"):
        classifier(unit_rows(2, 16))
    with pytest.raises(ValueError, match="positive temperature, got -1"):
        classifier.set_text(unit_rows(2, 16), -1)
    assert "classes=0, dimension=16, temperature=0.01" in repr(classifier)
