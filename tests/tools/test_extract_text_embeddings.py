"""The command line of tools/extract_text_embeddings.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import extract_text_embeddings
from vild.data import Vocabulary
from vild.embeddings import TextEmbeddings

Run = Callable[..., int]


@pytest.fixture
def main(run: Run) -> Run:
    """Return a function that runs the command in this process and returns its exit code."""
    return partial(run, extract_text_embeddings)


def test_registered_classes_are_embedded(
    main: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shapes.safetensors"
    teacher = ("--model", "vild-shapes", "--templates", "single", "--device", "cpu")
    assert main("--vocabulary", "shapes_val", *teacher, "--out", out) == 0
    assert "60 classes (18 novel) x 64, teacher vild-shapes" in capsys.readouterr().out
    made = TextEmbeddings.load(out)
    assert made.vocabulary == Vocabulary.from_dataset("shapes_val")
    assert (made.templates, made.synonyms) == ("single", True)
    assert 0.01 < made.temperature < 0.1


def test_published_matrix_is_imported(main: Run, tmp_path: Path) -> None:
    matrix = np.random.RandomState(0).standard_normal((5, 3)).astype(np.float16)
    np.save(tmp_path / "m.npy", matrix)
    out = tmp_path / "birds.safetensors"
    published = ("--import", tmp_path / "m.npy")
    assert main("--vocabulary", "kite, owl, wren", "--novel", "owl", "--out", out, *published) == 0
    read = TextEmbeddings.load(out)
    assert read.vocabulary.novel == (False, True, False)
    expected = torch.nn.functional.normalize(torch.from_numpy(matrix.T.astype(np.float32)), dim=1)
    torch.testing.assert_close(read.embeddings, expected)

    some = tmp_path / "some.safetensors"
    published += ("--import-classes", "kite, owl, wren")
    assert main("--vocabulary", "wren, kite", "--novel", "kite", "--out", some, *published) == 0
    read = TextEmbeddings.load(some)
    assert (read.vocabulary.names, read.vocabulary.novel) == (("wren", "kite"), (False, True))
    torch.testing.assert_close(read.embeddings, expected[[2, 0]])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--vocabulary", "a, b", "--import", "{npy}"), "expected the shape (2, D) or (D, 2)"),
        (
            ("--vocabulary", "a, a", "--model", "vild-shapes"),
            "expected every class once, got 'a' 2 times",
        ),
        (("--vocabulary", "a, A", "--model", "vild-shapes"), "have the same prompts"),
        (("--vocabulary", "gone.json"), "expected a vocabulary at gone.json"),
        (("--vocabulary", "{npy}"), "expected a vocabulary as a .json"),
        (("--vocabulary", "lvis_v1_vall"), "Did you mean lvis_v1_val"),
        (("--vocabulary", "a, b", "--import", "{npy}.txt"), "as one of .npy, .npz, .pth"),
        (("--vocabulary", "a", "--templates", "{npy}"), "expected prompt templates"),
        (("--vocabulary", "a", "--templates", "a photo " * 99), "expected the template set"),
        (("--vocabulary", "a", "--novel", "b"), "novel class 'b' is not in the vocabulary"),
        (("--vocabulary", "a", "--dataset-yaml", "gone.yaml"), "No such file"),
    ],
)
def test_mistakes_get_one_line_and_no_file(
    main: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    args: tuple[str, ...],
    message: str,
) -> None:
    np.save(tmp_path / "m.npy", np.ones((3, 5)))
    out = tmp_path / "out.safetensors"
    assert main(*(a.format(npy=tmp_path / "m.npy") for a in args), "--out", out) == 2
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "Traceback" not in said
    assert not out.exists()


@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5"])
def test_impossible_batch_sizes(
    main: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    out = tmp_path / "out.safetensors"
    assert main("--vocabulary", "a", "--batch-size", value, "--out", out) == 2
    said = capsys.readouterr().err
    assert f"--batch-size: expected an integer of at least 1, got '{value}'" in said


def test_tensors_of_torch_are_imported_for_a_list_of_another_kind(
    main: Run, tmp_path: Path
) -> None:
    torch.save({"text": torch.eye(4)[:2]}, tmp_path / "words.pth")
    (tmp_path / "data.yaml").write_text("nc: 2\nnames: {0: kite, 1: owl}\n", encoding="utf-8")
    out = tmp_path / "birds.safetensors"
    words = ("--vocabulary", tmp_path / "data.yaml")
    assert main(*words, "--out", out, "--import", tmp_path / "words.pth") == 0
    made = TextEmbeddings.load(out)
    assert made.vocabulary.names == ("kite", "owl")
    assert torch.equal(made.embeddings, torch.eye(4)[:2])


def test_names_in_the_file_put_its_rows_in_order(
    main: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, out = torch.eye(4)[:3], tmp_path / "birds.safetensors"
    torch.save({"rows": rows, "classes": ["wren", "sofa_bed", "kite"]}, tmp_path / "m.pth")
    read = ("--out", out, "--import", tmp_path / "m.pth")
    assert main("--vocabulary", "kite, wren", *read) == 0
    assert torch.equal(TextEmbeddings.load(out).embeddings, rows[[2, 0]])
    assert main("--vocabulary", "kite, wren, owl", *read) == 2
    assert "got none of 'owl'" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_said_first(
    main: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path, tmp_path / "file" / "a.safetensors", Path("/proc/a.safetensors")):
        assert main("--vocabulary", "a", "--model", "gone", "--out", out) == 2
        error = capsys.readouterr().err
        assert f"error: expected --out to be a file that can be written, got {out}" in error
