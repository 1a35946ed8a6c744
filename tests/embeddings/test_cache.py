"""A damaged cache of text embeddings costs time but never changes a result."""

from __future__ import annotations

import json
import logging
import multiprocessing
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional

from vild.data import Vocabulary
from vild.embeddings import TextEmbeddings, cache
from vild.embeddings.cache import CachedTextEncoder

WORDS = [f"thing {n}" for n in range(6)]


def by_word(teacher: object, vocabulary: Vocabulary, *_: object) -> TextEmbeddings:
    """Return embeddings that depend only on the words."""
    rows = [
        torch.randn(8, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        for name in vocabulary.names
    ]
    return TextEmbeddings(functional.normalize(torch.stack(rows), dim=1), vocabulary, 0.01, "fake")


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "embed_vocabulary", by_word)


def encoder(folder: Path) -> CachedTextEncoder:
    return CachedTextEncoder(
        "none", None, fingerprint="f" * 64, temperature=0.01, templates="single", folder=folder
    )


def embed(folder: Path, words: list[str] = WORDS) -> tuple[torch.Tensor, int]:
    """Return embeddings, and the number of words that had to be computed."""
    used = encoder(folder)
    used._teacher = object()  # type: ignore[assignment]
    return used.embed(Vocabulary.from_names(words)).embeddings, used.encoded


def test_any_flipped_bit_is_found(tmp_path: Path) -> None:
    expected, count = embed(tmp_path)
    assert count == len(WORDS)
    (file,) = tmp_path.glob("*.safetensors")
    whole = file.read_bytes()
    again = []
    for position in np.linspace(0, len(whole) - 1, 60).astype(int).tolist():
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        file.write_bytes(damaged)
        found, count = embed(tmp_path)
        assert torch.equal(found, expected), position
        again.append(count)
        found, count = embed(tmp_path)  # repaired
        assert torch.equal(found, expected)
        assert count == 0, position
    assert 1 in again  # a single entry
    assert len(WORDS) in again  # a header


def test_a_damaged_entry_is_computed_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected, _ = embed(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    with safe_open(file, "pt") as opened:
        start = content.index(opened.get_tensor("embeddings")[2].numpy().tobytes())
    content[start : start + 4] = np.float32(np.nan).tobytes()
    file.write_bytes(content)
    assert embed(tmp_path, WORDS[3:])[1] == 0
    # words that are not requested stay damaged, which is detected on their next use
    assert embed(tmp_path, ["new"])[1] == 1
    with caplog.at_level(logging.WARNING):
        found, count = embed(tmp_path)
    assert (count, torch.equal(found, expected)) == (1, True)
    assert "1 damaged entries are computed again" in caplog.text


def test_rows_exchanged_are_found(tmp_path: Path) -> None:
    expected, _ = embed(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
        rows, checksums = map(opened.get_tensor, ("embeddings", "checksums"))
    save_file({"embeddings": rows.flip(0), "checksums": checksums.flip(0)}, file, header)
    found, count = embed(tmp_path)
    assert torch.equal(found, expected)
    assert count == len(WORDS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_caches_of_earlier_versions_are_made_anew(tmp_path: Path, dtype: torch.dtype) -> None:
    expected, _ = embed(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        keys, rows = opened.metadata()["keys"], opened.get_tensor("embeddings")
    header = {"format": "vild-text-cache-1", "keys": keys}
    save_file({"embeddings": rows.to(dtype)}, file, header)
    assert embed(tmp_path)[1] == len(WORDS)
    assert embed(tmp_path)[1] == 0
    # an old file that claims the new format
    save_file({"embeddings": rows.to(dtype)}, file, {**header, "format": cache.FORMAT})
    found, count = embed(tmp_path)
    assert torch.equal(found, expected)
    assert count == len(WORDS)


@pytest.mark.parametrize("keys", ["[]", "null", "3", "{", "[[1]]", "[" * 99_999])
def test_keys_may_be_anything(tmp_path: Path, keys: str) -> None:
    embed(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        rows, checksums = map(opened.get_tensor, ("embeddings", "checksums"))
    tensors = {"embeddings": rows[:1].clone(), "checksums": checksums[:1].clone()}
    save_file(tensors, file, {"format": cache.FORMAT, "keys": keys})
    assert embed(tmp_path)[1] == len(WORDS)


def test_the_last_words_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MAX_WORDS", 4)
    embed(tmp_path, WORDS[:3])
    embed(tmp_path, WORDS[2:5])
    (file,) = tmp_path.glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        keys = json.loads(opened.metadata()["keys"])
    assert keys == [json.dumps([word]) for word in WORDS[1:5]]
    assert embed(tmp_path, WORDS[1:5])[1] == 0
    assert embed(tmp_path)[1] == 2
    assert embed(tmp_path)[1] == 0  # the whole vocabulary is kept, although it exceeds the limit


def _add(folder: Path, rank: int) -> None:
    for number in range(8):
        embed(folder, [f"word {rank} {number}", "common"])


def test_processes_add_words_at_the_same_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_add, args=(tmp_path, rank)) for rank in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    words = [f"word {rank} {number}" for rank in range(3) for number in range(8)]
    found, count = embed(tmp_path, [*words, "common"])
    assert count == 0
    expected = by_word(None, Vocabulary.from_names([*words, "common"])).embeddings
    assert torch.equal(found, expected)


def test_a_cache_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected, _ = embed(tmp_path / "whole")
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        found, _ = embed(tmp_path / "file")
    assert torch.equal(found, expected)
    assert "6 words were not kept" in caplog.text
