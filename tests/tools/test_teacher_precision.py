"""The teacher's precision: by default chosen by machine, and recorded in the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import extract_image_embeddings
import extract_proposals
from vild.embeddings import EmbeddingStore
from vild.embeddings.teacher import default_precision

from .conftest import SmallData


@pytest.mark.parametrize(
    ("device", "capability", "expected"),
    [
        ("cpu", (9, 0), "fp32"),
        ("cuda", (9, 0), "bf16"),
        ("cuda:1", (8, 0), "bf16"),
        ("cuda", (7, 5), "fp32"),
    ],
)
def test_the_default_is_what_the_device_computes_in(
    device: str, capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    assert default_precision(device) == expected


def test_a_store_of_another_machine_s_precision(
    small: SmallData,
    detector: Path,
    run: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is refused, and the message names the option to continue it."""
    own = ["--images-per-shard", 4, *small.arguments]
    propose = ["--config-file", detector, "--topk", 10, "--no-recall", "--out-dir"]
    assert run(extract_proposals, *propose, small.folder / "p", *own) == 0
    source = ["--proposals", small.folder / "p" / small.split, "--out-dir", small.folder / "e"]
    embed = ["--model", "vild-shapes", *source, *own]
    with monkeypatch.context() as patch:
        patch.setattr("vild.embeddings.teacher.default_precision", lambda _: "bf16")
        assert run(extract_image_embeddings, *embed) == 0
    folder = small.folder / "e" / small.split
    assert EmbeddingStore(folder).spec.source["teacher"]["precision"] == "bf16"
    (folder / "shard_00001.safetensors").unlink()
    capsys.readouterr()
    assert run(extract_image_embeddings, *embed) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "source.teacher.precision: 'bf16' / 'fp32'" in error
    assert error.endswith("To continue it on this machine, use --precision bf16.")
    assert run(extract_image_embeddings, *embed, "--precision", "bf16") == 0
