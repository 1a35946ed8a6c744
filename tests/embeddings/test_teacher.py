"""The teacher equals OpenAI's code, and gives clear errors if it cannot be loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import clip
import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional

from vild.embeddings import OpenClipTeacher, build_teacher

from .conftest import tiny_clip

SENTENCES = [
    "a red kite",
    "This is a photo of a bow (decorative ribbons) in the scene, seen from afar on a rainy day.",
    "ñandú 🐦",
    "word " * 200,
    "",
]


@pytest.fixture(scope="module")
def openai(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[torch.nn.Module, Path]]:
    """Yield OpenAI's ViT-B/32 with random weights, and its checkpoint file."""
    torch.manual_seed(0)
    model = clip.model.CLIP(
        embed_dim=512,
        image_resolution=224,
        vision_layers=12,
        vision_width=768,
        vision_patch_size=32,
        context_length=77,
        vocab_size=49408,
        transformer_width=512,
        transformer_heads=8,
        transformer_layers=12,
    ).eval()
    # embeddings of random weights hardly depend on the image; those of larger weights do
    for parameter in model.visual.parameters():
        parameter.data.mul_(1.5)
    path = tmp_path_factory.mktemp("weights") / "ViT-B-32.pt"
    torch.save(model.state_dict(), path)
    yield model, path
    path.unlink()


