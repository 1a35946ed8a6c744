"""Text embeddings are computed, saved, loaded and imported, and invalid ones are refused."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional

from vild.data import Vocabulary, fill
from vild.embeddings import (
    Teacher,
    TextEmbeddings,
    cache,
    embed_vocabulary,
    import_embeddings,
    template_set,
)
from vild.embeddings.cache import CachedTextEncoder

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "text_embeddings"
BIRDS = Vocabulary(
    ("kite", "owl", "wren"), (("kite", "glede"), ("owl",), ("wren",)), (True, False, False)
)


@pytest.fixture
def embeddings() -> TextEmbeddings:
    torch.manual_seed(0)
    rows = functional.normalize(torch.randn(3, 8), dim=1)
    return TextEmbeddings(rows, BIRDS, 0.02, "tiny", "f00d", "single", True)


def test_class_embedding_is_the_normalised_mean_of_normalised_prompts(teacher: Teacher) -> None:
    made = embed_vocabulary(teacher, BIRDS, "vild", synonyms=True)
    prompts = [fill(t, name) for name in ("kite", "glede") for t in template_set("vild")]
    rows = teacher.encode_text(prompts)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(126))
    expected = rows.double().mean(dim=0)
    expected = expected / expected.norm()
    torch.testing.assert_close(made.embeddings[0].double(), expected, rtol=0, atol=1e-6)
    assert made.vocabulary == BIRDS
    assert made.temperature == teacher.temperature
    assert made.fingerprint == teacher.fingerprint


def test_synonyms_can_be_left_out(teacher: Teacher) -> None:
    with_synonyms = embed_vocabulary(teacher, BIRDS, "single", synonyms=True).embeddings
    without = embed_vocabulary(teacher, BIRDS, "single", synonyms=False).embeddings
    assert not torch.allclose(with_synonyms[0], without[0])
    torch.testing.assert_close(with_synonyms[1:], without[1:])


def test_result_does_not_depend_on_the_batch_size(teacher: Teacher) -> None:
    made = [embed_vocabulary(teacher, BIRDS, "vild", batch_size=b).embeddings for b in (1, 7, 500)]
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(made[0], made[2], rtol=0, atol=1e-6)


def test_file_gives_everything_back(embeddings: TextEmbeddings, tmp_path: Path) -> None:
    embeddings.save(tmp_path / "a.safetensors")
    loaded = TextEmbeddings.load(tmp_path / "a.safetensors")
    assert torch.equal(loaded.embeddings, embeddings.embeddings)
    for field in fields(TextEmbeddings):
        if field.name != "embeddings":
            assert getattr(loaded, field.name) == getattr(embeddings, field.name), field.name
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]  # no temporary file is left


def test_a_failed_write_leaves_the_old_file(
    embeddings: TextEmbeddings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    embeddings.save(path)
    before = path.read_bytes()

    def full_disk(target: Path, content: bytes) -> int:
        with target.open("wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        replace(embeddings, temperature=0.5).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_flipped_bits_are_found_or_harmless(embeddings: TextEmbeddings, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    embeddings.save(path)
    content, found = path.read_bytes(), 0
    for position in np.random.default_rng(0).choice(8 * len(content), 300, replace=False):
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            read = TextEmbeddings.load(path)
        except ValueError:
            found += 1
            continue
        assert torch.equal(read.embeddings, embeddings.embeddings)
        assert replace(read, embeddings=embeddings.embeddings).__dict__ == embeddings.__dict__
    assert found > 250


def test_embeddings_without_a_checksum_are_read(
    embeddings: TextEmbeddings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Earlier versions wrote such files."""
    path = tmp_path / "a.safetensors"
    embeddings.save(path)
    with safe_open(path, "pt") as file:
        header = {k: v for k, v in file.metadata().items() if k != "vild_sha256"}
    with caplog.at_level("INFO"):
        TextEmbeddings.load(path)
        assert not caplog.records
        save_file({"embeddings": embeddings.embeddings}, path, header)
        assert torch.equal(TextEmbeddings.load(path).embeddings, embeddings.embeddings)
    assert [record.message for record in caplog.records] == [
        f"{path} has no checksum: it was made by an earlier version"
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": torch.eye(8)[:2]}, r"expected embeddings of shape \(3, D\).*\(2, 8\)"),
        ({"embeddings": torch.eye(8)[:3].double()}, "expected float32"),
        ({"embeddings": torch.eye(8)[:3] * 2}, "got 2.0000 for 'kite'"),
        ({"embeddings": torch.eye(8)[:3].index_fill(0, torch.tensor([1]), torch.nan)}, "'owl' is"),
        ({"temperature": 0.0}, "positive temperature"),
        ({"temperature": float("nan")}, "positive temperature"),
        ({"temperature": float("inf")}, "positive temperature"),
    ],
)
def test_wrong_embeddings_are_refused(
    embeddings: TextEmbeddings, change: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(embeddings, **change)


def test_unreadable_files_are_named(embeddings: TextEmbeddings, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no such file\. Make them with"):
        TextEmbeddings.load(tmp_path / "none.safetensors")
    (tmp_path / "half.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        TextEmbeddings.load(tmp_path / "half.safetensors")
    save_file({"embeddings": torch.eye(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="expected the format 'vild-text-embeddings-1', got None"):
        TextEmbeddings.load(tmp_path / "foreign.safetensors")


def test_class_lists_must_agree(embeddings: TextEmbeddings) -> None:
    embeddings.check_classes(["kite", "owl", "wren"], "the dataset")
    with pytest.raises(ValueError, match="the dataset has 2 classes, the text embeddings 3"):
        embeddings.check_classes(["kite", "owl"], "the dataset")
    with pytest.raises(ValueError, match="row 1 is 'wren' in the former and 'owl'"):
        embeddings.check_classes(["kite", "wren", "owl"], "the dataset")


def test_some_of_the_classes(embeddings: TextEmbeddings) -> None:
    first, second, *_ = embeddings.vocabulary.names
    chosen = embeddings.select(Vocabulary.from_names([second, first], novel=[first]))
    assert torch.equal(chosen.embeddings, embeddings.embeddings[[1, 0]])
    assert chosen.vocabulary.novel == (False, True)
    assert chosen.temperature == embeddings.temperature
    respelled = embeddings.select(Vocabulary.from_names([f"{second.upper()}."]))
    assert torch.equal(respelled.embeddings, embeddings.embeddings[[1]])
    assert respelled.vocabulary.names == (f"{second.upper()}.",)
    with pytest.raises(ValueError, match="got none of 'no such bird' among"):
        embeddings.select(Vocabulary.from_names([first, "no such bird"]))


def test_a_long_text_is_no_file_of_templates() -> None:
    with pytest.raises(ValueError, match="expected the template set") as error:
        template_set("a photo, " * 100)
    assert len(str(error.value)) < 500


def test_template_sets() -> None:
    assert len(template_set("single")) == 1
    assert len(template_set("vild")) == 63
    imagenet = template_set("imagenet")
    assert len(imagenet) == 80
    assert all("{}" in template for template in imagenet)
    with pytest.raises(ValueError, match=r"expected the template set 'single'.*got 'klip'"):
        template_set("klip")


def test_templates_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a drawing of {}\n\n{article} {}\n", encoding="utf-8")
    assert template_set(str(tmp_path / "t.txt")) == ("a drawing of {}", "{article} {}")
    for bad, message in (
        (b"a drawing\n", "where the class name goes"),
        (b"", "expected at least one prompt template"),
        (b"une \xe9tude de {}\n", r"bad\.txt: expected prompt templates.* in UTF-8"),
        (b'"a drawing of {}",\n', "Remove quotes"),
        (b'["a drawing of {}"]', "Remove quotes"),
        (b"- a drawing of {}", "Remove quotes"),
    ):
        (tmp_path / "bad.txt").write_bytes(bad)
        with pytest.raises(ValueError, match=message):
            template_set(str(tmp_path / "bad.txt"))
    with pytest.raises(ValueError, match="expected prompt templates"):
        template_set(str(tmp_path))


def test_embeddings_record_templates_and_not_their_file(teacher: Teacher, tmp_path: Path) -> None:
    file = tmp_path / "t.txt"
    file.write_text("a drawing of {}\n\n{article} {}\n", encoding="utf-8")
    made = embed_vocabulary(teacher, BIRDS, str(file))
    made.save(tmp_path / "text.safetensors")
    file.unlink()
    read = TextEmbeddings.load(tmp_path / "text.safetensors")
    assert template_set(read.templates) == ("a drawing of {}", "{article} {}")
    again = embed_vocabulary(teacher, BIRDS, read.templates)
    assert torch.equal(again.embeddings, made.embeddings)
    assert again.templates == made.templates
    for named in ("single", "vild"):
        assert embed_vocabulary(teacher, BIRDS, named).templates == named
    cached = CachedTextEncoder(
        "vild-shapes", None, templates=read.templates, folder=tmp_path / "cache"
    )
    assert cached.embed(BIRDS).templates == made.templates


def test_a_batch_without_prompts_is_refused(teacher: Teacher) -> None:
    with pytest.raises(ValueError, match="expected a batch size of at least 1, got 0"):
        embed_vocabulary(teacher, BIRDS, batch_size=0)


def test_spellings_share_a_cached_embedding(tmp_path: Path) -> None:
    encoder = CachedTextEncoder("vild-shapes", None, templates="single", folder=tmp_path)
    first = encoder.embed(Vocabulary.from_names(["alarm_clock", "kite"]))
    second = encoder.embed(Vocabulary.from_names(["Kite.", "Alarm clock"]))
    assert encoder.encoded == 2
    assert torch.equal(first.embeddings, second.embeddings.flip(0))
    assert second.vocabulary.names == ("Kite.", "Alarm clock")


def test_a_vocabulary_larger_than_the_cache_is_kept_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "MAX_WORDS", 4)
    monkeypatch.setattr(cache, "embed_vocabulary", _fake_embeddings)
    names = [f"thing {row}" for row in range(22_047)]
    encoder = CachedTextEncoder("vild-shapes", None, templates="single", folder=tmp_path)
    encoder.embed(Vocabulary.from_names(names[:3]))
    made = encoder.embed(Vocabulary.from_names(names))
    assert made.embeddings.shape == (22_047, 64)
    assert encoder.encoded == 22_047
    again = CachedTextEncoder("vild-shapes", None, templates="single", folder=tmp_path)
    assert torch.equal(again.embed(Vocabulary.from_names(names)).embeddings, made.embeddings)
    assert again.encoded == 0


def _fake_embeddings(teacher: Teacher, vocabulary: Vocabulary, *args: object) -> TextEmbeddings:
    rows = functional.normalize(torch.randn(len(vocabulary), 64), dim=1)
    return TextEmbeddings(rows, vocabulary, 0.01, teacher.name)


@pytest.mark.parametrize("layout", ["kd", "dk"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_published_matrices_are_read_in_both_layouts(
    tmp_path: Path, layout: str, dtype: type
) -> None:
    matrix = np.random.RandomState(0).standard_normal((3, 5)).astype(dtype) * 7
    np.save(tmp_path / "m.npy", matrix if layout == "kd" else matrix.T)
    for asked in ("auto", layout):
        read = import_embeddings(tmp_path / "m.npy", BIRDS, "ViT-B-32/openai", 0.01, asked)
        expected = matrix.astype(np.float64)
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(read.embeddings.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("matrix", "layout", "message"),
    [
        (np.ones((4, 5)), "auto", r"expected the shape \(3, D\) or \(D, 3\).*got \(4, 5\)"),
        (np.ones((3, 5)), "dk", r"expected the shape \(3, D\) or \(D, 3\).*got \(3, 5\)"),
        (np.eye(3), "auto", "fits both"),
        (np.ones(3), "auto", "expected a float matrix"),
        (np.ones((3, 5), int), "auto", "expected a float matrix"),
        (np.zeros((3, 5)), "auto", "the row of 'kite' is zero or not finite"),
        (np.full((3, 5), np.nan), "auto", "the row of 'kite' is zero or not finite"),
        (np.array([{}]), "auto", "expected a matrix in .npy format"),
    ],
)
def test_matrices_that_do_not_fit_are_refused(
    tmp_path: Path, matrix: np.ndarray, layout: str, message: str
) -> None:
    np.save(tmp_path / "m.npy", matrix)
    with pytest.raises(ValueError, match=message):
        import_embeddings(tmp_path / "m.npy", BIRDS, "x", layout=layout)


def test_a_missing_matrix_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"expected a matrix in .npy format at .*none.npy: no such"
    ):
        import_embeddings(tmp_path / "none.npy", BIRDS, "x")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/text_embeddings")
@pytest.mark.parametrize(
    ("file", "dataset", "word", "among"),
    [
        ("lvis_v1_clip_a+cname.npy", "lvis_v1_val", "sofa", {"sofa_bed", "loveseat", "armchair"}),
        ("coco_clip_a+cname.npy", None, "cat", {"dog", "bear", "mouse", "teddy bear", "bird"}),
    ],
)
def test_real_embeddings_have_sensible_neighbours(
    file: str, dataset: str | None, word: str, among: set[str]
) -> None:
    if dataset:
        vocabulary = Vocabulary.from_dataset(dataset)
    else:
        vocabulary = Vocabulary.from_dataset("coco_2017_val")
    read = import_embeddings(SHARED / file, vocabulary, "ViT-B-32/openai")
    assert read.dimension == 512
    similarity = read.embeddings @ read.embeddings[vocabulary.names.index(word)]
    nearest = [vocabulary.names[i] for i in similarity.argsort(descending=True)[:4].tolist()]
    assert nearest[0] == word
    assert len(among & set(nearest[1:])) >= min(3, len(among) - 3 or 3), nearest


def test_header_is_plain_json(embeddings: TextEmbeddings, tmp_path: Path) -> None:
    embeddings.save(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        header = file.metadata()
    assert json.loads(header["vocabulary"])["categories"][0] == {
        "name": "kite",
        "synonyms": ["kite", "glede"],
        "novel": True,
    }
    assert float(header["temperature"]) == 0.02
