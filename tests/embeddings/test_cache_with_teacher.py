"""The cache of text embeddings, filled by the teacher of the synthetic benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vild.data import Vocabulary
from vild.embeddings import cache
from vild.embeddings.cache import CachedTextEncoder

WORDS = ["striped red star", "plain blue heart", "dotted green moon"]


def test_another_teacher_than_the_detectors_is_refused(tmp_path: Path) -> None:
    encoder = CachedTextEncoder("vild-shapes", None, fingerprint="0" * 64, folder=tmp_path)
    with pytest.raises(ValueError, match="the teacher that the detector learned from"):
        encoder.embed(Vocabulary.from_names(WORDS))


def test_a_damaged_cache_is_made_anew(tmp_path: Path) -> None:
    words = Vocabulary.from_names(WORDS)
    encoder = CachedTextEncoder("vild-shapes", None, templates="single", folder=tmp_path)
    before = encoder.embed(words).embeddings
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:40])
    again = CachedTextEncoder("vild-shapes", None, templates="single", folder=tmp_path)
    assert torch.equal(again.embed(words).embeddings, before)
    assert again.encoded == 3
    file.unlink()
    tmp_path.joinpath("file").write_text("")
    unwritable = CachedTextEncoder(
        "vild-shapes", None, templates="single", folder=tmp_path / "file"
    )
    assert torch.equal(unwritable.embed(words).embeddings, before)


def test_the_cache_keeps_the_newest_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MAX_WORDS", 2)
    first = CachedTextEncoder("vild-shapes", None, folder=tmp_path)
    made = first.embed(Vocabulary.from_names(WORDS))
    assert made.embeddings.shape == (3, 64)
    again = CachedTextEncoder("vild-shapes", None, folder=tmp_path)
    same_words = again.embed(Vocabulary.from_names(WORDS[1:]))
    assert again.encoded == 0
    assert torch.equal(same_words.embeddings, made.embeddings[1:])
    again.embed(Vocabulary.from_names([WORDS[2], "crow"]))
    assert again.encoded == 1
    # words used together with the last new word are kept
    again.embed(Vocabulary.from_names([WORDS[2], "crow"]))
    assert again.encoded == 1
    again.embed(Vocabulary.from_names(WORDS[:2]))
    assert again.encoded == 3