@pytest.mark.slow
def test_embeddings_equal_those_of_openai_s_code(openai: tuple[torch.nn.Module, Path]) -> None:
    reference, checkpoint = openai
    teacher = build_teacher("ViT-B-32-quickgelu", str(checkpoint), "cpu")
    crops = torch.rand(3, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    normalise = clip.clip._transform(224).transforms[-1]
    with torch.no_grad():
        text = reference.encode_text(clip.tokenize(SENTENCES, truncate=True))
        image = reference.encode_image(normalise(crops))
        plain = build_teacher("ViT-B-32", str(checkpoint), "cpu").encode_image(crops)
    expected_text, expected_image = functional.normalize(text), functional.normalize(image)
    torch.testing.assert_close(teacher.encode_text(SENTENCES), expected_text, rtol=0, atol=1e-5)
    torch.testing.assert_close(teacher.encode_image(crops), expected_image, rtol=0, atol=1e-5)
    # the reason for the -quickgelu model: the plain one has another activation
    assert (plain - expected_image).abs().max() > 1e-4
    assert teacher.temperature == pytest.approx(1 / float(reference.logit_scale.detach().exp()))
    assert (teacher.dimension, teacher.image_size) == (512, 224)


def test_openai_s_tag_gets_openai_s_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def create(model: str, **options: object) -> open_clip.CLIP:
        asked.update(options)
        return tiny_clip()

    monkeypatch.setattr(open_clip, "create_model", create)
    build_teacher("ViT-B-32", "openai", "cpu")
    assert asked["force_quick_gelu"] is True
    build_teacher("ViT-B-32", "laion2b_s34b_b79k", "cpu")
    assert asked["force_quick_gelu"] is False


def test_padding_is_trimmed_without_a_trace(teacher: OpenClipTeacher) -> None:
    tokens = teacher.tokenizer(SENTENCES)
    with torch.no_grad():
        expected = functional.normalize(teacher.model.encode_text(tokens))
    torch.testing.assert_close(teacher.encode_text(SENTENCES), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_sentences_come_back_in_their_order(teacher: OpenClipTeacher, batch_size: int) -> None:
    together = teacher.encode_text(SENTENCES, batch_size)
    for row, sentence in zip(together, SENTENCES, strict=True):
        torch.testing.assert_close(row, teacher.encode_text([sentence])[0], rtol=0, atol=1e-6)


def test_crops_are_normalised_as_the_model_was_trained(teacher: OpenClipTeacher) -> None:
    crops = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    with torch.no_grad():
        expected = functional.normalize(teacher.model.encode_image((crops - mean) / std))
    torch.testing.assert_close(teacher.encode_image(crops), expected)


@pytest.mark.parametrize("shape", [(2, 3, 32, 31), (3, 32, 32), (2, 1, 32, 32)])
def test_crops_of_another_shape_are_refused(
    teacher: OpenClipTeacher, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"expected crops of shape \(N, 3, 32, 32\)"):
        teacher.encode_image(torch.zeros(shape))


def test_no_sentence_is_refused(teacher: OpenClipTeacher) -> None:
    with pytest.raises(ValueError, match="at least one sentence"):
        teacher.encode_text([])


def test_teacher_is_frozen(teacher: OpenClipTeacher) -> None:
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.model.parameters())


def test_fingerprint_follows_the_weights(teacher: OpenClipTeacher) -> None:
    again = OpenClipTeacher(tiny_clip(), teacher.tokenizer, name="other name")
    assert again.fingerprint == teacher.fingerprint
    changed = tiny_clip()
    changed.visual.conv1.weight.data[0, 0, 0, 0] += 1e-3
    assert (
        OpenClipTeacher(changed, teacher.tokenizer, name="tiny").fingerprint != teacher.fingerprint
    )


def test_fingerprint_follows_activation_and_preprocessing(teacher: OpenClipTeacher) -> None:
    others = [
        OpenClipTeacher(tiny_clip(quick_gelu=True), teacher.tokenizer, name="tiny"),
        *(
            OpenClipTeacher(tiny_clip(), teacher.tokenizer, name="tiny", **changed)
            for changed in (
                {"mean": 0.5},
                {"std": (0.5, 0.5, 0.5)},
                {"interpolation": "bilinear"},
                {"resize_mode": "squash"},
            )
        ),
    ]
    assert len({other.fingerprint for other in [teacher, *others]}) == 6
    assert others[3].describe()["preprocess"]["interpolation"] == "bilinear"


def test_missing_download_says_what_to_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> str:
        raise OSError("no connection")

    monkeypatch.setattr("open_clip.factory.download_pretrained", offline)
    with pytest.raises(
        ValueError, match=r"fetch .*openai on .*--model ViT-B-32 --pretrained openai=/path/to/file"
    ):
        build_teacher("ViT-B-32", "openai", "cpu")


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        ("ViT-Z-1", None, "expected an open_clip model, got 'ViT-Z-1'"),
        ("ViT-B-32", "nowhere.pt", r"expected a checkpoint of ViT-B-32 at nowhere\.pt: no such"),
        ("ViT-B-32", "opanai", "one of the tags openai, .* for ViT-B-32, got 'opanai'"),
        ("local-dir:/nowhere", None, "could not be loaded"),
    ],
)
def test_what_can_not_be_loaded_is_named(model: str, pretrained: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_teacher(model, pretrained, "cpu")


def test_checkpoint_of_another_model_is_named(tmp_path: Path) -> None:
    torch.save(tiny_clip().state_dict(), tmp_path / "tiny.pt")
    with pytest.raises(ValueError, match=r"tiny\.pt could not be loaded as a checkpoint of RN50"):
        build_teacher("RN50", str(tmp_path / "tiny.pt"), "cpu")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_close(teacher: OpenClipTeacher, precision: str) -> None:
    half = OpenClipTeacher(tiny_clip(), teacher.tokenizer, name="tiny", precision=precision)
    assert half.fingerprint == teacher.fingerprint
    crops = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    embedded = half.encode_image(crops)
    assert embedded.dtype == torch.float32
    cosine = (embedded * teacher.encode_image(crops)).sum(dim=1).numpy()
    np.testing.assert_allclose(cosine, 1, atol=0.01)


def test_unknown_precision_is_refused(teacher: OpenClipTeacher) -> None:
    with pytest.raises(ValueError, match=r"expected a precision of .*'fp32'.*, got 'fp8'"):
        OpenClipTeacher(tiny_clip(), teacher.tokenizer, name="tiny", precision="fp8")


def test_crops_that_are_normalised_already(teacher: OpenClipTeacher) -> None:
    crops = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (v[:, None, None] for v in teacher.statistics)
    given = teacher.encode_image((crops - mean) / std, normalised=True)
    torch.testing.assert_close(given, teacher.encode_image(crops))
