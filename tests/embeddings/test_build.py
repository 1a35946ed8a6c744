"""Building a teacher, and what the package needs of one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vild.data import Vocabulary
from vild.embeddings import (
    CropRule,
    OnlineEmbedder,
    OpenClipTeacher,
    Teacher,
    build_teacher,
    embed_vocabulary,
)


class ColourTeacher:
    """Embeds crops by their mean colour and texts by their hash: another kind of teacher."""

    name, interpolation = "colours", "bilinear"
    temperature, image_size, dimension, fingerprint = 0.1, 8, 3, "f"
    device = torch.device("cpu")

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        return torch.zeros(3), torch.ones(3)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "fingerprint": self.fingerprint, "dimension": self.dimension}

    def encode_text(
        self, texts: Sequence[str], batch_size: int = 256, progress: bool = False
    ) -> Tensor:
        rows = [list(hashlib.sha256(text.encode()).digest()[:3]) for text in texts]
        return functional.normalize(torch.tensor(rows, dtype=torch.float32), dim=1)

    def encode_image(self, crops: Tensor, normalised: bool = False) -> Tensor:
        assert normalised
        return functional.normalize(crops.mean(dim=(2, 3)), dim=1)


def test_any_class_with_the_members_of_a_teacher_can_be_one() -> None:
    teacher: Teacher = ColourTeacher()
    text = embed_vocabulary(teacher, Vocabulary.from_names(["crow", "owl"]))
    assert (text.teacher, text.fingerprint, text.temperature) == ("colours", "f", 0.1)
    assert text.embeddings.shape == (2, 3)
    image = torch.zeros(20, 20, 3, dtype=torch.uint8)
    image[:, :10, 0], image[:, 10:, 2] = 255, 255
    boxes = torch.tensor([[0.0, 0, 8, 20], [12.0, 0, 20, 20]])
    found = OnlineEmbedder(teacher, CropRule(scales=(1.0,))).embed(image, boxes)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0, 0], [0, 0, 1]]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("pretrained", ["", None, "openai"])
def test_a_teacher_is_built_from_its_names(pretrained: str | None) -> None:
    """The tag is the default of every command; a model that includes its weights ignores it."""
    teacher = build_teacher("vild-shapes", pretrained, "cpu")
    assert isinstance(teacher, OpenClipTeacher)
    assert (teacher.name, teacher.dimension, teacher.precision) == ("vild-shapes", 64, "fp32")
    with pytest.raises(ValueError, match="expected an open_clip model, got 'no-such-model'"):
        build_teacher("no-such-model", pretrained, "cpu")
