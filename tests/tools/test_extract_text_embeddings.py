"""The command line that makes text embeddings, as a user calls it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import extract_text_embeddings
from vild.data import Vocabulary
from vild.embeddings import TextEmbeddings


def run(repository: Path, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/extract_text_embeddings.py", *map(str, args)]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=300)


Run = Callable[..., int]


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command in this process; returns its exit code."""

    def call(*args: object) -> int:
        monkeypatch.setattr(sys, "argv", ["extract_text_embeddings.py", *map(str, args)])
        try:
            return extract_text_embeddings.main()
        except SystemExit as ended:
            return int(ended.code or 0)

    return call


def test_registered_classes_are_embedded(repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "shapes.safetensors"
    done = run(
        *(repository, "--vocabulary", "shapes_val", "--model", "vild-shapes", "--out", out),
        *("--templates", "single", "--device", "cpu"),
    )
    assert done.returncode == 0, done.stderr
    assert "60 classes (18 novel) x 64, teacher vild-shapes" in done.stdout
    made = TextEmbeddings.load(out)
    assert made.vocabulary == Vocabulary.from_dataset("shapes_val")
    assert (made.templates, made.synonyms) == ("single", True)
    assert 0.01 < made.temperature < 0.1


def test_published_matrix_is_imported(repository: Path, tmp_path: Path) -> None:
    matrix = np.random.RandomState(0).standard_normal((5, 3)).astype(np.float16)
    np.save(tmp_path / "m.npy", matrix)
    out = tmp_path / "birds.safetensors"
    done = run(
        *(repository, "--vocabulary", "kite, owl, wren", "--novel", "owl", "--out", out),
        *("--import", tmp_path / "m.npy"),
    )
    assert done.returncode == 0, done.stderr
    read = TextEmbeddings.load(out)
    assert read.vocabulary.novel == (False, True, False)
    expected = torch.nn.functional.normalize(torch.from_numpy(matrix.T.astype(np.float32)), dim=1)
    torch.testing.assert_close(read.embeddings, expected)

    some = tmp_path / "some.safetensors"
    done = run(
        *(repository, "--vocabulary", "wren, kite", "--novel", "kite", "--out", some),
        *("--import", tmp_path / "m.npy", "--import-classes", "kite, owl, wren"),
    )
    assert done.returncode == 0, done.stderr
    read = TextEmbeddings.load(some)
    assert (read.vocabulary.names, read.vocabulary.novel) == (("wren", "kite"), (False, True))
    torch.testing.assert_close(read.embeddings, expected[[2, 0]])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--vocabulary", "a, b", "--import", "{npy}"), "expected the shape (2, D) or (D, 2)"),
        (("--vocabulary", "a, a", "--model", "vild-shapes"), "the class 'a' is there 2 times"),
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
    repository: Path, tmp_path: Path, args: tuple[str, ...], message: str
) -> None:
    np.save(tmp_path / "m.npy", np.ones((3, 5)))
    out = tmp_path / "out.safetensors"
    done = run(repository, *(a.format(npy=tmp_path / "m.npy") for a in args), "--out", out)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "Traceback" not in done.stderr
    assert not out.exists()


@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5"])
def test_impossible_batch_sizes(repository: Path, tmp_path: Path, value: str) -> None:
    out = tmp_path / "out.safetensors"
    done = run(repository, "--vocabulary", "a", "--batch-size", value, "--out", out)
    assert done.returncode == 2
    assert f"--batch-size: expected an integer of at least 1, got '{value}'" in done.stderr
    assert "Traceback" not in done.stderr


def test_tensors_of_torch_are_imported_for_a_list_of_another_kind(
    repository: Path, tmp_path: Path
) -> None:
    torch.save({"text": torch.eye(4)[:2]}, tmp_path / "words.pth")
    (tmp_path / "data.yaml").write_text("nc: 2\nnames: {0: kite, 1: owl}\n", encoding="utf-8")
    out = tmp_path / "birds.safetensors"
    done = run(
        *(repository, "--vocabulary", tmp_path / "data.yaml", "--out", out),
        *("--import", tmp_path / "words.pth"),
    )
    assert done.returncode == 0, done.stderr
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
    assert "there is none of 'owl'" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_said_first(
    main: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path, tmp_path / "file" / "a.safetensors", Path("/proc/a.safetensors")):
        assert main("--vocabulary", "a", "--model", "gone", "--out", out) == 2
        error = capsys.readouterr().err
        assert f"error: expected --out to be a file that can be written, got {out}" in error
