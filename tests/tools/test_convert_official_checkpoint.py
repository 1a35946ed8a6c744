"""The command line of the official converter; successful conversions need TensorFlow."""

from __future__ import annotations

import importlib.util
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from convert_official_checkpoint import checkpoint_prefix
from vild.embeddings import TextEmbeddings

from .. import forked
from ..official import MODELS, converted, recorded, variables

needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed"
)


def run(folder: Path, *args: object) -> tuple[int | None, str]:
    names = folder / "names.txt"
    names.write_text("".join(f"class {n}\n" for n in range(60)), encoding="utf-8")
    outputs = ("--out", folder / "model.pth", "--text-out", folder / "text.safetensors")
    command = ("tools/convert_official_checkpoint.py", *args, *outputs, "--vocabulary", names)
    return forked.run(command)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a folder for each model with TensorFlow, including optimizer variables."""
    import tensorflow as tf

    root = tmp_path_factory.mktemp("checkpoints")
    for name in MODELS:
        bias = "frcnn_layer_0/fast_rcnn_head/box-predict/bias"
        arrays = {**variables(name), f"{bias}/Momentum": np.zeros(4, np.float32)}
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            made = {
                key: tf.compat.v1.get_variable(
                    key.replace(":", "_"), array.shape, use_resource=False, trainable=False
                )
                for key, array in arrays.items()
            }
            step = tf.compat.v1.train.create_global_step()
            session.run(step.initializer)
            for key, variable in made.items():
                variable.load(arrays[key], session)
            saver = tf.compat.v1.train.Saver([*made.values(), step])
            (root / name).mkdir()
            saver.save(session, str(root / name / "model.ckpt"), global_step=180000)
    return root


@needs_tensorflow
@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_of_tensorflow_is_converted(
    name: str, checkpoints: Path, tmp_path: Path
) -> None:
    arrays = recorded(name)
    np.save(tmp_path / "text.npy", arrays["text_embeddings_DxK"])
    np.save(tmp_path / "mask.npy", arrays["rare_mask"])
    given = checkpoints / name
    if name == "vanilla":  # one model as an archive, one as a folder
        given = tmp_path / "published.tar.gz"
        with tarfile.open(given, "w:gz", compresslevel=1) as archive:
            archive.add(checkpoints / name, arcname="resnet50_vild")
    files = ["--classifier", tmp_path / "text.npy", "--rare-masks", tmp_path / "mask.npy"]
    code, output = run(tmp_path, given, *files)
    assert code == 0, output
    assert f"evaluate with {converted(name).config}" in output
    assert "the classifier in the checkpoint differs from it by at most 0.0e+00" in output
    base = int((arrays["rare_mask"][1:] != 0).sum())  # for plain names, all are novel
    assert f"{base} of its novel flags differ from those of" in output
    loaded = torch.load(tmp_path / "model.pth", weights_only=True)["model"]
    assert set(loaded) == set(converted(name).state)
    assert all(torch.equal(loaded[key], value) for key, value in converted(name).state.items())
    text = TextEmbeddings.load(tmp_path / "text.safetensors")
    assert torch.equal(text.embeddings, converted(name).text)
    assert text.vocabulary.novel == tuple((arrays["rare_mask"][1:] == 0).tolist())


@needs_tensorflow
@pytest.mark.parametrize("part", [".data", ".index"])
def test_a_cut_checkpoint_is_refused(part: str, checkpoints: Path, tmp_path: Path) -> None:
    for file in (checkpoints / "vanilla").glob("model.ckpt*"):
        data = file.read_bytes()
        (tmp_path / file.name).write_bytes(data[: len(data) // 2] if part in file.name else data)
    code, output = run(tmp_path, tmp_path / "model.ckpt-180000")
    assert code == 2
    assert "is not a complete TensorFlow checkpoint" in output
    assert not (tmp_path / "model.pth").exists()


@needs_tensorflow
def test_text_embeddings_of_another_dimension_are_refused(
    checkpoints: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "text.npy", np.ones((768, 60), np.float32))
    code, output = run(tmp_path, checkpoints / "vanilla", "--classifier", tmp_path / "text.npy")
    assert code == 2
    assert "(D, K) of shape (512, 60)" in output
    assert not (tmp_path / "model.pth").exists()


def archive_of(folder: Path, *names: str) -> Path:
    made = folder / "some.tar.gz"
    with tarfile.open(made, "w:gz") as archive:
        for name in names:
            (folder / name).write_bytes(np.random.RandomState(0).bytes(10_000))
            archive.add(folder / name, arcname=f"inside/{name}")
    return made


def test_a_prefix_is_found_in_an_archive_a_folder_and_as_it_is(tmp_path: Path) -> None:
    made = archive_of(tmp_path, "m.ckpt.index", "m.ckpt.data-00000-of-00001", "graph.pbtxt")
    with checkpoint_prefix(made) as prefix:
        assert prefix.name == "m.ckpt"
        assert prefix.with_name("m.ckpt.index").is_file()
    assert not prefix.parent.exists()
    for given in (tmp_path, tmp_path / "m.ckpt"):
        with checkpoint_prefix(given) as prefix:
            assert prefix == tmp_path / "m.ckpt"


def test_a_cut_archive_is_refused(tmp_path: Path) -> None:
    made = archive_of(tmp_path, "m.ckpt.index", "m.ckpt.data-00000-of-00001")
    made.write_bytes(made.read_bytes()[:5000])
    with (
        pytest.raises(ValueError, match=r"not a complete tar archive.*download the published file"),
        checkpoint_prefix(made),
    ):
        pass


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["notes.txt"], r"expected one TensorFlow checkpoint.*some.tar.gz, got notes.txt"),
        (["a.index", "b.index"], "got a.index, b.index; give the prefix"),
        (["a.index"], r"a.data-\.\.\..*some of it is missing"),
    ],
)
def test_other_archives_are_refused(names: list[str], message: str, tmp_path: Path) -> None:
    made = archive_of(tmp_path, *names)
    with pytest.raises(ValueError, match=message), checkpoint_prefix(made):
        pass


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    code, output = run(tmp_path, tmp_path / "gone.tar.gz")
    assert code == 2
    last = output.splitlines()[-1]
    assert last == f"error: expected a checkpoint at {tmp_path / 'gone.tar.gz'}: no such file"
